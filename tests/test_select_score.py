"""The choice of the default score: merit, folds, thinned records, candidates."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import (accuracy_score, average_precision_score, f1_score, recall_score,
                             roc_auc_score)

import config
import dataset
import models
import train_mitbih
from scoring import metrics
from scoring.features import BeatFeatures
from studies import select_score
from studies.select_score import Sample

CPU = torch.device("cpu")


def table(n, seed, names):
    """Beats of two records, a third of them abnormal, which every part has an idea of."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(int)
    parts = {name: rng.normal(size=n) + y for name in names}
    return pd.DataFrame({"y": y, "record": np.repeat(["a", "b"], n // 2), **parts})


def test_merit_equals_scikit_learn():
    few = table(50, 1, "pq").assign(record="few", y=np.arange(50) < metrics.MIN_BEATS - 1)
    beats = pd.concat([table(100, 0, "pq"), few])
    scores = np.logaddexp(2 * beats.p, 0.5 * beats.q)
    own = [roc_auc_score(beats.y[beats.record == name], scores[beats.record == name])
           for name in "ab"]  # the third has too few abnormal beats
    expected = {"auroc": roc_auc_score(beats.y, scores), "auroc_record_mean": np.mean(own),
                "auprc": average_precision_score(beats.y, scores)}
    expected["merit"] = np.mean(list(expected.values()))
    assert select_score.merit(beats, {"p": 2, "q": 0.5}) == pytest.approx(expected)


def test_seeds_are_averaged_and_folds_pooled():
    weights = {"p": 2, "q": 0.5}
    a, b, c, d, e, f = (table(200, seed, "pq") for seed in range(6))
    merit = [select_score.merit(beats, weights)["merit"]
             for beats in (a, b, *(pd.concat(pair) for pair in ([a, b], [c, d], [e, f])))]
    seeds = select_score.merit_of("beat", [[a], [b]], weights)
    assert seeds["merit"] == pytest.approx((merit[0] + merit[1]) / 2)
    folds = select_score.merit_of("patient", [[a, c, e], [b, d, f]], weights)
    assert folds["thinned"] == merit[3] and folds["noisy"] == merit[4]
    assert folds["merit"] == pytest.approx(np.mean(merit[2:]))


def test_weights_that_change_nothing_stay_zero(monkeypatch):
    """Best first, and the smaller weights where the merit is the same."""
    first, best, useless = "self_reference", "rhythm", "nearest"
    monkeypatch.setitem(select_score.PARTS, "patient", (first, best, useless))
    beats = table(400, 0, [first])
    beats[best] = 3.0 * beats.y
    beats[useless] = 0.0
    rows = select_score.try_weights("patient", [[beats, beats, beats]])
    assert len(rows) == len(select_score.STEPS) ** 3 - 1
    smallest = min(step for step in select_score.STEPS if step)
    assert rows[0]["weights"] == {first: 0.0, best: smallest, useless: 0.0}
    merits = [round(row["merit"], 4) for row in rows]
    assert merits == sorted(merits, reverse=True) and rows[-1]["weights"][best] == 0


def test_weights_are_kept_unless_others_gain_half_a_point():
    rows = [{"weights": {"p": k}, "merit": merit} for k, merit in enumerate((0.9, 0.896, 0.894))]
    for used, expected in ((0, 0), (1, 1), (2, 0), (3, 0)):
        assert select_score.to_use(rows, {"p": used}) == {"p": expected}


def test_operating_points_are_of_the_threshold_at_that_specificity(monkeypatch):
    beats = table(400, 1, ["nearest"])
    monkeypatch.setattr(config, "WEIGHTS", {"beat": {"nearest": 1.0}})
    for point in select_score.operating_points([[beats]]):
        allowed = int((1 - point["asked"]) * (beats.y == 0).sum() + 1e-9)
        flagged = beats.nearest > beats.nearest[beats.y == 0].nlargest(allowed + 1).iloc[-1]
        expected = {"accuracy": accuracy_score(beats.y, flagged), "f1": f1_score(beats.y, flagged),
                    "sensitivity": recall_score(beats.y, flagged),
                    "specificity": recall_score(1 - beats.y, ~flagged)}
        margin = min(value - config.PUBLISHED[name] for name, value in expected.items())
        known = {"asked": point["asked"], "used": point["used"], "margin": margin}
        assert point == pytest.approx(expected | known)


def test_thinned_records_are_mostly_abnormal_and_keep_their_intervals():
    """Of 400 beats 40 are abnormal: all stay, with 13 normal ones; a record with 20 stays whole."""
    beat = np.arange(800)
    record = np.repeat(["a", "b"], 400)
    y = (beat % np.where(record == "a", 10, 20) == 0).astype(int)
    columns = {"y": np.append(y, 1), "record": np.append(record, "c"), "beat": np.append(beat, -1)}
    whole = Sample({}, BeatFeatures(beat[:, None], beat, beat, record), columns, beat)
    thinned = select_score.thin(whole)
    kept = thinned.columns["beat"][thinned.rows]
    assert (np.diff(kept) > 0).all()
    assert np.bincount(y[kept[kept < 400]]).tolist() == [13, 40]
    np.testing.assert_array_equal(kept[kept >= 400], beat[400:])
    for values in (thinned.features.z[:, 0], thinned.features.mse, thinned.features.qrs_error):
        np.testing.assert_array_equal(values, kept)
    np.testing.assert_array_equal(thinned.features.record, record[kept])


def test_folds_hold_each_patient_of_ds1_once_and_nobody_of_ds2(small, segments, monkeypatch):
    trained = []

    def train(beats, x_validation, *rest):
        trained.append((set(beats.names), len(x_validation)))
        return models.ConvAutoencoder(config.WINDOW_SIZE, config.LATENT_DIM), []

    monkeypatch.setattr(train_mitbih, "train", train)
    patients = []
    samples = select_score.patient_samples(small, segments, CPU)
    for (whole, _, noisy), (seen, n_validation) in zip(samples, trained, strict=True):
        # the same beats and rhythm, other segments
        np.testing.assert_array_equal(noisy.rows, whole.rows)
        np.testing.assert_array_equal(noisy.features.irregular, whole.features.irregular)
        assert not np.isclose(noisy.features.mse, whole.features.mse).all()
        held_out = set(whole.features.record)
        patients += held_out
        assert seen and not seen & held_out and seen == set(whole.fitted["reference_records"])
        assert n_validation == (segments.rows["y"][whole.rows] == 0).sum()
        assert seen | held_out == {*small.train, *small.validation}
    assert sorted(patients) == sorted(small.train + small.validation)


def test_parts_are_standard_on_normal_validation_beats(evaluated, monkeypatch):
    monkeypatch.setattr(config, "SEEDS", (0,))
    segments = dataset.load_segments(evaluated)
    samples = select_score.beat_samples(evaluated, segments, CPU)
    (parts,), = select_score.parts_of(samples, {}, select_score.PARTS["beat"])
    np.testing.assert_array_equal(parts.y, segments.rows["y"][segments.part("beat", "validation")])
    normal = parts[parts.y == 0].drop(columns=["y", "record"])
    np.testing.assert_allclose(normal.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(normal.std(ddof=0), 1, atol=1e-6)


def test_selection_leaves_the_test_split_alone(evaluated, monkeypatch, capsys):
    """What is test in both protocols may be anything: the file is the same."""
    monkeypatch.setattr(config, "SEEDS", (0,))
    monkeypatch.setattr(select_score, "STEPS", (0.0, 0.3))
    monkeypatch.setattr(select_score, "TRIED", {
        "beat": {"KNN_NEIGHBOURS": (1, config.KNN_NEIGHBOURS)},
        "patient": {"SELF_IRREGULARITY": (0.1, 1000.0)}})
    network = models.ConvAutoencoder(config.WINDOW_SIZE, config.LATENT_DIM).eval()
    monkeypatch.setattr(select_score, "load_or_train", lambda *a: network)
    segments = dataset.load_segments(evaluated)
    monkeypatch.setattr(select_score, "load_segments", lambda database: segments)

    found = []
    for _ in range(2):
        select_score.main(["--database", "simulated", "--threads", "1"])
        found.append(json.loads((evaluated.out / "results" / "selection.json").read_text()))
        unseen = np.intersect1d(segments.part("beat", "test"), segments.part("patient", "test"))
        segments.x[unseen] = 7
        segments.rows["y"][unseen] ^= 1
    assert len(unseen) > 20
    assert found[0] == found[1] and set(found[0]["protocols"]) == set(config.PROTOCOLS)
    rows = found[0]["protocols"]["beat"]["settings"]
    assert [(row["value"], row["used"]) for row in rows] == [
        (1, False), (config.KNN_NEIGHBOURS, True)]
    out = capsys.readouterr().out
    assert "beat: weights to use" in out and "ROC-AUC (%)" in out
