import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, recall_score, roc_auc_score

import config
import dataset
import models
import train_mitbih
from pipeline.errors import UserError
from scoring import metrics
from scoring.features import BeatFeatures
from studies import select_score
from studies.select_score import Sample

CPU = torch.device("cpu")


def sample(rows, y, record):
    columns = {"y": np.asarray(y), "record": np.asarray(record)}
    return Sample({}, SimpleNamespace(), columns, np.asarray(rows))


@pytest.fixture
def labels():
    """(y, record) of 400 beats of two records, a third of them abnormal."""
    y = (np.random.default_rng(0).random(400) < 0.3).astype(int)
    return y, np.repeat(["a", "b"], 200)


def test_merit_equals_scikit_learn():
    rng = np.random.default_rng(0)
    record = np.repeat(["a", "b", "few"], 50)
    y = (rng.random(150) < 0.4).astype(int)
    y[100:] = np.arange(50) < metrics.MIN_BEATS - 1  # too few abnormal beats for a figure of its own
    scores = rng.normal(size=150) + y
    expected = {"auroc": roc_auc_score(y, scores),
                "auroc_record_mean": np.mean([roc_auc_score(y[record == r], scores[record == r]) for r in "ab"]),
                "auprc": average_precision_score(y, scores)}
    expected["merit"] = np.mean(list(expected.values()))
    assert select_score.merit(scores, y, record) == pytest.approx(expected)


def test_seeds_are_averaged_and_folds_pooled(labels):
    y, record = labels
    rng = np.random.default_rng(1)
    rows = [np.arange(0, 300), np.arange(100, 400)]
    fewer = [np.arange(200, 300), np.arange(300, 400)]
    weights = {"a": 2, "b": 0.5}
    parts = [[{name: rng.normal(size=len(r)) for name in weights} for r in pair] for pair in zip(rows, fewer)]
    scores = [[2 * p["a"] + 0.5 * p["b"] for p in pair] for pair in parts]

    seeds = [[sample(r, y, record)] for r in rows]
    got = select_score.merit_of("beat", seeds, [pair[:1] for pair in parts], weights)
    assert got["auroc"] == pytest.approx(np.mean([roc_auc_score(y[r], s[0]) for r, s in zip(rows, scores)]))

    folds = [[sample(r, y, record), sample(f, y, record)] for r, f in zip(rows, fewer)]
    got = select_score.merit_of("patient", folds, parts, weights)
    whole, thinned = (select_score.merit(np.concatenate([s[k] for s in scores]), y[at], record[at])
                      for k, at in enumerate((np.concatenate(rows), np.concatenate(fewer))))
    both = {"thinned": thinned["merit"], "merit": (whole["merit"] + thinned["merit"]) / 2}
    assert got == pytest.approx(whole | both)


def test_weights_that_change_nothing_stay_zero(labels, monkeypatch):
    """Best first, and the smaller weights where the merit is the same."""
    y, record = labels
    names = select_score.PARTS["patient"]
    first = np.random.default_rng(0).normal(size=len(y)) + y
    parts = {names[0]: first, names[1]: 3.0 * y, names[2]: np.zeros(len(y))}
    monkeypatch.setattr(select_score, "parts_of", lambda *a: [[parts, parts]])
    table = select_score.try_weights("patient", [[sample(np.arange(len(y)), y, record)] * 2])
    assert len(table) == len(select_score.STEPS) ** 2
    assert table[0]["weights"] == {names[0]: 1.0, names[1]: max(select_score.STEPS), names[2]: 0.0}
    merits = [round(row["merit"], 4) for row in table]
    assert merits == sorted(merits, reverse=True) and table[-1]["weights"][names[1]] == 0


def test_thinned_records_are_mostly_abnormal_and_keep_their_intervals():
    """Of 400 beats 40 are abnormal: all stay, with 13 normal ones; the record without enough stays whole."""
    n = 400
    rng = np.random.default_rng(0)
    record = np.repeat(["a", "b"], n)
    y = np.concatenate([np.arange(n) % 10 == 0, np.arange(n) % 20 == 0]).astype(int)
    columns = {"y": np.append(y, 1), "record": np.append(record, "c"), "beat": np.arange(2 * n + 1)}
    z, mse, qrs_error = rng.normal(size=(2 * n, 3)), rng.normal(size=2 * n), rng.normal(size=2 * n)
    whole = Sample({}, BeatFeatures(z, mse, qrs_error, record), columns, np.arange(2 * n))
    thinned = select_score.thin(whole)
    kept = thinned.column("beat")
    assert (np.diff(kept) > 0).all()
    assert y[kept[kept < n]].sum() == 40 and (y[kept[kept < n]] == 0).sum() == 40 // 3
    np.testing.assert_array_equal(kept[kept >= n], np.arange(n, 2 * n))
    np.testing.assert_array_equal(thinned.column("y"), y[kept])
    for name, values in (("z", z), ("mse", mse), ("qrs_error", qrs_error), ("record", record)):
        np.testing.assert_array_equal(getattr(thinned.features, name), values[kept])
        assert len(getattr(whole.features, name)) == 2 * n


def test_operating_points_are_of_the_threshold_at_that_specificity(labels, monkeypatch):
    y, record = labels
    scores = np.random.default_rng(1).normal(size=len(y)) + 2 * y
    parts = {name: scores for name in select_score.PARTS["beat"]}
    monkeypatch.setattr(select_score, "parts_of", lambda *a: [[parts]])
    monkeypatch.setattr(config, "WEIGHTS", {"beat": {"nearest": 1.0}})
    for point in select_score.operating_points([[sample(np.arange(len(y)), y, record)]]):
        allowed = int((1 - point["asked"]) * (y == 0).sum() + 1e-9)
        flagged = scores > np.sort(scores[y == 0])[::-1][allowed]
        expected = {"accuracy": accuracy_score(y, flagged), "f1": f1_score(y, flagged),
                    "sensitivity": recall_score(y, flagged), "specificity": recall_score(1 - y, ~flagged)}
        assert {k: point[k] for k in expected} == pytest.approx(expected)
        assert point["margin"] == pytest.approx(min(v - config.PUBLISHED[k] for k, v in expected.items()))
        assert point["specificity"] >= point["asked"]


def test_folds_hold_each_patient_of_ds1_once_and_nobody_of_ds2(small, segments, monkeypatch):
    trained = []

    def train(beats, x_validation, *rest):
        trained.append((set(beats.names.tolist()), len(x_validation)))
        return models.ConvAutoencoder(config.WINDOW_SIZE, config.LATENT_DIM), []

    monkeypatch.setattr(train_mitbih, "train", train)
    held_out = []
    for (whole, _), (seen, n_validation) in zip(select_score.patient_samples(small, segments, CPU), trained):
        held_out.append(set(whole.column("record").tolist()))
        assert seen and not seen & (held_out[-1] | set(small.test))
        assert seen == set(whole.fitted["reference_records"])
        assert n_validation == (whole.column("y") == 0).sum()
    assert sorted(name for names in held_out for name in names) == sorted(small.train + small.validation)
    assert len(trained) == select_score.FOLDS

    select_score.patient_samples(small, segments, CPU)
    assert len(trained) == select_score.FOLDS  # kept as checkpoints
    monkeypatch.setattr(config, "RECORD_LOSS", 0.5)
    select_score.patient_samples(small, segments, CPU)
    assert len(trained) == 2 * select_score.FOLDS


def test_parts_are_standard_on_normal_beats_of_an_up_to_date_checkpoint(evaluated, monkeypatch):
    monkeypatch.setattr(config, "SEEDS", (0,))
    segments = dataset.load_segments(evaluated)
    samples = select_score.beat_samples(evaluated, segments, CPU)
    seen = samples[0][0]
    np.testing.assert_array_equal(seen.rows, segments.part("beat", "validation"))
    (parts,), = select_score.parts_of(samples, {}, select_score.PARTS["beat"])
    assert tuple(parts) == select_score.PARTS["beat"]
    for values in parts.values():
        normal = values[seen.column("y") == 0]
        assert (normal.mean(), normal.std()) == pytest.approx((0, 1), abs=1e-6)
    monkeypatch.setattr(config, "RECORD_LOSS", 0.5)
    with pytest.raises(UserError, match="beat.pt.*RECORD_LOSS.*train_mitbih.py"):
        select_score.beat_samples(evaluated, segments, CPU)


def test_selection_leaves_the_test_split_alone(evaluated, monkeypatch, capsys):
    """What is test in both protocols may be anything: the file is the same."""
    monkeypatch.setattr(config, "SEEDS", (0,))
    monkeypatch.setattr(select_score, "STEPS", (0.0, 0.3))
    monkeypatch.setattr(select_score, "TRIED", {"beat": {"KNN_NEIGHBOURS": (1, 3)},
                                                "patient": {"SELF_IRREGULARITY": (0.1, 1000.0)}})

    def train(*rest):
        torch.manual_seed(0)
        return models.ConvAutoencoder(config.WINDOW_SIZE, config.LATENT_DIM).eval(), []

    def spoilt(database):
        segments = dataset.load_segments(database)
        unseen = (segments.rows["split_beat"] == "test") & (segments.rows["split_patient"] == "test")
        assert unseen.sum() > 20
        segments.x[unseen] = 7
        segments.rows["y"][unseen] ^= 1
        return segments

    monkeypatch.setattr(train_mitbih, "train", train)
    found = []
    for load in (dataset.load_segments, spoilt):
        monkeypatch.setattr(select_score, "load_segments", load)
        for checkpoint in (evaluated.out / "checkpoints").glob("fold*.pt"):
            checkpoint.unlink()
        select_score.main(["--database", "simulated", "--threads", "1"])
        found.append(json.loads((evaluated.out / "results" / "selection.json").read_text()))
    assert found[0] == found[1] and set(found[0]["protocols"]) == set(config.PROTOCOLS)
    table = found[0]["protocols"]["beat"]
    assert [(row["setting"], row["value"], row["used"]) for row in table["settings"]] == [
        ("KNN_NEIGHBOURS", 1, False), ("KNN_NEIGHBOURS", 3, True)]
    assert len(table["weights"]) == 4 and len(found[0]["operating_points"]) == len(select_score.SPECIFICITIES)
    assert "best weights" in capsys.readouterr().out
