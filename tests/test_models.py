import numpy as np
import pytest
import torch
import torch.nn as nn

from pipeline import artefacts
import models


def published(model):
    """The published network from torch's own one-dimensional layers, with this model's weights."""
    down = [layer for k in range(4) for layer in (model.down[k], model.down_norm[k], nn.ReLU())]
    up = []
    for k in range(4):
        up += [model.up[k]] + ([model.up_norm[k], nn.ReLU()] if k < 3 else [])
    return nn.Sequential(*down, nn.Flatten(), model.to_latent, model.from_latent,
                         nn.Unflatten(1, (128, 45)), *up)


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
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    recon = model.train(training)(x)
    (recon**2).mean().backward()
    torch.testing.assert_close(recon, expected, rtol=1e-4, atol=1e-5)
    for p, g in zip(model.parameters(), gradients):
        torch.testing.assert_close(p.grad, g, rtol=1e-3, atol=1e-5)


def test_running_statistics_are_updated_like_batchnorm1d(model):
    x = torch.randn(16, 1, 720)
    model.train()(x)
    conv = model.down[0](x)
    torch.testing.assert_close(model.down_norm[0].running_mean, 0.1 * conv.mean((0, 2)), rtol=1e-4, atol=1e-6)


def test_lengths(model):
    assert model.encode(torch.zeros(2, 1, 720)).shape == (2, 32)
    assert model.decode(torch.zeros(2, 32)).shape == (2, 1, 720)
    small = models.ConvAutoencoder(160, 4)
    assert small(torch.zeros(3, 1, 160)).shape == (3, 1, 160)
    with pytest.raises(ValueError, match="multiple of 16"):
        models.ConvAutoencoder(721, 32)


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
    again, _ = models.load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(again.taper, tapered.taper) and again.taper[0] < 0.001


def test_reconstruct_does_not_depend_on_the_batch_size(model):
    x = np.random.default_rng(0).normal(size=(37, 720)).astype(np.float32)
    one, z_one = models.reconstruct(model, x, 37, "cpu")
    many, z_many = models.reconstruct(model, x, 5, "cpu")
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(z_one, z_many, rtol=1e-4, atol=1e-5)


def test_checkpoint_round_trip(model, tmp_path):
    path = tmp_path / "deep" / "a.pt"
    models.save_checkpoint(path, model, note="x", history=[{"epoch": 0}])
    again, stored = models.load_checkpoint(path)
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
        small = models.ConvAutoencoder(160, 4)
        torch.save({"format": models.FORMAT, "model_args": model.model_args,
                    "state_dict": small.state_dict()}, path)
    with pytest.raises(ValueError, match="a.pt"):
        models.load_checkpoint(path)
    assert "unpickled!" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        models.load_checkpoint(tmp_path / "none.pt")


def test_interrupted_save_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    models.save_checkpoint(path, model, note="old")
    monkeypatch.setattr(artefacts.os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError):
        models.save_checkpoint(path, model, note="new")
    assert models.load_checkpoint(path)[1]["note"] == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_export_gives_torchs_outputs_for_any_number_of_segments(tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(3)
    model = models.ConvAutoencoder(160, 8, 20.0)
    for norm in [*model.down_norm, *model.up_norm]:  # statistics of their own, so that folding matters
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    models.save_checkpoint(tmp_path / "m.pt", model)
    models.main(["--export", "onnx", "--checkpoint", str(tmp_path / "m.pt")])
    assert "largest difference to torch" in capsys.readouterr().out
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    x = torch.randn(5, 160)
    recon, z = session.run(None, {"x": x.numpy()})
    model.eval()  # not folded: the reference takes another way
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(recon), model(x.unsqueeze(1)).squeeze(1), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.from_numpy(z), model.encode(x.unsqueeze(1)), atol=1e-4, rtol=1e-4)


def test_export_that_differs_is_not_written(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    monkeypatch.setattr(models, "EXPORT_TOLERANCE", 0.0)
    with pytest.raises(ValueError, match="onnxruntime differs"):
        models.export_onnx(models.ConvAutoencoder(160, 8), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_export_without_a_checkpoint_says_how_to_make_one(tmp_path):
    with pytest.raises(SystemExit, match="missing. Make it with: python train_mitbih.py"):
        models.main(["--export", "onnx", "--checkpoint", str(tmp_path / "none.pt")])
