"""The ladder and the checks of the ablation: their networks, scores, table and picture."""

import shutil

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

import config
import dataset
import models
import train_mitbih
from pipeline import settings
from pipeline.artefacts import load_json, load_npz
from pipeline.errors import UserError
from scoring import detector
from studies import ablation
from studies.other_settings import other_settings

CPU = torch.device("cpu")
ROWS = [(protocol, *row) for protocol, rows in ablation.LADDER.items() for row in rows]


@pytest.mark.parametrize("protocol,title,kind,name,changed", ROWS)
def test_a_row_of_the_ladder_is_a_score_of_a_network_there_is(protocol, title, kind, name, changed):
    assert name in config.SCORES[protocol]
    assert kind == "full" or kind in ablation.TRAINED
    assert set(changed) <= set(settings.SCORE_SETTINGS)


def test_other_settings_go_back_even_after_an_error():
    before = config.RECORD_LOSS
    with pytest.raises(ZeroDivisionError), other_settings(RECORD_LOSS=7, TAPER_SIGMA_S=None):
        assert (config.RECORD_LOSS, config.TAPER_SIGMA_S) == (7, None)
        1 / 0
    with pytest.raises(AttributeError), other_settings(RECORD_LOSS=7, NO_SUCH_SETTING=1):
        pass
    assert config.RECORD_LOSS == before and config.TAPER_SIGMA_S is not None
    assert not hasattr(config, "NO_SUCH_SETTING")


def test_principal_components_equal_scikit_learn():
    x = np.random.default_rng(0).normal(size=(200, 160)).cumsum(axis=1).astype(np.float32)
    seen = x * np.exp(-0.5 * ((np.arange(160) - 80) / 30) ** 2)
    pca = PCA(8, random_state=0).fit(seen)
    components = ablation.PrincipalComponents(160, 8, 30, None).fit(x)
    recon, z = models.reconstruct(components, x, 64, "cpu")
    # the sign of a component means nothing
    np.testing.assert_allclose(abs(z), abs(pca.transform(seen)), rtol=1e-3, atol=1e-2)
    expected = pca.inverse_transform(pca.transform(seen))
    np.testing.assert_allclose(recon, expected, rtol=1e-3, atol=1e-2)


def test_networks_of_the_variants_are_trained_as_their_names_say(small, segments, monkeypatch):
    trained = []

    def train(beats, x_validation, *rest):
        trained.append((len(x_validation), config.TAPER_SIGMA_S, config.CORRUPTED_SHARE))
        return models.ConvAutoencoder(config.WINDOW_SIZE, config.LATENT_DIM), []

    def network(kind):
        return ablation.network(kind, small, "patient", segments, CPU)[1]

    monkeypatch.setattr(train_mitbih, "train", train)
    shipped = config.TAPER_SIGMA_S, config.CORRUPTED_SHARE
    y, record = segments.rows["y"], segments.rows["record"]
    segments.rows["split_patient"][record == "s02"] = "unused"  # as records in no part
    normal = segments.part("patient", "train")
    labels = y[segments.part("patient", "validation")]
    for kind, expected in (("published", (None, 0)), ("clean", (shipped[0], 0)),
                           ("abnormal", shipped)):
        label = int(kind == "abnormal")
        rows = network(kind)
        assert trained[-1] == ((labels == label).sum(), *expected)
        if label:  # of the records of the normal ones, none of the test patients
            normal = np.flatnonzero((y == 1) & np.isin(record, record[normal]))
        np.testing.assert_array_equal(rows, normal)

    # kept as a checkpoint, for these beats alone
    network("clean")
    assert len(trained) == 3
    segments.rows["split_patient"][segments.part("patient", "train")[0]] = "unused"
    network("clean")
    assert len(trained) == 4


@pytest.mark.parametrize("name,changed", [row[3:] for row in ROWS if row[4]])
def test_a_rows_settings_give_what_a_fit_with_them_gives(evaluated, name, changed):
    segments = dataset.load_segments(evaluated)
    features, fitted = ablation.detector_of("full", evaluated, "beat", segments, CPU)
    chosen = fitted["settings"] | changed
    got, without = (detector.scores_of(features, fitted | {"settings": used}, [name])[name]
                    for used in (chosen, fitted["settings"]))
    model, _ = models.load_checkpoint(evaluated.checkpoint_path("beat", config.SEED), "")
    train, validation, test = (segments.part("beat", part) for part in settings.PARTS)
    anew = detector.fit(model, segments, train, validation, config.WEIGHTS["beat"], chosen,
                        config.FS_HZ, CPU)
    expected, _ = detector.score(model, anew, segments, test, [name], config.FS_HZ, CPU)
    np.testing.assert_allclose(got, expected[name], rtol=1e-5)
    assert not np.allclose(got, without)


def test_ensemble_is_the_mean_score_of_all_seeds(evaluated, monkeypatch):
    segments = dataset.load_segments(evaluated)
    stored = torch.load(evaluated.checkpoint_path("beat", 0))
    torch.save(stored | {"seed": 1}, evaluated.checkpoint_path("beat", 1))
    monkeypatch.setattr(config, "SEEDS", (0, 1))
    with pytest.raises(UserError, match="seed1: .*missing.*evaluate.py --protocol beat --seed 1"):
        ablation.ensemble(evaluated, "beat", segments)

    first = evaluated.results_dir("beat", 0)
    shutil.copytree(first, first / "seed1")
    table = load_npz(first / "scores.npz", "")
    other = np.random.default_rng(0).normal(size=len(table["score_combined"]))
    np.savez(first / "seed1" / "scores.npz", score_combined=other, weights=table["weights"])
    expected = (table["score_combined"] + other) / 2
    np.testing.assert_allclose(ablation.ensemble(evaluated, "beat", segments), expected)


def test_table_of_a_finished_run(evaluated, monkeypatch):
    """The detector's own row equals its results, shuffled labels give chance; --draw draws it."""
    monkeypatch.setattr(settings, "check", lambda: None)  # which asks for both protocols
    monkeypatch.setattr(config, "PROTOCOLS", ("beat",))
    monkeypatch.setattr(config, "SEEDS", (0,))
    monkeypatch.setattr(ablation, "LADDER", {"beat": ablation.LADDER["beat"][-2:-1]})
    monkeypatch.setattr(ablation, "CHECKS", ablation.CHECKS[-1:])
    command = ["--database", "simulated", "--threads", "1"]
    ablation.main(command)
    path = evaluated.out / "results" / "ablation.json"
    found = load_json(path, "")
    own, = found["protocols"]["beat"]["ladder"]
    shuffled, components, together = found["protocols"]["beat"]["checks"]
    scores = load_json(evaluated.results_dir("beat", 0) / "metrics.json", "")["scores"]
    for row in (own, together):  # together: of one network
        assert row["auroc"] == pytest.approx(scores["combined"]["auroc"], abs=1e-6)
    assert components["auroc"]["value"] > 0.7

    # the very labels, shuffled; chance within three of its standard errors (Hanley & McNeil 1982)
    table = load_npz(evaluated.results_dir("beat", 0) / "scores.npz", "")
    y = np.random.default_rng(0).permutation(table["label"])
    chance = roc_auc_score(y, table["score_combined"])
    error = np.sqrt((len(y) + 1) / (12 * y.sum() * (1 - y).sum()))
    assert shuffled["auroc"]["value"] == pytest.approx(chance, abs=1e-4)
    assert abs(chance - 0.5) < min(3 * error, 0.25)
    assert found["simulated"] and found["settings"]["WEIGHTS"] == config.WEIGHTS

    picture = evaluated.out / "evaluation_plots" / "ablation.png"
    picture.unlink()
    ablation.main([*command, "--draw"])
    assert picture.is_file()
    path.unlink()
    with pytest.raises(UserError, match="ablation.json: missing.*-m studies.ablation --database"):
        ablation.main([*command, "--draw"])
