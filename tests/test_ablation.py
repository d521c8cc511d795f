import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import config
import dataset
import models
import train_mitbih
from pipeline import settings
from pipeline.errors import UserError
from scoring import detector, scores
from studies import ablation
from studies.other_settings import other_settings

ON_SIMULATED = ["--database", "simulated", "--threads", "1"]
CHANGED = {(name, *changed.items()) for rows in ablation.LADDER.values() for _, _, name, changed in rows if changed}


@pytest.mark.parametrize("protocol", config.PROTOCOLS)
def test_every_row_of_the_ladder_is_a_score_of_a_network_there_is(protocol):
    for _, kind, name, changed in ablation.LADDER[protocol]:
        assert name in config.SCORES[protocol]
        assert kind == "full" or kind in ablation.TRAINED
        assert set(changed) <= set(settings.SCORE_SETTINGS)


def test_other_settings_go_back_even_after_an_error():
    before = config.RECORD_LOSS, config.TAPER_SIGMA_S
    with pytest.raises(ZeroDivisionError), other_settings(RECORD_LOSS=7, TAPER_SIGMA_S=None):
        assert (config.RECORD_LOSS, config.TAPER_SIGMA_S) == (7, None)
        1 / 0
    assert (config.RECORD_LOSS, config.TAPER_SIGMA_S) == before
    with pytest.raises(AttributeError), other_settings(RECORD_LOSS=7, NO_SUCH_SETTING=1):
        pass
    assert config.RECORD_LOSS == before[0] and not hasattr(config, "NO_SUCH_SETTING")


def test_principal_components_equal_scikit_learn():
    x = np.random.default_rng(0).normal(size=(200, 160)).cumsum(axis=1).astype(np.float32)
    seen = x * np.exp(-0.5 * ((np.arange(160) - 80) / 30) ** 2)
    pca = PCA(8, random_state=0).fit(seen)
    expected = pca.transform(seen)
    recon, z = models.reconstruct(ablation.PrincipalComponents(160, 8, 30).fit(x), x, 64, "cpu")
    signs = np.sign((z.numpy() * expected).sum(axis=0))  # of a component it has no meaning
    np.testing.assert_allclose(z.numpy() * signs, expected, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(recon, pca.inverse_transform(expected), rtol=1e-3, atol=1e-2)


def test_networks_of_the_variants_are_trained_as_their_names_say(small, segments, monkeypatch):
    trained = []

    def train(beats, x_validation, seed, device, paths, stamp):
        trained.append((len(x_validation), config.TAPER_SIGMA_S, config.RECORD_LOSS))
        return models.ConvAutoencoder(config.WINDOW_SIZE, config.LATENT_DIM), []

    monkeypatch.setattr(train_mitbih, "train", train)
    cpu = torch.device("cpu")
    taper, loss = config.TAPER_SIGMA_S, config.RECORD_LOSS
    segments.rows["split_patient"][segments.rows["record"] == "s02"] = "unused"  # as records in no part
    y, record = segments.rows["y"], segments.rows["record"]
    for protocol in config.PROTOCOLS:
        shipped = segments.part(protocol, "train")
        for kind, expected in (("published", (None, 0)), ("tapered", (taper, 0)), ("abnormal", (taper, loss))):
            _, rows = ablation.network(kind, small, protocol, segments, cpu)
            label = int(kind == "abnormal")
            chosen = y[segments.part(protocol, "validation")] == label
            assert trained[-1] == (chosen.sum(), *expected)
            assert len(rows) and (y[rows] == label).all() and set(record[rows]) <= set(record[shipped])
            assert not np.isin(rows, segments.part(protocol, "test")).any()
            assert label or np.array_equal(rows, shipped)

    assert len(trained) == 6
    ablation.network("tapered", small, "beat", segments, cpu)
    assert len(trained) == 6  # kept as a checkpoint, for these beats alone
    segments.rows["split_beat"][shipped[0]] = "unused"
    ablation.network("tapered", small, "beat", segments, cpu)
    assert len(trained) == 7

    untrained, _ = ablation.network("untrained", small, "beat", segments, cpu)
    torch.manual_seed(config.SEED)
    same = models.ConvAutoencoder(config.WINDOW_SIZE, config.LATENT_DIM, taper * config.FS_HZ)
    assert models.weights_digest(untrained) == models.weights_digest(same)


@pytest.mark.parametrize("name,changed", CHANGED)
def test_a_rows_settings_give_what_a_fit_with_them_gives(evaluated, name, changed):
    segments = dataset.load_segments(evaluated)
    features, fitted = ablation.detector_of("full", evaluated, "beat", segments, torch.device("cpu"))
    chosen = fitted["settings"] | dict([changed])
    got = detector.scores_of(features, fitted | {"settings": chosen}, [name])[name]
    model, _ = models.load_checkpoint(evaluated.checkpoint_path("beat", config.SEED), "")
    anew = detector.fit(model, segments, segments.part("beat", "train"), segments.part("beat", "validation"),
                        config.WEIGHTS["beat"], chosen, config.FS_HZ, "cpu")
    test = segments.part("beat", "test")
    expected, _ = detector.score(model, anew, segments, test, [name], config.FS_HZ, "cpu")
    np.testing.assert_allclose(got, expected[name], rtol=1e-5)
    assert not np.allclose(got, scores.SCORES[name].values(features, fitted, False))


def test_ensemble_is_the_mean_score_of_all_seeds(evaluated, monkeypatch):
    segments = dataset.load_segments(evaluated)
    folder = evaluated.results_dir("beat", 0)
    other = evaluated.results_dir("beat", 1)
    other.mkdir()
    shutil.copy(folder / "metrics.json", other)
    with np.load(folder / "scores.npz") as stored:
        first, weights = stored["score_combined"], stored["weights"]
    second = np.random.default_rng(0).normal(size=len(first))
    np.savez(other / "scores.npz", score_combined=second, weights=weights)
    monkeypatch.setattr(config, "SEEDS", (0, 1))
    np.testing.assert_allclose(ablation.ensemble(evaluated, "beat", segments), (first + second) / 2)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="KNN_NEIGHBOURS: 3 then, 1 now"):
        patch.setattr(config, "KNN_NEIGHBOURS", 1)
        ablation.ensemble(evaluated, "beat", segments)
    np.savez(other / "scores.npz", score_combined=second, weights="of another run")
    with pytest.raises(UserError, match="seed1.*another run.*evaluate.py --protocol beat --seed 1.*--force"):
        ablation.ensemble(evaluated, "beat", segments)
    segments.meta["id"] = "other"
    with pytest.raises(UserError, match="segments_id"):
        ablation.ensemble(evaluated, "beat", segments)


def test_table_of_a_finished_run(evaluated, monkeypatch, capsys):
    """The detector's own row equals its results, shuffled labels give chance; --draw draws the saved table."""
    monkeypatch.setattr(settings, "check", lambda: None)  # a project of one protocol is none
    monkeypatch.setattr(config, "PROTOCOLS", ("beat",))
    monkeypatch.setattr(config, "SEEDS", (0,))
    monkeypatch.setattr(ablation, "LADDER", {"beat": [
        row for row in ablation.LADDER["beat"] if row[1] == "full" and row[2] in ("latent_knn", "combined")]})
    monkeypatch.setattr(ablation, "CHECKS", ablation.CHECKS[-1:])
    ablation.main(ON_SIMULATED)
    found = json.loads((evaluated.out / "results" / "ablation.json").read_text())
    table = found["protocols"]["beat"]
    known = json.loads((evaluated.results_dir("beat", 0) / "metrics.json").read_text())["scores"]
    assert [row["score"] for row in table["ladder"]] == ["latent_knn", "combined"]
    for row in table["ladder"]:
        assert row["auroc"] == pytest.approx(known[row["score"]]["auroc"], abs=1e-6)
    shuffled, components, together = table["checks"]
    assert together["auroc"] == pytest.approx(known["combined"]["auroc"], abs=1e-6)  # of one network
    assert "shuffled" in shuffled["title"] and abs(shuffled["auroc"]["value"] - 0.5) < 0.2
    assert components["auroc"]["value"] > 0.7 and "auroc" in capsys.readouterr().out
    assert found["simulated"] and found["settings"]["WEIGHTS"] == config.WEIGHTS

    picture = evaluated.out / "evaluation_plots" / "ablation.png"
    picture.unlink()
    ablation.main([*ON_SIMULATED, "--draw"])
    assert picture.is_file()
    (evaluated.out / "results" / "ablation.json").unlink()
    with pytest.raises(UserError, match="ablation.json: missing.*-m studies.ablation --database simulated"):
        ablation.main([*ON_SIMULATED, "--draw"])
