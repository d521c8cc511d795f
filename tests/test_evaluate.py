"""Step 3: figures against scikit-learn on the stored scores, and when it scores again."""

import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

import config
import dataset
import evaluate
import models
import train_mitbih
import visualize
from conftest import ON_SIMULATED
from pipeline import tables
from pipeline.errors import UserError
from preprocess import bandpass, gaussian
from scoring import beat_parts, fit, metrics


def results(database, protocol="beat"):
    folder = database.results_dir(protocol, config.SEED)
    with np.load(folder / "scores.npz", allow_pickle=False) as stored:
        return evaluate.load_metrics(folder, ""), dict(stored)


def test_figures_equal_scikit_learn_on_the_stored_scores(evaluated):
    result, table = results(evaluated)
    y = table["label"]
    assert result["n"] == {"test": len(y), "normal": int((y == 0).sum()), "abnormal": int(y.sum()),
                           "records": len(set(table["record"]))}
    for name, figures in result["scores"].items():
        s = table[f"score_{name}"]
        assert figures["auroc"]["value"] == pytest.approx(roc_auc_score(y, s), abs=1e-6)
        assert figures["auprc"]["value"] == pytest.approx(average_precision_score(y, s), abs=1e-6)
        flagged = s >= np.float32(figures["threshold"])
        assert figures["f1"]["value"] == pytest.approx(f1_score(y, flagged), abs=1e-6)
        assert sum(figures["confusion"].values()) == len(y)
        rows = (table["aami"] == "V") | (y == 0)
        assert figures["by_class"]["V"]["auroc"] == pytest.approx(roc_auc_score(y[rows], s[rows]), abs=1e-6)
        assert figures["auroc"]["low"] <= figures["auroc"]["value"] <= figures["auroc"]["high"]


def test_rows_are_the_test_split_and_the_scores_the_networks(evaluated):
    segments = dataset.load_segments(evaluated)
    _, table = results(evaluated)
    test = segments.part("beat", "test")
    np.testing.assert_array_equal(table["sample"], segments.rows["sample"][test])
    model, _ = models.load_checkpoint(evaluated.checkpoint_path("beat", config.SEED), "")
    recon, _ = models.reconstruct(model, segments.x[test], 64, "cpu")
    taper = gaussian(720, config.TAPER_SIGMA_S * config.FS_HZ)
    mse = ((recon.numpy() - segments.x[test] * taper) ** 2).mean(1)
    np.testing.assert_allclose(table["score_mse"], mse, rtol=1e-4)


def test_bedside_figures_and_parts_belong_to_the_stored_scores(evaluated):
    result, table = results(evaluated)
    _, stored = models.load_checkpoint(evaluated.checkpoint_path("beat", config.SEED), "")
    default, y = table[f"score_{config.DEFAULT_SCORE}"], table["label"]
    flagged = default >= np.float32(result["scores"][config.DEFAULT_SCORE]["threshold"])
    assert [row["asked"] for row in result["calibration"]] == list(fit.CALIBRATION)
    for row in result["calibration"]:
        assert row["threshold"] == stored["calibration"][row["asked"]]
        assert row["specificity"] == pytest.approx((default[y == 0] < row["threshold"]).mean(), abs=0.01)
    segments = dataset.load_segments(evaluated)
    rr = segments.rows["rr_before_s"][segments.part("beat", "test")]
    assert result["hours"] == pytest.approx(np.nansum(rr.astype(float)) / 3600)
    assert result["ec57"]["classes"]["N"]["n"] == 0  # records of 90 s end before the learning period does
    for name, entry in result["parts"].items():
        here = (table["aami"] == name) & flagged
        assert entry["n"] == here.sum()
        for k, part in enumerate(beat_parts.PARTS):
            assert entry[part] == (pytest.approx((table["part"][here] == k).mean()) if here.any() else None)


def test_examples_of_parts_are_flagged_beats_led_by_the_usual_part_of_their_class(evaluated):
    result, table = results(evaluated)
    flagged = table[f"score_{config.DEFAULT_SCORE}"] >= np.float32(result["scores"][config.DEFAULT_SCORE]["threshold"])
    assert len(table["part_row"]) and (table["label"][table["part_row"]] == 1).all()
    for row in table["part_row"]:
        same = np.flatnonzero((table["aami"] == table["aami"][row]) & flagged)
        counts = np.bincount(table["part"][same])
        assert row in same and counts[table["part"][row]] == counts.max()
    segments = dataset.load_segments(evaluated)
    chosen = segments.part("beat", "test")[table["part_row"]]
    mv = segments.x[chosen] * segments.rows["scale_mv"][chosen, None] + segments.rows["offset_mv"][chosen, None]
    np.testing.assert_allclose(table["part_signal"], mv, atol=1e-5)
    assert table["part_usual"].shape == mv.shape and np.isfinite(table["part_usual"]).all()


def test_figures_without_a_record_equal_scikit_learn():
    rng = np.random.default_rng(0)
    record, y, scores = np.repeat(["1", "2", "232"], 40), np.arange(120) % 2, rng.normal(size=120)
    rows = {"record": record, "y": y}
    got, kept = metrics.without_record("232", scores, rows), record != "232"
    assert got["auroc"] == pytest.approx(roc_auc_score(y[kept], scores[kept]))
    assert got["auprc"] == pytest.approx(average_precision_score(y[kept], scores[kept]))
    own = [roc_auc_score(y[record == name], scores[record == name]) for name in "12"]
    assert got["auroc_record_mean"] == pytest.approx(np.mean(own))
    assert metrics.without_record("100", scores, rows) is None
    assert metrics.without_record("232", scores[~kept], {k: v[~kept] for k, v in rows.items()}) is None


def test_patient_protocol_has_its_own_scores(small, segments):
    train_mitbih.main([*ON_SIMULATED, "--protocol", "patient"])
    evaluate.main([*ON_SIMULATED, "--protocol", "patient"])
    result, table = results(small, "patient")
    assert tuple(result["scores"]) == config.SCORES["patient"]
    for name, figures in result["scores"].items():
        expected = roc_auc_score(table["label"], table[f"score_{name}"])
        assert figures["auroc"]["value"] == pytest.approx(expected, abs=1e-6)
    assert not np.array_equal(table["score_combined"], table["score_combined_causal"])


def test_strip_is_the_filtered_signal_of_the_record(evaluated):
    _, table = results(evaluated)
    path = evaluated.records_dir() / str(table["strip_record"])
    signal, fs, _ = dataset.read_lead(path, evaluated.leads, "")
    filtered = bandpass(signal, fs, config.BAND_HZ, config.FILTER_ORDER)
    start, got = int(table["strip_start"]), table["strip_signal"]
    expected = filtered[start:start + len(got)]
    covered = np.isfinite(got[:len(expected)])
    assert covered.mean() > 0.8 and len(got) == 30 * 360
    np.testing.assert_allclose(got[:len(expected)][covered], expected[covered], atol=2e-5)
    row = table["example_row"][0]
    peak = table["sample"][row]
    own, _, _ = dataset.read_lead(evaluated.records_dir() / str(table["record"][row]), evaluated.leads, "")
    mv = bandpass(own, fs, config.BAND_HZ, config.FILTER_ORDER)[peak - 360:peak + 360]
    middle = mv.mean()
    tapered = (mv - middle) * gaussian(720, config.TAPER_SIGMA_S * config.FS_HZ) + middle
    np.testing.assert_allclose(table["example_signal"][0], tapered, atol=2e-5)


def test_pictures_table_and_simulated_marks(evaluated, capsys):
    plots = evaluated.plots_dir("beat")
    assert sorted(p.name for p in plots.iterdir()) == sorted(visualize.FIGURES)
    (evaluated.results_dir("beat", 0) / "metrics.json").stat()
    evaluate.main(ON_SIMULATED)
    out = capsys.readouterr().out
    assert "up to date, not scored again" in out and "SIMULATED DATA" in out and "combined" in out


def test_scores_of_another_run_beside_the_metrics_are_scored_again(evaluated, capsys):
    path = evaluated.results_dir("beat", config.SEED) / "scores.npz"
    with np.load(path) as stored:
        table = dict(stored, weights=np.array("of another run"))
    np.savez(path, **table)
    evaluate.main(ON_SIMULATED)
    assert "up to date, not scored" not in capsys.readouterr().out


def test_missing_and_damaged_checkpoint_name_the_command(small, segments):
    with pytest.raises(UserError, match="beat.pt: missing.*python train_mitbih.py --protocol beat --database simulated"):
        evaluate.main(ON_SIMULATED)
    path = small.checkpoint_path("beat", config.SEED)
    path.parent.mkdir()
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UserError, match="beat.pt.*make it with"):
        evaluate.main(ON_SIMULATED)


def test_seeds_in_the_table_are_those_of_the_same_settings(evaluated, capsys):
    for seed in ("1", "2"):
        train_mitbih.main([*ON_SIMULATED, "--seed", seed])
        evaluate.main([*ON_SIMULATED, "--seed", seed])
    assert "median of 3" in capsys.readouterr().out
    path = evaluated.results_dir("beat", 2) / "metrics.json"
    other = json.loads(path.read_text())
    other["origin"]["training_settings"]["MAX_EPOCHS"] += 1
    path.write_text(json.dumps(other))
    runs = evaluate.load_seeds(evaluated, "beat")
    assert set(runs) == {0, 1}
    values = [100 * run["scores"]["mse"]["auroc"]["value"] for run in runs.values()]
    text = tables.spread(runs, "mse", "auroc")
    assert text == f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
