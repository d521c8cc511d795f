import numpy as np
from pytest import approx

from scoring import ec57

FS = 100


def test_table_counted_by_hand():
    """`a` and `b` count, but for a beat of the first five minutes; `p` and `f` have paced beats."""
    rows = {"record": np.array(list("aaaaabbbppf")), "aami": np.array(list("NNVVVNVSQVQ")),
            "symbol": np.array(list("NNVVVNVA/Vf")), "sample": FS * np.arange(299, 310)}
    flagged = np.array([1, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1], bool)
    result = ec57.ec57(rows, flagged, ec57.paced(rows), FS)
    assert result["left_out"] == ["f", "p"] and result["records"] == 2
    none = {"n": 0, "records": 0, "gross": None, "average": None}
    assert result["classes"] == {
        "N": {"n": 2, "records": 2, "gross": 0.5, "average": 0.5},
        "S": {"n": 1, "records": 1, "gross": 1, "average": 1},
        "V": {"n": 4, "records": 2, "gross": 0.5, "average": approx((2 / 3 + 0) / 2)},
        "F": none, "Q": none}


def test_false_alarms_equal_a_search_over_all_thresholds():
    rng = np.random.default_rng(0)
    y = (rng.random(300) < 0.3).astype(int)
    scores = np.round(rng.normal(size=300) + y, 2)  # with ties
    for row in ec57.false_alarms(scores, y, 2.5):
        reached = {t: (scores[y == 1] >= t).mean() for t in np.unique(scores)}
        threshold = max(t for t, share in reached.items() if share >= row["sensitivity"] - 1e-12)
        false = ((scores >= threshold) & (y == 0)).sum()
        assert row["reached"] == approx(reached[threshold])
        assert row["per_hour"] == approx(false / 2.5)
        assert row["specificity"] == approx(1 - false / (y == 0).sum())


def test_calibration_says_what_the_thresholds_did():
    scores, y = np.array([0.0, 1, 2, 3, 2, 5]), np.array([0, 0, 0, 0, 1, 1])
    assert ec57.calibration(scores, y, {0.5: 2.0, 0.9: 4.0}) == [
        {"asked": 0.5, "threshold": 2.0, "specificity": 0.5, "sensitivity": 1.0},
        {"asked": 0.9, "threshold": 4.0, "specificity": 1.0, "sensitivity": 0.5}]


def test_hours_are_the_sum_of_the_known_intervals():
    assert ec57.hours(np.array([np.nan, 1800, 1800, 900], np.float32)) == approx(1.25)
