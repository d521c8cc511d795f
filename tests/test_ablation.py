import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from studies import ablation
import config
from pipeline import settings
import dataset
import models
from scoring import detector
import train_mitbih
from pipeline.errors import UserError


@pytest.mark.parametrize("protocol", config.PROTOCOLS)
def test_every_row_of_the_ladder_is_a_score_and_setting_there_is(protocol):
    for _, kind, name, changed in ablation.LADDER[protocol]:
        assert name in config.SCORES[protocol] and name in detector.TITLES
        assert kind in ("published", "tapered", "full") and set(changed) <= set(settings.SCORE_SETTINGS)
    assert set(ablation.PUBLISHED) | set(ablation.TAPERED) <= set(settings.TRAINING_SETTINGS)
    names = [name for _, _, name, _ in ablation.LADDER[protocol]]
    assert names[0] == "mse" and config.DEFAULT_SCORE in names


def test_settings_come_back_even_after_an_error():
    before = config.RECORD_LOSS, config.TAPER_SIGMA_S
    with pytest.raises(ZeroDivisionError), ablation.settings(RECORD_LOSS=7, TAPER_SIGMA_S=None):
        assert (config.RECORD_LOSS, config.TAPER_SIGMA_S) == (7, None)
        1 / 0
    assert (config.RECORD_LOSS, config.TAPER_SIGMA_S) == before
    with pytest.raises(AttributeError), ablation.settings(NO_SUCH_SETTING=1):
        pass
    assert not hasattr(config, "NO_SUCH_SETTING")


def test_principal_components_equal_scikit_learn():
    x = np.random.default_rng(0).normal(size=(200, 160)).cumsum(axis=1).astype(np.float32)
    model = ablation.PrincipalComponents(x, 8, 30)
    seen = x * np.exp(-0.5 * ((np.arange(160) - 80) / 30) ** 2)
    pca = PCA(8, random_state=0).fit(seen)
    recon, z = models.reconstruct(model, x, 64, "cpu")
    expected = pca.transform(seen)
    signs = np.sign((z.numpy() * expected).sum(axis=0))  # of a component it has no meaning
    np.testing.assert_allclose(z * signs, expected, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(recon, pca.inverse_transform(expected), rtol=1e-3, atol=1e-2)


def test_networks_of_the_variants_differ_as_their_names_say(small, segments, monkeypatch):
    seen = []

    def fresh(segments, rows, normal, seed, device, paths, stamp):
        seen.append((rows, normal, config.TAPER_SIGMA_S, config.RECORD_LOSS))
        return models.ConvAutoencoder(config.WINDOW_SIZE, config.LATENT_DIM), []

    monkeypatch.setattr(train_mitbih, "fresh_weights", fresh)
    shipped = config.TAPER_SIGMA_S, config.RECORD_LOSS
    segments.rows["split_patient"][segments.rows["record"] == "s02"] = "unused"  # as the records in no part
    for protocol in config.PROTOCOLS:
        train, y, record = segments.part(protocol, "train"), segments.rows["y"], segments.rows["record"]
        for kind in ("published", "tapered", "abnormal"):
            _, used = ablation.network(kind, small, protocol, segments, train, "cpu")
            rows, normal, *settings = seen[-1]
            np.testing.assert_array_equal(used, rows)
            assert tuple(settings) == {"published": (None, 0), "tapered": (shipped[0], 0), "abnormal": shipped}[kind]
            label = kind == "abnormal"
            assert len(rows) and len(normal) and (y[rows] == label).all() and (y[normal] == label).all()
            assert not np.isin(np.append(rows, normal), segments.part(protocol, "test")).any()
            assert set(record[rows]) <= set(record[train])
    assert len(seen) == 6
    ablation.network("tapered", small, "beat", segments, train, "cpu")
    assert len(seen) == 6  # kept as a checkpoint
    untrained, used = ablation.network("untrained", small, "beat", segments, train, "cpu")
    torch.manual_seed(config.SEED)
    same = models.ConvAutoencoder(config.WINDOW_SIZE, config.LATENT_DIM, config.TAPER_SIGMA_S * config.FS_HZ)
    assert models.weights_digest(untrained) == models.weights_digest(same) and used is train


def test_each_network_is_fitted_once_and_scored_with_the_rows_settings(evaluated, monkeypatch):
    segments, fits = dataset.load_segments(evaluated), []
    real = detector.fit
    monkeypatch.setattr(detector, "fit", lambda *a: fits.append(a) or real(*a))
    variants = ablation.Variants(evaluated, "beat", segments, "cpu")
    plain, relative = (variants.score("full", "nearest", changed) for changed in ({"DENSITY_POWER": 0.0}, {}))
    assert len(fits) == 1 and not np.allclose(plain, relative)
    model, _ = models.load_checkpoint(evaluated.checkpoint_path("beat", config.SEED))
    for power, got in ((0.0, plain), (config.DENSITY_POWER, relative)):
        chosen = settings.snapshot(settings.SCORE_SETTINGS) | {"DENSITY_POWER": power}
        fitted = real(model, segments, segments.part("beat", "train"), segments.part("beat", "validation"),
                      config.WEIGHTS["beat"], chosen, config.FS_HZ, "cpu")
        expected, _ = detector.score(model, fitted, segments, segments.part("beat", "test"), ("nearest",),
                                    config.FS_HZ, "cpu")
        np.testing.assert_allclose(got, expected["nearest"], rtol=1e-6)


def test_settings_changed_for_a_row_are_read_when_scoring_and_not_in_the_fit():
    """Variants fits once with the shipped settings: a row may change only what the fit does not use."""
    for rows in ablation.LADDER.values():
        for _, _, name, changed in rows:
            assert set(changed) <= {"DENSITY_POWER", "SELF_IRREGULARITY", "SELF_NEIGHBOURS"}
            assert not changed or not name.startswith("combined")


def test_ensemble_is_the_mean_score_of_all_seeds(evaluated, monkeypatch):
    folder, rows = evaluated.results_dir("beat", 0), {}
    with np.load(folder / "scores.npz") as stored:
        table = dict(stored)
    rows["sample"] = table["sample"]
    other = evaluated.results_dir("beat", 1)
    other.mkdir()
    shutil.copy(folder / "metrics.json", other)
    values = np.random.default_rng(0).normal(size=len(rows["sample"]))
    saved = {"sample": rows["sample"], "score_combined": values, "weights": table["weights"]}
    np.savez(other / "scores.npz", **saved)
    monkeypatch.setattr(config, "SEEDS", (0, 1))
    np.testing.assert_allclose(ablation.ensemble(evaluated, "beat", rows), (table["score_combined"] + values) / 2)
    for name, value, why in (("sample", rows["sample"][::-1], "other beats"), ("weights", "x", "other weights")):
        np.savez(other / "scores.npz", **saved | {name: value})
        with pytest.raises(UserError, match=f"seed1.*{why}.*evaluate.py --protocol beat --seed 1"):
            ablation.ensemble(evaluated, "beat", rows)
    monkeypatch.setattr(config, "NEIGHBOURS", 1)
    with pytest.raises(UserError, match="NEIGHBOURS: 3 then, 1 now"):
        ablation.ensemble(evaluated, "beat", rows)


def test_table_of_a_finished_run(evaluated, monkeypatch, capsys):
    """The detector's own row equals its results, and shuffled labels give chance."""
    monkeypatch.setattr(config, "PROTOCOLS", ("beat",))
    monkeypatch.setattr(ablation, "LADDER", {"beat": [
        row for row in ablation.LADDER["beat"] if row[1] == "full" and row[2] in ("latent_knn", "combined")]})
    monkeypatch.setattr(ablation, "CHECKS", tuple(row for row in ablation.CHECKS if row[1] in ("full", "pca")))
    monkeypatch.setattr(config, "SEEDS", (0,))
    ablation.main(["--simulated"])
    found = json.loads((evaluated.root / "results" / "ablation.json").read_text())
    table = found["protocols"]["beat"]
    assert [row["score"] for row in table["ladder"]] == ["latent_knn", "combined"]
    folder = evaluated.results_dir("beat", config.SEED)
    scores = json.loads((folder / "metrics.json").read_text())["scores"]
    for row in table["ladder"]:
        assert row["auroc"] == pytest.approx(scores[row["score"]]["auroc"], abs=1e-6)
    shuffled, components, together = table["checks"]
    assert together["auroc"] == pytest.approx(scores["combined"]["auroc"], abs=1e-6)  # of one network
    assert "shuffled" in shuffled["title"] and abs(shuffled["auroc"]["value"] - 0.5) < 0.2
    assert components["auroc"]["value"] > 0.7 and "ROC-AUC" in capsys.readouterr().out
    assert found["simulated"] and found["settings"]["WEIGHTS"] == config.WEIGHTS
