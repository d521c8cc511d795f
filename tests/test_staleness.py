"""What was made otherwise is refused by name, or made anew; it never mixes with what is made
today."""

import pytest

import config
import dataset
import evaluate
import models
import train_mitbih
from conftest import ON_SIMULATED
from pipeline.errors import UserError


@pytest.mark.parametrize("name, value", [("FS_HZ", 250), ("BAND_HZ", (1.0, 30.0)),
                                         ("WINDOW_SIZE", 480), ("SPLIT_SEED", 7)])
def test_no_step_takes_segments_of_other_settings(evaluated, monkeypatch, name, value):
    monkeypatch.setattr(config, name, value)
    for step in (train_mitbih, evaluate):
        words = f"segments.npz: made with other settings .{name}: .* now.*dataset.py"
        with pytest.raises(UserError, match=words):
            step.main(ON_SIMULATED)


def test_new_segments_do_not_meet_the_old_network(evaluated, monkeypatch, capsys):
    """Cut anew at another rate, the old checkpoint is refused, and trained anew."""
    monkeypatch.setattr(config, "FS_HZ", 320)
    monkeypatch.setattr(config, "MAX_EPOCHS", 1)
    dataset.main(ON_SIMULATED)
    with pytest.raises(UserError,
                       match="beat.pt: made with other settings.*FS_HZ: 360 then, 320 now"):
        evaluate.main(ON_SIMULATED)
    train_mitbih.main(ON_SIMULATED)
    assert "epoch 0" in capsys.readouterr().out


def test_other_scores_are_fitted_and_scored_anew(evaluated, monkeypatch, capsys):
    fewer = {"beat": ("mse", "combined"), "patient": config.SCORES["patient"]}
    monkeypatch.setattr(config, "SCORES", fewer)
    with pytest.raises(UserError, match="SCORES: .* then, .* now.*train_mitbih.py"):
        evaluate.main(ON_SIMULATED)
    train_mitbih.main(ON_SIMULATED)
    evaluate.main(ON_SIMULATED)
    assert "epoch 0" not in capsys.readouterr().out
    result = evaluate.load_metrics(evaluated.results_dir("beat", config.SEED), "")
    assert list(result["scores"]) == ["mse", "combined"]


class ConvAutoencoder(models.ConvAutoencoder):
    """The same network but for one line."""

    def decode(self, z):
        return -super().decode(z)


def test_an_edited_network_is_trained_anew_and_its_seeds_are_not_pooled(
        evaluated, monkeypatch, capsys):
    before = evaluate.load_metrics(evaluated.results_dir("beat", config.SEED), "")
    monkeypatch.setitem(models.NETWORKS, "ConvAutoencoder", ConvAutoencoder)
    with pytest.raises(UserError, match="beat.pt: made with another network.*train_mitbih.py"):
        evaluate.main(ON_SIMULATED)
    train_mitbih.main([*ON_SIMULATED, "--seed", "1"])
    evaluate.main([*ON_SIMULATED, "--seed", "1"])
    assert "epoch 0" in capsys.readouterr().out
    assert set(evaluate.load_seeds(evaluated, "beat")) == {0}, "another network is no other seed"
    after = evaluate.load_metrics(evaluated.results_dir("beat", config.SEED), "")
    assert after["origin"] == before["origin"]


def test_a_run_of_ones_own_leaves_the_shipped_files_alone(evaluated, monkeypatch):
    def contents():
        return {path: path.read_bytes() for path in evaluated.home.rglob("*") if path.is_file()}

    monkeypatch.setattr("pipeline.settings.ROOT", evaluated.home.parent)
    before = contents()
    trial = [*ON_SIMULATED, "--run", "trial", "--seed", "3"]
    monkeypatch.setattr(config, "LEARNING_RATE", 1e-3)
    train_mitbih.main(trial)
    evaluate.main(trial)
    assert contents() == before
    made = evaluated.home.parent / "runs" / "trial" / "simulated"
    assert (made / "checkpoints/beat-seed3.pt").exists()
    assert (made / "results/beat/seed3/metrics.json").exists()
