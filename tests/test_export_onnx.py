import sys

import pytest
import torch

import models
from pipeline.errors import UserError
from studies import export_onnx


@pytest.fixture
def network():
    """A network whose batch norms have statistics of their own, so that fusing them matters."""
    torch.manual_seed(3)
    model = models.ConvAutoencoder(160, 8, 20.0)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return model.eval()


@torch.inference_mode()
def test_export_gives_torchs_outputs_for_any_number_of_segments(network, tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    models.save_checkpoint(tmp_path / "m.pt", network)
    export_onnx.main(["--checkpoint", str(tmp_path / "m.pt")])
    assert "largest difference to torch" in capsys.readouterr().out
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    for n in (1, 5):
        x = torch.randn(n, 160)
        recon, z = map(torch.from_numpy, session.run(None, {"x": x.numpy()}))
        torch.testing.assert_close(recon, network(x.unsqueeze(1)).squeeze(1), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(z, network.encode(x.unsqueeze(1)), atol=1e-4, rtol=1e-4)


def test_export_that_differs_or_lacks_a_package_is_not_written(network, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(export_onnx, "TOLERANCE", 0.0)
    with pytest.raises(UserError, match="m.onnx: not written: onnxruntime"):
        export_onnx.export_onnx(network, tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="onnxscript.*requirements-export.txt"):
        export_onnx.export_onnx(network, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_export_without_a_checkpoint_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match="none.pt: missing. Make it with: python train_mitbih.py"):
        export_onnx.main(["--checkpoint", str(tmp_path / "none.pt")])
