"""Step 3: figures against scikit-learn on the stored scores, and when it scores again."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

import config
import dataset
import evaluate
import models
import train_mitbih
from conftest import ON_SIMULATED
from pipeline import tables
from pipeline.errors import UserError
from preprocess import bandpass, gaussian
from scoring import beat_parts, metrics


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
        expected = roc_auc_score(y[rows], s[rows])
        assert figures["by_class"]["V"]["auroc"] == pytest.approx(expected, abs=1e-6)
        assert figures["auroc"]["low"] <= figures["auroc"]["value"] <= figures["auroc"]["high"]


def test_rows_are_the_test_split_and_the_scores_the_networks(evaluated):
    segments = dataset.load_segments(evaluated)
    _, table = results(evaluated)
    test = segments.part("beat", "test")
    np.testing.assert_array_equal(table["sample"], segments.rows["sample"][test])
    model, _ = models.load_checkpoint(evaluated.checkpoint_path("beat", config.SEED), "")
    recon, _ = models.reconstruct(model, segments.x[test], 64, "cpu")
    error = recon.numpy() - segments.x[test] * gaussian(720, config.TAPER_SIGMA_S * config.FS_HZ)
    np.testing.assert_allclose(table["score_mse"], (error**2).mean(1), rtol=1e-4)


def test_bedside_figures_and_parts_belong_to_the_stored_scores(evaluated):
    result, table = results(evaluated)
    _, stored = models.load_checkpoint(evaluated.checkpoint_path("beat", config.SEED), "")
    default = table[f"score_{config.DEFAULT_SCORE}"]
    normal = default[table["label"] == 0]
    asked = {row["asked"]: row["threshold"] for row in result["calibration"]}
    assert asked == stored["calibration"]
    for row in result["calibration"]:
        assert row["specificity"] == pytest.approx((normal < row["threshold"]).mean(), abs=0.01)
    segments = dataset.load_segments(evaluated)
    rr = segments.rows["rr_before_s"][segments.part("beat", "test")]
    assert result["hours"] == pytest.approx(np.nansum(rr.astype(float)) / 3600)
    # records of 90 s end before the learning period does
    assert result["ec57"]["classes"]["N"]["n"] == 0
    flagged = default >= np.float32(result["scores"][config.DEFAULT_SCORE]["threshold"])
    for name, entry in result["parts"].items():
        parts = table["part"][(table["aami"] == name) & flagged]
        shares = [np.mean(parts == k) if len(parts) else None for k in range(len(beat_parts.PARTS))]
        assert entry == pytest.approx({"n": len(parts), **dict(zip(beat_parts.PARTS, shares))})


def test_examples_of_parts_are_flagged_beats_led_by_the_usual_part_of_their_class(evaluated):
    result, table = results(evaluated)
    name = config.DEFAULT_SCORE
    flagged = table[f"score_{name}"] >= np.float32(result["scores"][name]["threshold"])
    assert len(table["part_row"]) and (table["label"][table["part_row"]] == 1).all()
    for row in table["part_row"]:
        same = np.flatnonzero((table["aami"] == table["aami"][row]) & flagged)
        counts = np.bincount(table["part"][same])
        assert row in same and counts[table["part"][row]] == counts.max()
    segments = dataset.load_segments(evaluated)
    chosen = segments.part("beat", "test")[table["part_row"]]
    scale, offset = (segments.rows[name][chosen, None] for name in ("scale_mv", "offset_mv"))
    mv = segments.x[chosen] * scale + offset
    np.testing.assert_allclose(table["part_signal"], mv, atol=1e-5)
    assert table["part_usual"].shape == mv.shape and np.isfinite(table["part_usual"]).all()


def test_figures_without_a_record_equal_scikit_learn():
    record, y = np.repeat(["1", "2", "232"], 40), np.arange(120) % 2
    scores = np.random.default_rng(0).normal(size=120)
    kept = record != "232"
    areas = [roc_auc_score(y[record == name], scores[record == name]) for name in "12"]
    own = metrics.by_record(scores, y, record)
    got = metrics.without_record("232", scores, {"record": record, "y": y}, own)
    assert got == pytest.approx({"auroc": roc_auc_score(y[kept], scores[kept]),
                                 "auprc": average_precision_score(y[kept], scores[kept]),
                                 "auroc_record_mean": np.mean(areas)})
    assert metrics.without_record("100", scores, {"record": record, "y": y}, own) is None
    alone = {"record": record[-3:], "y": y[:3]}
    assert metrics.without_record("232", scores[:3], alone, own) is None


def test_patient_protocol_has_its_own_scores(small, segments):
    train_mitbih.main([*ON_SIMULATED, "--protocol", "patient"])
    evaluate.main([*ON_SIMULATED, "--protocol", "patient"])
    result, table = results(small, "patient")
    assert tuple(result["scores"]) == config.SCORES["patient"]
    test = segments.part("patient", "test")
    np.testing.assert_array_equal(table["sample"], segments.rows["sample"][test])
    assert not np.array_equal(table["score_combined"], table["score_combined_causal"])


def test_strip_and_example_are_the_filtered_signal_of_the_record(evaluated):
    _, table = results(evaluated)

    def filtered(record):
        signal, fs_hz, _ = dataset.read_lead(evaluated.records_dir() / record, evaluated.leads, "")
        return bandpass(signal, fs_hz, config.BAND_HZ, config.FILTER_ORDER)

    strip = table["strip_signal"]
    expected = filtered(str(table["strip_record"]))[int(table["strip_start"]):][:len(strip)]
    covered = np.isfinite(strip[:len(expected)])
    assert covered.mean() > 0.8 and len(strip) == 30 * 360
    np.testing.assert_allclose(strip[:len(expected)][covered], expected[covered], atol=2e-5)

    row = table["example_row"][0]
    peak = table["sample"][row]
    mv = filtered(str(table["record"][row]))[peak - 360:peak + 360]
    tapered = (mv - mv.mean()) * gaussian(720, config.TAPER_SIGMA_S * config.FS_HZ) + mv.mean()
    np.testing.assert_allclose(table["example_signal"][0], tapered, atol=2e-5)


def test_what_is_up_to_date_is_printed_and_not_scored_again(evaluated, capsys):
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


def test_a_missing_checkpoint_names_the_command(small, segments):
    words = "beat.pt: missing.*python train_mitbih.py --protocol beat --database simulated"
    with pytest.raises(UserError, match=words):
        evaluate.main(ON_SIMULATED)


def test_seeds_in_the_table_are_those_of_the_same_settings(evaluated, capsys):
    for seed in ("1", "2"):
        train_mitbih.main([*ON_SIMULATED, "--seed", seed])
        evaluate.main([*ON_SIMULATED, "--seed", seed])
    out = capsys.readouterr().out
    assert "median of 3" in out and out.splitlines()[-1].startswith("next: python -m studies")
    table = out[out.rindex("protocol, seed 2"):]
    assert max(map(len, table.splitlines())) <= 120
    path = evaluated.results_dir("beat", 2) / "metrics.json"
    path.write_text(path.read_text().replace('"MAX_EPOCHS": 3', '"MAX_EPOCHS": 4'))
    runs = evaluate.load_seeds(evaluated, "beat")
    assert set(runs) == {0, 1} and runs[0]["origin"]["weights"] != runs[1]["origin"]["weights"]
    # SEED's run is of other settings than the one that was just evaluated
    other = evaluate.load_metrics(path.parent, "")
    assert set(evaluate.load_seeds(evaluated, "beat", other)) == {2}
    values = [100 * run["scores"]["mse"]["auroc"]["value"] for run in runs.values()]
    assert tables.median_of(runs, "mse", "auroc") == f"{np.median(values):.2f}"
