"""The published recipe and the long run: what they do, go on from, and write."""

import json

import pytest
import torch

from studies import benchmark_training
import config
from pipeline import errors, settings
import train_mitbih
from studies.benchmark_training import Recipe


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stamp_of(**changed):
    return {"segments_id": "a", "segment_settings": settings.snapshot(settings.SEGMENT_SETTINGS), "protocol": "beat", "seed": 0,
            "training_settings": settings.snapshot(settings.TRAINING_SETTINGS), **changed}


def recipe(folder, target=0.0, stamp=stamp_of()):
    x = torch.randn(300, 720, generator=torch.Generator().manual_seed(0)).cumsum(1) / 20
    return Recipe(x[:260], x[260:], target, folder / "recipe.pt", stamp)


def losses(run):
    return [(r["train_loss"], r["validation_loss"]) for r in run.history]


def test_a_stopped_recipe_goes_on_as_if_never_stopped(tmp_path):
    whole = recipe(tmp_path / "whole")
    whole.train(3)
    first = recipe(tmp_path / "parts")
    first.train(1)
    second = recipe(tmp_path / "parts")
    second.resume()
    second.train(3)
    assert losses(second) == losses(whole) and len(losses(whole)) == 3
    assert second.best == whole.best == min(loss for _, loss in losses(whole))


@pytest.mark.parametrize("changed, why", [
    ({"stamp": stamp_of(segments_id="b")}, "other beats or splits"), ({"target": 1.0}, "another shipped network")])
def test_a_stopped_recipe_of_something_else_is_refused(tmp_path, changed, why):
    recipe(tmp_path).train(1)
    with pytest.raises(errors.UserError, match=f"(?s){why}.*benchmark_training.py --force"):
        recipe(tmp_path, **changed).resume()


def test_a_stopped_recipe_of_other_settings_is_refused(tmp_path, monkeypatch):
    recipe(tmp_path).train(1)
    monkeypatch.setattr(config, "LATENT_DIM", 8)
    with pytest.raises(errors.UserError, match="LATENT_DIM: 32 then, 8 now.*benchmark_training.py --force"):
        recipe(tmp_path).resume()


def test_every_beat_is_seen_once_an_epoch(tmp_path, monkeypatch):
    seen = []
    real = train_mitbih.reconstruction_loss
    monkeypatch.setattr(train_mitbih, "reconstruction_loss",
                        lambda model, x: (model.training and seen.append(x.clone())) or real(model, x))
    run = recipe(tmp_path)
    run.epoch()
    assert [len(x) for x in seen] == [256, 4]
    torch.testing.assert_close(torch.cat(seen).sort(0).values, run.x.sort(0).values, rtol=0, atol=0)


def scripted(run, monkeypatch, validation):
    """Validation losses as given, without training."""
    values = iter(validation)

    def epoch():
        loss = next(values)
        run.schedule.step(loss)
        return {"epoch": len(run.history) + 1, "train_loss": 0.0, "validation_loss": loss, "learning_rate": 1e-3}
    monkeypatch.setattr(run, "epoch", epoch)


def test_recipe_stops_after_its_patience(tmp_path, monkeypatch):
    run = recipe(tmp_path)
    scripted(run, monkeypatch, [3.0, 2.0, 1.0] + [1.5] * 90)
    run.train(100)
    assert len(run.history) == 3 + 15 and run.finished and run.best == 1.0
    assert run.optimizer.param_groups[0]["lr"] == 1e-3 / 4  # twice six epochs without a better one


def test_recipe_stops_after_its_epochs(tmp_path, monkeypatch):
    run = recipe(tmp_path)
    scripted(run, monkeypatch, [1 / k for k in range(1, 200)])
    run.train(1000)
    assert len(run.history) == 100 and run.finished


def test_weights_are_kept_where_the_loss_first_meets_the_target(tmp_path, monkeypatch):
    run = recipe(tmp_path, target=2.0)
    scripted(run, monkeypatch, [3.0, 2.0, 1.0])
    marks = iter((1.0, 2.0, 3.0))
    real = run.epoch
    monkeypatch.setattr(run, "epoch", lambda: (run.model.up[-1].bias.data.fill_(next(marks)), real())[1])
    run.train(3)
    assert run.equal_state["up.3.bias"].item() == 2.0 and run.best_state["up.3.bias"].item() == 3.0


def test_both_runs_write_their_results(evaluated, monkeypatch):
    monkeypatch.setattr(benchmark_training, "FULL_EPOCHS", 2)
    benchmark_training.main(["--simulated", "--protocol", "beat", "--epochs", "2", "--threads", "1"])
    trained = []
    monkeypatch.setattr(train_mitbih, "train_epoch", lambda *_: trained.append("full") or 0.0)
    monkeypatch.setattr(Recipe, "epoch", lambda run: trained.append("recipe") or {
        "epoch": 1, "train_loss": 0.0, "validation_loss": 1.0, "learning_rate": 1e-3})
    again = ["--simulated", "--protocol", "beat", "--epochs", "1", "--threads", "1"]
    benchmark_training.main(again)
    assert trained == []  # both had done as much before
    folder = evaluated.results_dir("beat", config.SEED)
    recipe, full = (json.loads((folder / name).read_text()) for name in ("recipe.json", "full.json"))
    assert len(recipe["history"]) == len(full["history"]) == 2 and not recipe["finished"]
    assert recipe["n_train"] == full["n_train"] and recipe["shipped"]["n"] == full["quality"]["n"]
    scores = json.loads((folder / "metrics.json").read_text())
    assert recipe["shipped"]["validation_loss"] == pytest.approx(
        min(r["validation_loss"] for r in torch.load(evaluated.checkpoint_path("beat", config.SEED))["history"]))
    assert scores["default_score"] == config.DEFAULT_SCORE and 0.5 < recipe["shipped"]["auroc"] <= 1
    assert {"auroc", "auprc", "mse_auroc"} <= set(recipe["quality"]["best"])
    benchmark_training.main([*again, "--force"])
    assert set(trained) == {"recipe", "full"}
