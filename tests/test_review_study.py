"""studies.review: decisions counted, and what right ones give, by hand on twelve beats."""

import pandas as pd
import pytest

from studies import review


@pytest.fixture
def rows():
    """A review group of three V and an N, one of an N and a lone detection, an S missed."""
    beats = [("V", "V", 1), ("V", "V", 1), ("V", "V", 1), ("N", "V", 1),
             ("N", "S", 2), ("x", "S", 2), ("N", "N", 0), ("N", "N", 0),
             ("S", "N", 0), ("V", "", 0), ("F", "F", 3), ("F", "F", 3)]
    table = pd.DataFrame(beats, columns=["aami", "kind", "review_group"])
    return table.assign(record="r", time_s=400.0)


def test_right_decisions_are_of_whole_groups(rows):
    assert list(review.reviewed_kinds(rows)) == [
        "V", "V", "V", "V", "N", "N", "N", "N", "N", "", "F", "F"]
    assert list(rows["kind"][:4]) == ["V"] * 4    # nothing is changed


def test_figures_are_those_counted_by_hand(rows):
    early = rows.assign(record="e", time_s=10.0)     # in the minutes that do not count
    figures = review.figures_of([(rows, 0.5), (early, 0.5)])
    assert (figures["decisions_median"], figures["decisions_most"]) == (3, 3)
    assert figures["flagged"] == 16 and figures["purity"] == 12 / 16
    v, s = figures["kinds"]
    assert v == {"kind": "V", "n": 4, "sensitivity": 3 / 4, "ppv": 3 / 4,
                 "sensitivity_reviewed": 3 / 4, "ppv_reviewed": 3 / 4}
    # two given S, neither of them one; after review none is given
    assert (s["n"], s["sensitivity"], s["ppv"], s["sensitivity_reviewed"]) == (1, 0, 0, 0)
    assert pd.isna(s["ppv_reviewed"])
