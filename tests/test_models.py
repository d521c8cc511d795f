"""The network against torch's own layers, and the checkpoint file."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn

import models
from pipeline import artefacts
from pipeline.errors import UserError


def published(model):
    """The published network from torch's own one-dimensional layers, with this model's weights."""
    layers = [nn.Conv1d(1, 32, 7, 2, 3), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 64, 5, 2, 2), nn.BatchNorm1d(64),
              nn.ReLU(), nn.Conv1d(64, 128, 5, 2, 2), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 128, 3, 2, 1),
              nn.BatchNorm1d(128), nn.ReLU(), nn.Flatten(), nn.Linear(5760, 32), nn.Linear(32, 5760),
              nn.Unflatten(1, (128, 45))]
    for inputs, outputs in ((128, 128), (128, 64), (64, 32)):
        layers += [nn.ConvTranspose1d(inputs, outputs, 4, 2, 1), nn.BatchNorm1d(outputs), nn.ReLU()]
    network = nn.Sequential(*layers, nn.ConvTranspose1d(32, 1, 4, 2, 1))
    network.load_state_dict(dict(zip(network.state_dict(), model.state_dict().values())))
    return network


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.ConvAutoencoder(720, 32)


def test_parameter_count_is_the_published_one(model):
    assert models.n_parameters(model) == 583_361


@pytest.mark.parametrize("training", [True, False])
def test_forward_and_gradients_equal_torch_1d_layers(model, training):
    x = torch.randn(8, 1, 720)
    reference = published(model).train(training)
    expected = reference(x)
    (expected**2).mean().backward()
    gradients = [p.grad for p in reference.parameters()]
    recon = model.train(training)(x)
    (recon**2).mean().backward()
    torch.testing.assert_close(recon, expected, rtol=1e-4, atol=1e-5)
    for p, g in zip(model.parameters(), gradients):
        torch.testing.assert_close(p.grad, g, rtol=1e-3, atol=1e-5)


def test_running_statistics_are_updated_like_batchnorm1d(model):
    x = torch.randn(16, 1, 720)
    model.train()(x)
    conv = model.encoder[0](x)
    torch.testing.assert_close(model.encoder[1].running_mean, 0.1 * conv.mean((0, 2)), rtol=1e-4, atol=1e-6)


def test_tapered_network_encodes_what_an_untapered_one_makes_of_the_tapered_beat(model):
    tapered = models.ConvAutoencoder(720, 32, 80).eval()
    tapered.load_state_dict(model.eval().state_dict())
    x, t = torch.randn(3, 1, 720), torch.arange(720) - 360
    taper = torch.exp(-0.5 * (t / 80) ** 2)
    torch.testing.assert_close(tapered.encode(x), model.encode(x * taper), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tapered(x), model.decode(model.encode(x * taper)), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(tapered.encode(x), model.encode(x), rtol=1e-2)


def test_taper_is_no_weight_and_comes_back_with_the_checkpoint(tmp_path):
    tapered = models.ConvAutoencoder(160, 4, 20)
    assert "taper" not in tapered.state_dict() and "taper" in dict(tapered.named_buffers())
    models.save_checkpoint(tmp_path / "a.pt", tapered)
    again, _ = models.load_checkpoint(tmp_path / "a.pt", "make it", ())
    assert torch.equal(again.taper, tapered.taper) and again.taper[0] < 0.001


def test_checkpoint_round_trip(model, tmp_path):
    path = tmp_path / "deep" / "a.pt"
    models.save_checkpoint(path, model, note="x", history=[{"epoch": 0}])
    again, stored = models.load_checkpoint(path, "make it", ())
    assert models.weights_digest(again) == models.weights_digest(model)
    assert stored["note"] == "x" and stored["history"] == [{"epoch": 0}] and not again.training
    with torch.no_grad():
        again.to_latent.bias[0] += 1
    assert models.weights_digest(again) != models.weights_digest(model)


class Evil:
    def __reduce__(self):
        return (print, ("unpickled!",))


@pytest.mark.parametrize("spoil", ["truncate", "text", "foreign", "pickle", "other weights"])
def test_spoilt_checkpoints_are_refused_by_name_and_not_unpickled(model, tmp_path, spoil, capsys):
    path = tmp_path / "a.pt"
    models.save_checkpoint(path, model)
    if spoil == "truncate":
        path.write_bytes(path.read_bytes()[:5000])
    elif spoil == "text":
        path.write_bytes(b"this is text, and no checkpoint at all")
    elif spoil == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    elif spoil == "pickle":
        torch.save({"format": models.FORMAT, "evil": Evil()}, path)
    else:
        stored = torch.load(path, weights_only=True)
        stored["state_dict"] = models.ConvAutoencoder(160, 4).state_dict()
        torch.save(stored, path)
    with pytest.raises(UserError, match="a.pt.*make it") as caught:
        models.load_checkpoint(path, "make it", ())
    assert "Delete" not in str(caught.value), "no advice to delete what was shipped"
    assert "unpickled!" not in capsys.readouterr().out


def test_missing_checkpoint_and_missing_parts_are_named(model, tmp_path):
    with pytest.raises(UserError, match="none.pt: missing. Make it with: make it"):
        models.load_checkpoint(tmp_path / "none.pt", "make it")
    models.save_checkpoint(tmp_path / "a.pt", model)
    with pytest.raises(UserError, match="a.pt: lacks segments_id, .*fitted"):
        models.load_checkpoint(tmp_path / "a.pt", "make it")


def edited_network(tmp_path, monkeypatch, old, new):
    """ConvAutoencoder of a copy of models.py in which `old` stands as `new`."""
    text = Path(models.__file__).read_text()
    assert old in text
    path = tmp_path / "edited_models.py"
    path.write_text(text.replace(old, new))
    spec = importlib.util.spec_from_file_location("edited_models", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "edited_models", module)
    spec.loader.exec_module(module)
    return module.ConvAutoencoder


@pytest.mark.parametrize("old, new, same", [
    ("h = self.encoder(x * self.taper)", "h = self.encoder(x * self.taper * 2)", False),
    ("self.conv(32, 64, kernel=5)", "self.conv(32, 64, kernel=7)", False),
    ("nn.ReLU(inplace=True)]", "nn.GELU()]", False),
    ("# (n, 32, 360)", "# another comment", True),
    ('"""x (n, 1, window_size) -> z (n, latent_dim)"""', '"""Another docstring."""', True)])
def test_an_edited_network_is_another_one_and_an_edited_comment_is_not(tmp_path, monkeypatch, old, new, same):
    edited = edited_network(tmp_path, monkeypatch, old, new)
    assert (models.network_code(edited) == models.network_code(models.ConvAutoencoder)) == same
    models.save_checkpoint(tmp_path / "a.pt", models.ConvAutoencoder(720, 32))
    monkeypatch.setitem(models.NETWORKS, "ConvAutoencoder", edited)
    if same:
        models.load_checkpoint(tmp_path / "a.pt", "make it", ())
    else:
        with pytest.raises(UserError, match="a.pt: made with another network.*make it"):
            models.load_checkpoint(tmp_path / "a.pt", "make it", ())


def test_inference_with_fused_batch_norms_gives_the_same_numbers(model):
    for norm in [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]:  # of their own, so that it matters
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = np.random.default_rng(1).normal(size=(9, 720)).astype(np.float32)
    recon, z = models.reconstruct(model.eval(), x, 4, "cpu")
    with torch.no_grad():
        expected = model.encode(torch.from_numpy(x).unsqueeze(1))
        torch.testing.assert_close(z, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(recon, model.decode(expected).squeeze(1), rtol=1e-4, atol=1e-4)


def test_interrupted_save_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    models.save_checkpoint(path, model, note="old")
    monkeypatch.setattr(artefacts.os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError):
        models.save_checkpoint(path, model, note="new")
    assert models.load_checkpoint(path, "make it", ())[1]["note"] == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
