"""Review groups and what is read back of a review: few, stable, damaged files refused."""

import json

import numpy as np
import pandas as pd
import pytest
import wfdb
from numpy.testing import assert_allclose, assert_array_equal

import detect
from pipeline.errors import UserError
from recording import review, reviewed


# --- review groups --------------------------------------------------------------------------------

@pytest.fixture
def shapes():
    """(latents, early, excess, kind) of 400 beats: two shapes of V, one early S, one lone V."""
    rng = np.random.default_rng(0)
    latents = rng.normal(0, 0.3, (400, 8))
    latents[100:200] += 6
    latents[399] -= 20
    early = np.repeat([0.3, 0.3, 0.4, 0.4], 100)
    kind = np.repeat(["V", "V", "S", "S"], 100)
    kind[399] = "V"
    return latents, early, np.r_[np.full(100, 9.0), np.full(300, 2.0)], kind


def test_like_beats_are_one_question_and_the_weightiest_comes_first(shapes):
    number = review.review_groups(*shapes)
    assert set(number[:100]) == {1}      # of the highest total excess
    assert [len(set(number[part])) for part in (slice(100, 200), slice(200, 399))] == [1, 1]
    assert set(number) == {1, 2, 3, 4} and (number == number[399]).sum() == 1


def test_no_kind_has_more_than_the_most_and_order_of_beats_does_not_matter():
    rng = np.random.default_rng(1)
    latents = rng.normal(0, 30, (300, 8))     # each far from all others
    early, excess = rng.uniform(0, 0.5, 300), rng.uniform(2, 9, 300)
    kind = np.array(list("SVF"))[np.arange(300) % 3]
    number = review.review_groups(latents, early, excess, kind)
    assert [len(set(number[kind == letter])) for letter in "SVF"] == [review.MOST] * 3

    mixed = rng.permutation(300)
    again = review.review_groups(latents[mixed], early[mixed], excess[mixed], kind[mixed])
    assert_array_equal(again, number[mixed])


def test_of_very_many_beats_the_rest_goes_to_the_nearest(shapes, monkeypatch):
    whole = review.review_groups(*shapes)
    monkeypatch.setattr(review, "SAMPLE", 40)
    assert_array_equal(review.review_groups(*shapes)[:399], whole[:399])


def test_a_beat_on_another_has_a_place(shapes):
    latents, early, excess, kind = shapes
    early[5] = 1.0
    early[6] = np.nan
    assert np.isfinite(review.review_groups(latents, early, excess, kind)).all()


def test_mean_beats_are_those_of_the_signal():
    fs_hz, width = 100, 200
    rng = np.random.default_rng(2)
    shape = np.exp(-np.square(np.arange(width) - 100) / 8)
    x = np.outer([1.0] * 20 + [2.0] * 3, shape) + rng.normal(0, 0.01, (23, width))
    segments = np.column_stack([(x - 0.5) / 2, np.full(23, 0.5), np.full(23, 2.0)])
    number = np.r_[np.zeros(20, int), np.ones(3, int)]
    offset_s, usual, (mean,) = review.mean_beats(number, number == 0, segments, fs_hz)
    shown = slice(60, 160)
    assert_allclose(offset_s[[0, -1]], [-0.4, 0.59])
    assert_allclose(mean, x[20:, shown].mean(axis=0))
    assert_allclose(usual["mean"], x[:20, shown].mean(axis=0))
    inside = (x[:20, shown] >= usual["low"]) & (x[:20, shown] <= usual["high"])
    assert inside.mean() == pytest.approx(0.9, abs=0.02)

    # twice as high in the middle, and nowhere else
    assert review.where_it_deviates(offset_s, usual, mean) == ["QRS complex"]
    assert review.where_it_deviates(offset_s, usual, usual["mean"]) == []
    assert review.where_it_deviates(offset_s, None, mean) == []


# --- what is read back ----------------------------------------------------------------------------

@pytest.fixture
def found(tmp_path):
    """Folder of the output of detect.py for r: five beats, two of them flagged."""
    sample = [100, 200, 300, 400, 500]
    kind = ["N", "V", "N", "S", ""]
    pd.DataFrame({"sample": sample, "kind": kind, "flag": [0, 1, 0, 1, 0],
                  "state": ["scored"] * 4 + ["unreadable"]}).to_csv(
        tmp_path / "r.ecgad.csv", index=False)
    wfdb.wrann("r", "ecgad", np.array([100, 200, 250, 300, 400]), ["N", "V", "~", "N", "S"],
               subtype=np.array([0, 0, -1, 0, 0]), aux_note=["0.10", "5.00", "", "0.20", "2.00"],
               fs=360, write_dir=str(tmp_path))
    return tmp_path


def table(folder, *rows):
    path = folder / "r.reviewed.csv"
    path.write_text("\n".join(["sample,reviewed_kind,verdict", *rows]) + "\n")
    return path


def test_a_table_says_what_changed_and_becomes_annotations(found, capsys):
    detect.main(["--reviewed", str(table(found, "200,N,rejected", "400,V,accepted"))])
    assert "1 accepted (1 as another kind), 1 rejected, 0 left as found" in capsys.readouterr().out
    stored = json.loads((found / "r.reviewed.json").read_text())
    assert stored["before"] == {"N": 2, "S": 1, "V": 1, "F": 0, "Q": 0}
    assert stored["after"] == {"N": 3, "S": 0, "V": 1, "F": 0, "Q": 0}

    notes = wfdb.rdann(str(found / "r"), "reviewed")
    assert list(zip(notes.sample, notes.symbol)) == [
        (100, "N"), (200, "N"), (250, "~"), (300, "N"), (400, "V")]
    assert notes.subtype[2] == -1 and notes.fs == 360


def test_verdicts_stand_in_the_annotations_and_folders_are_read(found, capsys):
    table(found, "200,V,accepted", "400,S,")
    detect.main(["--reviewed", str(found)])
    assert "r: 2 flagged: 1 accepted" in capsys.readouterr().out
    notes = wfdb.rdann(str(found / "r"), "reviewed")
    assert notes.aux_note[1] == "accepted" and notes.aux_note[4] == ""

    _, summary = reviewed.read_back(found / "r.reviewed")
    assert (summary["accepted"], summary["as_found"]) == (1, 1)
    with pytest.raises(UserError, match="has no NAME.reviewed.csv"):
        detect.main(["--reviewed", str(found.parent)])


def test_annotations_made_in_another_program_are_read_back(found):
    wfdb.wrann("r", "reviewed", np.array([100, 200, 300, 400]), ["N", "V", "V", "N"],
               write_dir=str(found))
    name, summary = reviewed.read_back(found / "r.reviewed")
    assert name == "r"
    assert (summary["rejected"], summary["added"], summary["as_found"]) == (1, 1, 1)


@pytest.mark.parametrize("rows, word", [
    (["201,N,rejected"], "sample 201"), (["200,X,accepted"], "'X'"), (["200,N,no"], "'no'"),
    (["oops,N,rejected"], "damaged")])
def test_what_does_not_fit_is_refused_and_nothing_written(found, rows, word):
    path = table(found, *rows)
    with pytest.raises(UserError, match=word) as caught:
        reviewed.read_back(path)
    assert str(path) in str(caught.value) and caught.value.args[0].rstrip().endswith(".")
    assert not (found / "r.reviewed").exists() and not (found / "r.reviewed.json").exists()


def test_missing_and_misnamed_files_are_refused(found):
    for name, word in (("x.reviewed.csv", "missing"), ("r.csv", "expected NAME.reviewed.csv")):
        if name == "r.csv":
            (found / name).write_text("sample\n")
        with pytest.raises(UserError, match=word):
            reviewed.read_back(found / name)
    path = table(found, "200,N,rejected")
    (found / "r.ecgad.csv").unlink()
    with pytest.raises(UserError, match="--out"):
        reviewed.read_back(path)
    (found / "r.reviewed").write_bytes(b"\xff" * 33)
    with pytest.raises(UserError):
        reviewed.read_back(found / "r.reviewed")
