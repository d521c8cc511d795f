"""SegmentDetector: scikit-learn's own checks, a reference by hand, real beats, its study."""

import pickle

import numpy as np
import pytest
import wfdb
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import check_estimator

from models import latents, load_checkpoint
from pipeline import settings, simulated_ecg
from pipeline.artefacts import load_json
from pipeline.errors import UserError
from preprocess import bandpass, cut_segments, inside, normalise, resample
from scoring.estimator import USUAL_DISTANCE, SegmentDetector
from studies import segment_detector as study

CHECKPOINT = settings.ROOT / "checkpoints" / "patient.pt"


def segments_of(path, seconds=2):
    """(segments (k, w) in mV, symbol (k,), time_s (k,)) of the first lead of a WFDB record."""
    record = wfdb.rdrecord(str(path))
    notes = wfdb.rdann(str(path), "atr")
    filtered = bandpass(record.p_signal[:, 0], record.fs, (0.5, 40), 3)
    width = seconds * record.fs
    whole = inside(notes.sample, len(filtered), width)
    peaks = notes.sample[whole]
    return (cut_segments(filtered, peaks, width), np.array(notes.symbol)[whole],
            peaks / record.fs)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    simulated_ecg.write_database(folder, ("s02",), duration_s=240, seed=5)
    return segments_of(folder / "s02")


@pytest.mark.filterwarnings("ignore:SCIPY_ARRAY_API")
@pytest.mark.slow
def test_scikit_learn_takes_it_for_an_outlier_detector():
    report = check_estimator(SegmentDetector(), on_skip=None)
    assert len(report) > 40
    assert {row["check_name"] for row in report if row["status"] != "passed"} <= {
        "check_array_api_input"}
    names = {row["check_name"] for row in report}
    assert {"check_outliers_train", "check_outliers_fit_predict"} <= names


def test_scores_are_distances_between_latents(simulated):
    segments, symbol, _ = simulated
    normal = segments[symbol == "N"][:60]
    others = segments[-40:]
    detector = SegmentDetector(n_neighbors=3).fit(normal)

    model, stored = load_checkpoint(CHECKPOINT, "")
    z = [latents(model, normalise(rows)[0], 64, "cpu") / stored["fitted"]["z_scale"]
         for rows in (normal, others)]
    away = np.sort(np.linalg.norm(z[1][:, None] - z[0], axis=2), axis=1)[:, :3].mean(axis=1)
    assert_allclose(detector.score_samples(others), -away, atol=1e-3)

    # a fitted segment is not its own neighbour
    among = np.sort(np.linalg.norm(z[0][:, None] - z[0], axis=2), axis=1)[:, 1:4].mean(axis=1)
    assert_allclose(detector.score_samples(normal), -among, atol=1e-3)
    line = min(USUAL_DISTANCE, 10 * np.median(among))
    assert_allclose(detector.decision_function(others), line - away, atol=1e-2)
    assert_array_equal(detector.predict(others), np.where(away > line, -1, 1))
    assert {-1, 1} == set(detector.predict(others))

    # how many are asked at once is no matter
    one_by_one = np.concatenate([detector.score_samples(row[None]) for row in others[:5]])
    assert_allclose(one_by_one, detector.score_samples(others)[:5], rtol=1e-9)


def test_the_share_that_is_asked_for_lies_beyond_the_line(simulated):
    normal = simulated[0][simulated[1] == "N"]
    for share in (0.02, 0.1, 0.5):
        flagged = SegmentDetector(contamination=share).fit_predict(normal) < 0
        assert abs(flagged.mean() - share) < 1.1 / len(normal)
    for wrong in (0, 0.6, "some", -1, None):
        with pytest.raises(ValueError, match="contamination="):
            SegmentDetector(contamination=wrong).fit(normal)
    for wrong in (0, 1.5, "3"):
        with pytest.raises(ValueError, match="n_neighbors="):
            SegmentDetector(n_neighbors=wrong).fit(normal)
    with pytest.raises(UserError, match="none.pt: missing"):
        SegmentDetector(checkpoint="none.pt").fit(normal)


def test_neither_rate_nor_unit_matter_and_a_copy_says_the_same(simulated):
    segments, symbol, _ = simulated
    normal = symbol == "N"
    detector = SegmentDetector().fit(segments[normal])
    scores = detector.score_samples(segments)

    for again in (pickle.loads(pickle.dumps(detector)), clone(detector).fit(segments[normal])):
        assert_array_equal(again.score_samples(segments), scores)
    in_uv = clone(detector).fit(1000 * segments[normal]).score_samples(1000 * segments + 5)
    assert_allclose(in_uv, scores, atol=1e-4)

    # at 250 Hz, fitted and asked; 500 samples
    slower = np.array([resample(row, 360, 250) for row in segments])
    assert slower.shape[1] == 500
    other = clone(detector).fit(slower[normal]).score_samples(slower)
    assert np.corrcoef(other, scores)[0, 1] > 0.999 and np.abs(other - scores).max() < 1
    assert roc_auc_score(np.isin(symbol, ["V"]), -other) > 0.99


@pytest.mark.parametrize("name, least", [("106", 0.998), ("119", 0.998), ("208", 0.998)])
def test_ventricular_beats_of_real_records_are_found_better_than_by_a_forest(mitdb, name, least):
    segments, symbol, time_s = segments_of(mitdb / name)
    learning = (time_s < 300) & (symbol == "N")
    asked = (time_s >= 300) & np.isin(symbol, ["N", "V"])
    ventricular = symbol[asked] == "V"
    detector = SegmentDetector().fit(segments[learning])
    area = roc_auc_score(ventricular, -detector.score_samples(segments[asked]))
    forest = IsolationForest(random_state=0).fit(segments[learning])
    assert area > least
    assert area > roc_auc_score(ventricular, -forest.score_samples(segments[asked]))

    # at its own line
    flagged = detector.predict(segments[asked]) < 0
    assert flagged[ventricular].mean() > 0.8 and flagged[~ventricular].mean() < 0.03


# --- its study ------------------------------------------------------------------------------------

def test_the_study_measures_what_comes_after_the_beats_it_learned(small, capsys):
    study.main(["--database", "simulated"])
    result = load_json(small.out / "results" / "segment_detector.json", "")
    assert result["simulated"] and "flagged V (%)" in capsys.readouterr().out
    assert {row["detector"] for row in result["table"]} == {study.NETWORK, study.FOREST,
                                                             study.NEIGHBOURS}
    (line,) = result["lines"]
    assert line["records"] == 4 and line["flagged_N"] < 0.1
    # with 30 s to learn from and few beats after: what is broad is seen all the same
    assert result["table"][0]["V"] is None or result["table"][0]["V"] > 0.95


def test_figures_of_the_page_and_the_line_are_those_of_the_study():
    result = load_json(settings.ROOT / "results" / "segment_detector.json", "")
    page = (settings.ROOT / "docs" / "python.md").read_text()
    for row in result["table"]:
        figures = " | ".join(f"{100 * row[name]:.1f}" for name in ("V", "V_least", "S"))
        detector = row["detector"].replace(study.NETWORK, "`SegmentDetector`")
        assert f"| {row['data']} | {detector} | {figures} |" in page
    for row in result["lines"]:
        names = ("flagged_N", "flagged_V", "flagged_N_by_share")
        figures = " | ".join(f"{100 * row[name]:.1f}" for name in names)
        assert f"| {row['data']} | {figures} |" in page
    assert result["lines"][0]["line"] == USUAL_DISTANCE and not result["simulated"]
