"""The published recipe and the long run: what they do, go on from, and write."""

import json
from collections import Counter

import pytest
import torch

import config
import train_mitbih
from models import load_checkpoint
from pipeline.errors import UserError
from studies import benchmark_training
from studies.benchmark_training import STOPPED, is_finished, train_recipe

STAMP = {"segments_id": "a", "segment_settings": {}, "training_settings": {}, "protocol": "beat",
         "seed": 0}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """recipe(epochs): 260 beats, 40 to validate; with `losses` the validation losses are those."""
    x = torch.randn(300, 720, generator=torch.Generator().manual_seed(0)).cumsum(1) / 20

    def run(epochs, name="recipe", target=0.0, losses=None, n=260):
        if losses:
            values = iter(losses)
            monkeypatch.setattr(train_mitbih, "validation_loss", lambda *_: next(values))
        path = tmp_path / f"{name}.pt"
        resume = train_mitbih.stopped_run(path, STAMP, "again", STOPPED)
        return train_recipe(x[:n], x[260:], target, path, STAMP, epochs, resume)
    return run


def test_a_stopped_recipe_goes_on_as_if_never_stopped(recipe):
    model, whole, _ = recipe(3, "whole")
    recipe(1)
    other, parts, _ = recipe(3)
    for row in (*whole, *parts):
        del row["seconds"]
    assert parts == whole and [row["epoch"] for row in whole] == [1, 2, 3]
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_a_stopped_recipe_of_another_network_is_refused(recipe):
    recipe(1, n=32)
    with pytest.raises(UserError, match="another shipped network.*--force"):
        recipe(2, n=32, target=1.0)


def test_every_beat_is_seen_once_an_epoch(recipe, monkeypatch):
    seen = []
    real = train_mitbih.reconstruction_loss
    monkeypatch.setattr(train_mitbih, "reconstruction_loss",
                        lambda model, x, clean: seen.append(x) or real(model, x, clean))
    recipe(1, losses=[1.0])
    assert [len(x) for x in seen] == [256, 4]
    assert len(torch.cat(seen).unique(dim=0)) == 260


def test_recipe_lowers_its_rate_on_a_plateau_and_stops_after_its_patience(recipe):
    _, history, _ = recipe(100, losses=[3.0, 2.0, 1.0] + [1.5] * 90, n=2)
    assert len(history) == 3 + 15 and is_finished(history)
    # six epochs without a better one are waited for, and six again
    assert Counter(row["learning_rate"] for row in history) == {1e-3: 9, 5e-4: 6, 2.5e-4: 3}


def test_recipe_stops_after_its_epochs():
    history = [{"validation_loss": -k} for k in range(100)]
    assert is_finished(history) and not is_finished(history[:-1]) and not is_finished([])


def test_weights_are_kept_where_the_loss_first_meets_the_target(recipe):
    model, _, _ = recipe(2, "two", losses=[3.0, 2.0], n=32)
    _, _, kept = recipe(3, target=2.0, losses=[3.0, 2.0, 1.0], n=32)
    weights = model.state_dict()["to_latent.bias"]
    assert torch.equal(kept["equal"]["to_latent.bias"], weights)
    assert not torch.equal(kept["best"]["to_latent.bias"], weights)


def test_both_runs_write_their_results(evaluated, monkeypatch):
    monkeypatch.setattr(benchmark_training, "FULL_EPOCHS", 2)
    flags = ["--database", "simulated", "--protocol", "beat", "--epochs", "2", "--threads", "1"]
    benchmark_training.main(flags)
    folder = evaluated.results_dir("beat", config.SEED)
    recipe = json.loads((folder / "recipe.json").read_text())
    full = json.loads((folder / "full.json").read_text())
    assert len(recipe["history"]) == len(full["history"]) == 2 and not recipe["finished"]
    _, stored = load_checkpoint(evaluated.checkpoint_path("beat", config.SEED), "")
    losses = [row["validation_loss"] for row in stored["history"]]
    assert recipe["shipped"]["validation_loss"] == pytest.approx(min(losses))

    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: pytest.fail("trained again"))
    benchmark_training.main(flags)  # both had done as much before
    with pytest.raises(BaseException, match="trained again"):
        benchmark_training.main([*flags, "--force"])
