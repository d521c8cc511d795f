import json
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, recall_score, roc_auc_score

import config
from scoring import metrics
import models
from studies import select_score
from pipeline.errors import UserError


def test_merit_equals_scikit_learn():
    rng = np.random.default_rng(0)
    record, scores = np.repeat(["a", "b", "few"], 50), rng.normal(size=150)
    y = (rng.random(150) < 0.4).astype(int)
    y[100:] = np.arange(50) < metrics.MIN_BEATS - 1  # too few abnormal beats for a figure of its own
    got = select_score.merit(scores + y, y, record)
    own = [roc_auc_score(y[record == name], (scores + y)[record == name]) for name in "ab"]
    expected = {"auroc": roc_auc_score(y, scores + y), "auroc_record_mean": np.mean(own),
                "auprc": average_precision_score(y, scores + y)}
    assert got == pytest.approx(expected | {"merit": np.mean(list(expected.values()))})


def test_averaged_is_the_mean_of_each_figure():
    assert select_score.averaged([{"a": 1.0, "b": 0.0}, {"a": 3.0, "b": 1.0}]) == {"a": 2.0, "b": 0.5}


def sample(rows, y, record):
    table = SimpleNamespace(rows={"y": np.asarray(y), "record": np.asarray(record)})
    return SimpleNamespace(table=table, at=np.asarray(rows), view=SimpleNamespace(), fitted={})


def test_judged_is_the_mean_over_seeds_and_pools_folds(segments):
    y, record, rng = segments.rows["y"], segments.rows["record"], np.random.default_rng(0)
    rows = [np.arange(0, 300), np.arange(100, 400)]
    parts = [[{"a": rng.normal(size=300), "b": rng.normal(size=300)}] for _ in rows]
    weighted = [2 * own["a"] + 0.5 * own["b"] for (own,) in parts]
    got = select_score.judged("beat", [[sample(r, y, record)] for r in rows], parts, {"a": 2, "b": 0.5})
    assert got["auroc"] == pytest.approx(np.mean([roc_auc_score(y[r], v) for r, v in zip(rows, weighted)]))
    few = [np.arange(200, 300), np.arange(300, 400)]
    thin = [{"a": rng.normal(size=100), "b": rng.normal(size=100)} for _ in few]
    got = select_score.judged("patient", [[sample(r, y, record), sample(f, y, record)] for r, f in zip(rows, few)],
                              [[*own, t] for own, t in zip(parts, thin)], {"a": 2, "b": 0.5})
    whole = select_score.merit(np.concatenate(weighted), y[np.concatenate(rows)], record[np.concatenate(rows)])
    few = np.concatenate(few)
    beside = select_score.merit(np.concatenate([2 * t["a"] + 0.5 * t["b"] for t in thin]), y[few], record[few])
    assert got == pytest.approx(whole | {"thinned": beside["merit"], "merit": (whole["merit"] + beside["merit"]) / 2})


def test_weights_that_change_nothing_stay_zero(segments, monkeypatch):
    """Best first, and the smaller weights where the merit is the same."""
    rows, names = np.arange(len(segments.x)), select_score.PARTS["patient"]
    y = segments.rows["y"]
    first = np.random.default_rng(0).normal(size=len(rows)) + y
    parts = {names[0]: first, names[1]: 3.0 * y, names[2]: np.zeros(len(rows))}
    monkeypatch.setattr(select_score, "parts_of", lambda *a: [[parts, parts]])
    table = select_score.weigh("patient", [[sample(rows, y, segments.rows["record"])] * 2])
    assert len(table) == len(select_score.STEPS) ** 2
    assert table[0]["weights"] == {names[0]: 1.0, names[1]: max(select_score.STEPS), names[2]: 0.0}
    merits = [round(row["merit"], 4) for row in table]
    assert merits == sorted(merits, reverse=True) and table[-1]["weights"][names[1]] == 0


def test_thinned_records_are_mostly_abnormal_and_keep_their_intervals():
    """Of 400 beats 40 are abnormal: all stay, with 13 normal ones; the record without enough stays whole."""
    n, rng = 400, np.random.default_rng(0)
    record = np.repeat(["a", "b"], n)
    y = np.concatenate([np.arange(n) % 10 == 0, np.arange(n) % 20 == 0]).astype(int)
    intervals = rng.uniform(0.5, 1, 2 * n)
    table = SimpleNamespace(rows={"y": np.append(y, 1), "record": np.append(record, "c"),
                                  "rr_before_s": np.append(intervals, 9.0)})
    columns = {name: rng.normal(size=(2 * n, 3)) for name in ("recon", "z", "mse", "qrs_error")}
    whole = SimpleNamespace(table=table, at=np.arange(2 * n), fitted={}, view=SimpleNamespace(record=record, **columns))
    thin = select_score.thinned(whole)
    kept_y, kept_record = thin.table.rows["y"][thin.at], thin.table.rows["record"][thin.at]
    assert kept_y[kept_record == "a"].sum() == 40 and (kept_y[kept_record == "a"] == 0).sum() == 40 // 3
    np.testing.assert_array_equal(kept_y[kept_record == "b"], y[n:])
    kept = np.searchsorted(np.sort(intervals), thin.table.rows["rr_before_s"])
    kept = np.argsort(intervals)[kept]
    assert (np.diff(kept) > 0).all() and len(thin.view.record) == len(kept)
    for name, values in columns.items():
        np.testing.assert_array_equal(getattr(thin.view, name), values[kept])
    np.testing.assert_array_equal(whole.view.z, columns["z"])


def test_operating_points_are_of_the_threshold_at_that_specificity(segments, monkeypatch):
    rows, y = np.arange(len(segments.x)), segments.rows["y"]
    scores = np.random.default_rng(1).normal(size=len(rows)) + 2 * y
    monkeypatch.setattr(select_score, "parts_of", lambda *a: [[{name: scores for name in select_score.PARTS["beat"]}]])
    monkeypatch.setattr(config, "WEIGHTS", {"beat": {"nearest": 2.0}})
    for point in select_score.operating_points([[sample(rows, y, segments.rows["record"])]]):
        flagged = scores >= np.sort(scores[y == 0])[::-1][int((1 - point["asked"]) * (y == 0).sum() + 1e-9)] + 1e-12
        expected = {"accuracy": accuracy_score(y, flagged), "f1": f1_score(y, flagged),
                    "sensitivity": recall_score(y, flagged), "specificity": recall_score(1 - y, ~flagged)}
        assert {k: point[k] for k in expected} == pytest.approx(expected)
        assert point["margin"] == pytest.approx(min(v - config.PUBLISHED[k] for k, v in expected.items()))
        assert point["specificity"] >= point["asked"]


def test_folds_hold_each_patient_of_ds1_once_and_nobody_of_ds2(small, segments, monkeypatch):
    trained = []

    def fresh(segments, train, normal, seed, device, paths, stamp):
        trained.append((train, normal))
        return models.ConvAutoencoder(config.WINDOW_SIZE, config.LATENT_DIM), []

    monkeypatch.setattr(select_score.train_mitbih, "fresh_weights", fresh)
    folds = select_score.fold_models(small, segments, "cpu")
    record, y = segments.rows["record"], segments.rows["y"]
    held = [set(record[rows]) for _, rows, _, _ in folds]
    assert sorted(name for names in held for name in names) == sorted(small.train + small.validation)
    for (_, rows, train, _), (fitted, chosen), names in zip(folds, trained, held):
        assert not set(record[train]) & (names | set(small.test)) and (y[train] == 0).all() and len(train)
        np.testing.assert_array_equal(train, fitted)
        np.testing.assert_array_equal(chosen, rows[y[rows] == 0])
    assert len(trained) == select_score.FOLDS
    select_score.fold_models(small, segments, "cpu")
    assert len(trained) == select_score.FOLDS  # kept as checkpoints
    monkeypatch.setattr(config, "RECORD_LOSS", 0.5)
    select_score.fold_models(small, segments, "cpu")
    assert len(trained) == 2 * select_score.FOLDS


def test_parts_are_standard_on_normal_beats(evaluated, monkeypatch):
    monkeypatch.setattr(config, "SEEDS", (0,))
    segments = select_score.prepare(select_score.parse_args(["--simulated"]))[2]
    found = select_score.beat_models(evaluated, segments, "cpu")
    np.testing.assert_array_equal(found[0][1], segments.part("beat", "validation"))
    ready = select_score.prepared(found, segments, "beat", "cpu")
    (parts,), = select_score.parts_of(ready, {}, select_score.PARTS["beat"])
    normal = segments.rows["y"][found[0][1]] == 0
    assert tuple(parts) == select_score.PARTS["beat"]
    for values in parts.values():
        assert (values[normal].mean(), values[normal].std()) == pytest.approx((0, 1), abs=1e-6)
    monkeypatch.setattr(config, "RECORD_LOSS", 0.5)
    with pytest.raises(UserError, match="seed 0.*RECORD_LOSS.*train_mitbih.py"):
        select_score.beat_models(evaluated, segments, "cpu")


def test_selection_leaves_the_test_split_alone(evaluated, monkeypatch, capsys):
    """What is test in both protocols may be anything: the file is the same."""
    monkeypatch.setattr(config, "SEEDS", (0,))
    monkeypatch.setattr(config, "MAX_EPOCHS", 1)
    monkeypatch.setattr(select_score, "beat_models", lambda database, segments, device: [
        (models.load_checkpoint(database.checkpoint_path("beat", 0))[0], segments.part("beat", "validation"),
         segments.part("beat", "train"), None)])
    monkeypatch.setattr(select_score, "STEPS", (0.0, 0.3))
    monkeypatch.setattr(select_score, "TRIED", {"beat": {"KNN_NEIGHBOURS": (1, 3)},
                                                "patient": {"SELF_IRREGULARITY": (0.1, 1000.0)}})
    path, found, real = evaluated.root / "results" / "selection.json", [], select_score.prepare

    def spoilt(args):
        database, device, segments = real(args)
        unseen = (segments.rows["split_beat"] == "test") & (segments.rows["split_patient"] == "test")
        assert unseen.sum() > 20
        segments.x[unseen], segments.rows["y"][unseen] = 7, 1 - segments.rows["y"][unseen]
        return database, device, segments

    for prepare in (real, spoilt):
        monkeypatch.setattr(select_score, "prepare", prepare)
        for checkpoint in (evaluated.root / "checkpoints").glob("fold*.pt"):
            checkpoint.unlink()
        select_score.main(["--simulated"])
        found.append(json.loads(path.read_text()))
    assert found[0] == found[1] and set(found[0]["protocols"]) == set(config.PROTOCOLS)
    table = found[0]["protocols"]["beat"]
    assert [(row["setting"], row["value"], row["used"]) for row in table["settings"]] == [
        ("KNN_NEIGHBOURS", 1, False), ("KNN_NEIGHBOURS", 3, True)]
    assert len(table["weights"]) == 4 and len(found[0]["operating_points"]) == len(select_score.SPECIFICITIES)
    assert "best weights" in capsys.readouterr().out
