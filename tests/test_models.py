"""The network against torch's own layers, and the checkpoint file."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from scipy.signal import firwin

import models
from conftest import Evil
from pipeline import artefacts
from pipeline.errors import UserError


def published(model):
    """The published network from torch's own one-dimensional layers, with this model's weights."""
    layers = []
    for inputs, outputs, kernel in ((1, 32, 7), (32, 64, 5), (64, 128, 5), (128, 128, 3)):
        layers += [nn.Conv1d(inputs, outputs, kernel, 2, kernel // 2), nn.BatchNorm1d(outputs),
                   nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(5760, 32), nn.Linear(32, 5760), nn.Unflatten(1, (128, 45))]
    for inputs, outputs in ((128, 128), (128, 64), (64, 32)):
        layers += [nn.ConvTranspose1d(inputs, outputs, 4, 2, 1), nn.BatchNorm1d(outputs), nn.ReLU()]
    network = nn.Sequential(*layers, nn.ConvTranspose1d(32, 1, 4, 2, 1))
    network.load_state_dict(dict(zip(network.state_dict(), model.state_dict().values())))
    return network


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.ConvAutoencoder(720, 32)


@pytest.mark.parametrize("training", [True, False])
def test_output_gradients_and_statistics_equal_torch_1d_layers(model, training):
    assert models.n_parameters(model) == 583_361
    x = torch.randn(8, 1, 720)
    ours, theirs = [], []
    for network, found in ((model, ours), (published(model), theirs)):
        recon = network.train(training)(x)
        (recon**2).mean().backward()
        statistics = [v for k, v in network.named_buffers() if "running" in k]
        found += [recon, *statistics, *(p.grad for p in network.parameters())]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_tapered_network_is_an_untapered_one_of_the_tapered_beat(model, tmp_path):
    """The taper is no weight, and comes back with the checkpoint."""
    tapered = models.ConvAutoencoder(720, 32, 80)
    assert "taper" not in tapered.state_dict()
    tapered.load_state_dict(model.eval().state_dict())
    models.save_checkpoint(tmp_path / "a.pt", tapered)
    tapered, _ = models.load_checkpoint(tmp_path / "a.pt", "", ())
    x = torch.randn(3, 1, 720)
    taper = torch.exp(-0.5 * ((torch.arange(720) - 360) / 80) ** 2)
    torch.testing.assert_close(tapered.encode(x), model.encode(x * taper), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tapered(x), model(x * taper), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(tapered.encode(x), model.encode(x), rtol=1e-2)


def test_checkpoint_round_trip(model, tmp_path):
    path = tmp_path / "deep" / "a.pt"
    models.save_checkpoint(path, model, note="x", history=[{"epoch": 0}])
    again, stored = models.load_checkpoint(path, "make it", ())
    assert models.weights_digest(again) == models.weights_digest(model)
    assert stored["note"] == "x" and stored["history"] == [{"epoch": 0}] and not again.training
    with torch.no_grad():
        again.to_latent.bias[0] += 1
    assert models.weights_digest(again) != models.weights_digest(model)


@pytest.mark.parametrize("spoil", ["truncate", "text", "foreign", "pickle", "other weights"])
def test_spoilt_checkpoints_are_refused_by_name_and_not_unpickled(model, tmp_path, spoil, capsys):
    path = tmp_path / "a.pt"
    models.save_checkpoint(path, model)
    other = torch.load(path) | {"state_dict": models.ConvAutoencoder(160, 4).state_dict()}
    if spoil == "truncate":
        path.write_bytes(path.read_bytes()[:5000])
    elif spoil == "text":
        path.write_bytes(b"this is text, and no checkpoint at all")
    else:
        torch.save({"foreign": {"weights": torch.zeros(3)}, "other weights": other,
                    "pickle": {"format": models.FORMAT, "evil": Evil()}}[spoil], path)
    with pytest.raises(UserError, match="a.pt.*make it") as caught:
        models.load_checkpoint(path, "make it", ())
    assert "Delete" not in str(caught.value), "no advice to delete what was shipped"
    assert "unpickled!" not in capsys.readouterr().out


def test_a_checkpoint_without_its_scores_is_refused(model, tmp_path):
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
    ("self.layout(x * self.taper)", "self.layout(x * self.taper * 2)", False),
    ("self.conv(32, 64, kernel=5)", "self.conv(32, 64, kernel=7)", False),
    ("nn.ReLU(inplace=True)]", "nn.GELU()]", False),
    ("# (n, 32, 360)", "# another comment", True),
    ('"""x (n, 1, window_size) -> z (n, latent_dim)"""', '"""Another docstring."""', True)])
def test_an_edited_network_is_another_one_and_an_edited_comment_is_not(
        tmp_path, monkeypatch, old, new, same):
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
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d):  # statistics of their own, so that they matter
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    x = torch.randn(9, 720)
    recon, z = models.reconstruct(model.eval(), x.numpy(), 4, "cpu")
    with torch.no_grad():
        expected = model.encode(x[:, None])
        torch.testing.assert_close(z, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(recon, model.decode(expected)[:, 0], rtol=1e-4, atol=1e-4)


def test_a_relu_within_its_convolution_gives_the_same_to_the_bit(model):
    x = torch.randn(9, 1, 720)
    fused = models.fused(model.eval())
    layers = [layer for layer in fused.modules() if hasattr(layer, "then_relu")]
    assert [layer.then_relu for layer in layers] == [True] * 7 + [False]
    assert not [layer for layer in fused.modules() if isinstance(layer, nn.ReLU)]

    with torch.profiler.profile() as seen, torch.inference_mode():
        z = fused.encode(x)
        drawn = fused.decode(z)
    assert not [event for event in seen.events() if "relu" in event.name]

    # with a gradient to come the two are one after the other
    assert torch.equal(fused.encode(x), z)
    assert torch.equal(fused.decode(z.clone()), drawn)


def test_interrupted_save_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    models.save_checkpoint(path, model)
    before = path.read_bytes()
    monkeypatch.setattr(artefacts.os, "replace", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        models.save_checkpoint(path, model, note="new")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("taps, cutoff, fs", [(63, 45 / 360, 1), (64, 40, 250), (1, 0.1, 1)])
def test_the_lowpass_is_that_of_scipy(taps, cutoff, fs):
    np.testing.assert_allclose(models.firwin(taps, cutoff, fs), firwin(taps, cutoff, fs=fs),
                               rtol=0, atol=1e-15)


def test_a_drawing_holds_nothing_above_the_lowpass():
    """Random weights draw fuzz; the filter ends it, and lets pass what is below."""
    torch.manual_seed(0)
    plain = models.ConvAutoencoder(720, 32, 80.0).eval()
    filtered = models.ConvAutoencoder(720, 32, 80.0, lowpass=45 / 360).eval()
    filtered.load_state_dict(plain.state_dict())
    z = torch.randn(50, 32)
    with torch.inference_mode():
        drawn = [model.decode(z).squeeze(1).numpy() for model in (plain, filtered)]
    power = [np.abs(np.fft.rfft(x)) ** 2 for x in drawn]
    hz = np.fft.rfftfreq(720, 1 / 360)
    kept = [power[1][:, here].sum() / power[0][:, here].sum()
            for here in (hz > 55, (hz > 1) & (hz < 35))]
    assert kept[0] < 1e-3 and kept[1] == pytest.approx(1, abs=0.02)
    assert models.n_parameters(filtered) == 583_361


def test_latents_are_those_of_the_reconstruction():
    torch.manual_seed(0)
    model = models.ConvAutoencoder(720, 32, 80.0).eval()
    x = np.random.default_rng(0).normal(size=(70, 720)).astype(np.float32)
    _, z = models.reconstruct(model, x, 32, "cpu")
    np.testing.assert_allclose(models.latents(model, x, 32, "cpu"), z, atol=1e-5)
