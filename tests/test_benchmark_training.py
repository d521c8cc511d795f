"""The published recipe and the long run: what they do, go on from, and write."""

import itertools
import json

import pytest
import torch

import config
import train_mitbih
from models import load_checkpoint
from pipeline import settings
from pipeline.errors import UserError
from studies import benchmark_training
from studies.benchmark_training import STOPPED, is_finished, train_recipe


def stamp_of(**changed):
    return {"segments_id": "a", "segment_settings": settings.snapshot(settings.SEGMENT_SETTINGS),
            "protocol": "beat", "seed": 0,
            "training_settings": settings.snapshot(settings.TRAINING_SETTINGS), **changed}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """recipe(epochs): 260 beats, 40 to validate; with `losses` the validation losses are those."""
    x = torch.randn(300, 720, generator=torch.Generator().manual_seed(0)).cumsum(1) / 20

    def run(epochs, name="recipe", target=0.0, stamp=stamp_of(), losses=None, n=260):
        if losses:
            values = iter(losses)
            monkeypatch.setattr(train_mitbih, "validation_loss", lambda *_: next(values))
        path = tmp_path / f"{name}.pt"
        resume = train_mitbih.stopped_run(path, stamp, "again", STOPPED)
        return train_recipe(x[:n], x[260:], target, path, stamp, epochs, resume)
    return run


def test_a_stopped_recipe_goes_on_as_if_never_stopped(recipe):
    model, whole, kept = recipe(3, "whole")
    recipe(1, "parts")
    other, parts, _ = recipe(3, "parts")
    seconds = [row.pop("seconds") for row in (*whole, *parts)]
    assert len(seconds) == 6 and parts == whole
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, other.state_dict()[name])
    assert [row["epoch"] for row in whole] == [1, 2, 3] and set(kept) == {"best"}


@pytest.mark.parametrize("changed, why", [
    ({"stamp": stamp_of(segments_id="b")}, "segments_id: 'a' then, 'b' now.*again --force"),
    ({"stamp": stamp_of(training_settings={"LATENT_DIM": 8})}, "LATENT_DIM: 32 then, 8 now.*again --force"),
    ({"target": 1.0}, "another shipped network.*--force")])
def test_a_stopped_recipe_of_something_else_is_refused(recipe, changed, why):
    recipe(1, n=32)
    with pytest.raises(UserError, match=why):
        recipe(2, n=32, **changed)


def test_every_beat_is_seen_once_an_epoch(recipe, monkeypatch):
    seen = []
    real = train_mitbih.reconstruction_loss

    def watch(model, x):
        if model.training:
            seen.append(x.clone())
        return real(model, x)

    monkeypatch.setattr(train_mitbih, "reconstruction_loss", watch)
    recipe(1)
    assert [len(x) for x in seen] == [256, 4]
    assert len(torch.cat(seen).unique(dim=0)) == 260


def test_recipe_lowers_its_rate_on_a_plateau_and_stops_after_its_patience(recipe):
    _, history, _ = recipe(100, losses=[3.0, 2.0, 1.0] + [1.5] * 90, n=2)
    assert len(history) == 3 + 15 and is_finished(history)
    # six epochs without a better one are waited for, and six again
    rates = {rate: len(list(rows)) for rate, rows in itertools.groupby(row["learning_rate"] for row in history)}
    assert rates == {1e-3: 9, 5e-4: 6, 2.5e-4: 3}


def test_recipe_stops_after_its_epochs():
    history = [{"validation_loss": 1 / k} for k in range(1, 101)]
    assert is_finished(history) and not is_finished(history[:-1]) and not is_finished([])


def test_weights_are_kept_where_the_loss_first_meets_the_target(recipe, tmp_path):
    states = {}
    for epochs, name in ((1, "one"), (2, "two"), (3, "three")):
        model, _, kept = recipe(epochs, name, target=2.0, losses=[3.0, 2.0, 1.0], n=32)
        states[name] = model.state_dict()["to_latent.bias"]
    assert torch.equal(kept["equal"]["to_latent.bias"], states["two"])
    assert torch.equal(kept["best"]["to_latent.bias"], states["three"])
    _, stored = load_checkpoint(tmp_path / "three.pt", "", STOPPED)
    assert stored["target"] == 2.0 and set(stored["kept"]) == {"equal", "best"}


def test_both_runs_write_their_results(evaluated, monkeypatch):
    monkeypatch.setattr(benchmark_training, "FULL_EPOCHS", 2)
    flags = ["--database", "simulated", "--protocol", "beat", "--epochs", "2", "--threads", "1"]
    benchmark_training.main(flags)
    folder = evaluated.results_dir("beat", config.SEED)
    recipe, full, metrics = (json.loads((folder / f"{name}.json").read_text())
                             for name in ("recipe", "full", "metrics"))
    assert len(recipe["history"]) == len(full["history"]) == 2 and not recipe["finished"]
    assert recipe["n_train"] == full["n_train"] and recipe["shipped"]["n"] == full["quality"]["n"]
    assert full["history"][0]["learning_rate"] != recipe["history"][0]["learning_rate"] == 1e-3
    _, stored = load_checkpoint(evaluated.checkpoint_path("beat", config.SEED), "")
    losses = [row["validation_loss"] for row in stored["history"]]
    assert recipe["shipped"]["validation_loss"] == pytest.approx(min(losses))
    assert metrics["default_score"] == config.DEFAULT_SCORE and 0.5 < recipe["shipped"]["auroc"] <= 1

    steps = []
    real = train_mitbih.reconstruction_loss
    monkeypatch.setattr(train_mitbih, "reconstruction_loss",
                        lambda model, x: steps.append(model.training) or real(model, x))
    benchmark_training.main(flags)
    assert True not in steps  # both had done as much before
    benchmark_training.main([*flags, "--force", "--only", "recipe"])
    assert True in steps
