"""The convolutional autoencoder, its checkpoint file, and its export for those who deploy it.

x (n, 1, 720) -> z (n, 32) -> recon (n, 1, 720); 583,361 parameters at the default sizes.
The weights have the shapes of one-dimensional convolutions. They are run as two-dimensional
ones of height 1 in channels-last layout, which gives the same numbers faster on a CPU: there
each convolution is one matrix product and batch norm runs over contiguous rows (layers.py).

    python models.py --export onnx      checkpoints/patient.pt to checkpoints/patient.onnx, checked with onnxruntime
"""

import argparse
import copy
import hashlib
import io
import logging
import pickle
import warnings
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from pipeline import strided_convolution
from pipeline.artefacts import whole_file
from preprocess import gaussian

CHANNELS = (1, 32, 64, 128, 128)
ENCODER_KERNELS = (7, 5, 5, 3)
FORMAT = "ecg-autoencoder-1"
# what torch.load raises for damaged, foreign and pickled files
UNREADABLE = (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, KeyError,
              AttributeError, ImportError, IndexError, TypeError, AssertionError, OverflowError)


class ConvAutoencoder(nn.Module):
    """Four strided convolutions down, a linear bottleneck, four transposed convolutions up.

    The input is multiplied by a Gaussian of taper_samples on its middle, the R peak (None: not
    at all), and it is this tapered beat that the network draws.
    window_size must be a multiple of 16: each of the four layers halves the length.
    Raises ValueError otherwise.
    """

    def __init__(self, window_size, latent_dim, taper_samples=None):
        super().__init__()
        if window_size % 16:
            raise ValueError(f"window_size {window_size}: expected a multiple of 16")
        self.model_args = {"window_size": window_size, "latent_dim": latent_dim, "taper_samples": taper_samples}
        taper = torch.as_tensor(gaussian(window_size, taper_samples), dtype=torch.float32)
        self.register_buffer("taper", taper, persistent=False)  # follows .to(device), no weight of the network
        self.length = window_size // 16
        # --- encoder: 720 -> 360 -> 180 -> 90 -> 45
        pairs = list(zip(CHANNELS[:-1], CHANNELS[1:]))
        self.down = nn.ModuleList(nn.Conv1d(i, o, k, stride=2, padding=k // 2)
                                  for (i, o), k in zip(pairs, ENCODER_KERNELS))
        self.down_norm = nn.ModuleList(nn.BatchNorm1d(o) for _, o in pairs)
        self.to_latent = nn.Linear(CHANNELS[-1] * self.length, latent_dim)
        # --- decoder: 45 -> 90 -> 180 -> 360 -> 720
        self.from_latent = nn.Linear(latent_dim, CHANNELS[-1] * self.length)
        self.up = nn.ModuleList(nn.ConvTranspose1d(o, i, 4, stride=2, padding=1)
                                for i, o in reversed(pairs))
        self.up_norm = nn.ModuleList(nn.BatchNorm1d(i) for i, _ in reversed(pairs[1:]))

    def encode(self, x):
        """x (n, 1, window_size) -> z (n, latent_dim)"""
        h = strided_convolution.rows_first(x * self.taper)
        for conv, norm in zip(self.down, self.down_norm):
            h = F.relu_(strided_convolution.halve(h, conv, norm))
        return self.to_latent(h.flatten(1))

    def decode(self, z):
        """z (n, latent_dim) -> recon (n, 1, window_size)"""
        h = self.from_latent(z).view(-1, CHANNELS[-1], 1, self.length)
        h = h.contiguous(memory_format=torch.channels_last)
        for conv, norm in zip(self.up, self.up_norm):
            h = F.relu_(strided_convolution.double(h, conv, norm))
        return strided_convolution.double(h, self.up[-1]).squeeze(2)  # linear: the signal has both signs

    @torch.no_grad()
    def folded(self):
        """A copy for inference whose convolutions hold the batch norms: the same outputs to float rounding."""
        other = copy.deepcopy(self).eval()
        for convs, norms, axis in ((other.down, other.down_norm, 0), (other.up, other.up_norm, 1)):
            for k, norm in enumerate(norms):
                scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
                shape = [1, 1, 1]
                shape[axis] = -1  # output channels: first in a convolution, second in a transposed one
                convs[k].weight.mul_(scale.view(shape))
                convs[k].bias.sub_(norm.running_mean).mul_(scale).add_(norm.bias)
                norms[k] = nn.Identity()
        return other

    def forward(self, x):
        """x (n, 1, window_size) -> recon of the same shape: of x times the taper"""
        return self.decode(self.encode(x))


@torch.inference_mode()
def reconstruct(model, x, batch_size, device):
    """x (n, w) float32 array -> recon (n, w), z (n, latent_dim), as float32 CPU tensors."""
    model = model.folded() if hasattr(model, "folded") else model
    recon = torch.empty(x.shape)
    z = torch.empty(len(x), model.model_args["latent_dim"])
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        batch = torch.from_numpy(x[part]).unsqueeze(1).to(device)
        latent = model.encode(batch)
        recon[part], z[part] = model.decode(latent).squeeze(1).cpu(), latent.cpu()
    return recon, z


def n_parameters(model):
    """Number of trained values."""
    return sum(p.numel() for p in model.parameters())


def save_checkpoint(path, model, **fields):
    """Write model_args, state_dict and `fields` (tensors, numbers, strings, dicts, lists) at once or not at all."""
    state = {k: v.detach().cpu() for k, v in model.state_dict().items()}
    buffer = io.BytesIO()  # written by Python, so that a full disk is an OSError with its reason
    torch.save({"format": FORMAT, "model_args": model.model_args, "state_dict": state, **fields}, buffer)
    with whole_file(Path(path)) as part:
        part.write_bytes(buffer.getbuffer())


def load_checkpoint(path):
    """Checkpoint file -> (model in eval mode, dict of everything stored).

    Never unpickles objects (weights_only). Raises ValueError, naming the file, if it is damaged or
    is not a checkpoint of this project, FileNotFoundError if it is missing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(str(path))
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a readable checkpoint ({type(error).__name__})") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise ValueError(f"{path}: not a checkpoint of this project (format {FORMAT!r} expected)")
    try:
        model = ConvAutoencoder(**stored["model_args"])
        model.load_state_dict(stored["state_dict"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: weights do not fit the network: {str(error).splitlines()[0]}") from error
    return model.eval(), stored


def weights_digest(model):
    """SHA-256 (hex) of all weights: which training a result belongs to."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- export ---------------------------------------------------------------------------------------

EXPORT_INSTALL = "pip install -r requirements-export.txt"
EXPORT_TOLERANCE = 1e-5    # of the largest difference to torch, relative to the largest value


class Exported(nn.Module):
    """What is exported: normalised segments x (n, window_size) -> recon (n, window_size), z (n, latent_dim)."""

    def __init__(self, model):
        super().__init__()
        self.model = model.folded()

    def forward(self, x):
        z = self.model.encode(x.unsqueeze(1))
        return self.model.decode(z).squeeze(1), z


def export_onnx(model, path):
    """Write the network, batch norms folded, for any number of segments; the largest relative difference to torch.

    Raises ImportError without onnx, onnxscript and onnxruntime, ValueError, and writes nothing, where
    onnxruntime's outputs are further than EXPORT_TOLERANCE from torch's.
    """
    import onnxruntime
    import onnxscript  # noqa: F401  torch's exporter needs it
    network, window = Exported(model).eval(), model.model_args["window_size"]
    # two segments to trace with: torch takes a dimension of 1 for a constant
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which nothing here needs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)       # torch's of itself
        program = torch.onnx.export(network, (torch.randn(2, window),), dynamo=True, input_names=["x"], verbose=False,
                                    output_names=["recon", "z"], dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    with whole_file(Path(path)) as part:
        program.save(str(part), external_data=False)
        session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
        worst = 0.0
        for n in (1, 7):
            x = torch.randn(n, window, generator=torch.Generator().manual_seed(n))
            with torch.inference_mode():
                expected = network(x)
            for ours, theirs in zip(expected, session.run(None, {"x": x.numpy()})):
                worst = max(worst, float((ours - torch.from_numpy(theirs)).abs().max() / ours.abs().max()))
        if not worst <= EXPORT_TOLERANCE:
            raise ValueError(f"{path}: onnxruntime differs from torch by {worst:.1e}, expected {EXPORT_TOLERANCE:g}")
    return worst


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--export", choices=("onnx",), required=True)
    shipped = Path(__file__).resolve().parent / "checkpoints" / "patient.pt"
    parser.add_argument("--checkpoint", type=Path, default=shipped, help="default: checkpoints/patient.pt")
    parser.add_argument("--out", type=Path, help="default: beside the checkpoint")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    path = args.out or args.checkpoint.with_suffix(".onnx")
    try:
        worst = export_onnx(load_checkpoint(args.checkpoint)[0], path)
    except FileNotFoundError as error:
        raise SystemExit(f"error: {error}: missing. Make it with: python train_mitbih.py") from error
    except ImportError as error:
        raise SystemExit(f"error: {error}. Install what the export needs with: {EXPORT_INSTALL}") from error
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"wrote {path}: largest difference to torch {worst:.1e} of the largest value")


if __name__ == "__main__":
    main()
