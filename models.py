"""The convolutional autoencoder and its checkpoint file.

x (n, 1, 720) -> z (n, 32) -> recon (n, 1, 720); 583,361 parameters at the default sizes.
Another network is a class like ConvAutoencoder and a row in NETWORKS: docs/extending.md.
"""

import copy
import hashlib
import inspect
import io
import itertools
import pickle
import tokenize
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

import config
from pipeline import settings
from pipeline.artefacts import whole_file
from pipeline.errors import UserError, said
from pipeline.runtime import in_threads, slices
from pipeline.strided_convolution import (ChannelsLastBatchNorm1d, StridedConv1d,
                                          StridedConvTranspose1d, as_image)
from preprocess import gaussian

FORMAT = "ecg-autoencoder-2"
THREAD_BATCH = 128   # segments that a thread takes at a time; with 512 a day takes 250 MB more
# what torch.load raises for damaged, foreign and pickled files
UNREADABLE = (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, KeyError,
              AttributeError, ImportError, IndexError, TypeError, AssertionError, OverflowError)
# what a finished checkpoint holds beside the network
DETECTOR = ("segments_id", "segment_settings", "training_settings", "protocol", "seed", "history",
            "weights", "score_settings", "fitted", "thresholds", "calibration", "excess",
            "part_limits")


class ConvAutoencoder(nn.Module):
    """Four strided convolutions down, a linear bottleneck, four transposed convolutions up.

    All that makes the network stands in this class: a checkpoint keeps a digest of it.
    The input is multiplied by a Gaussian of taper_samples on its middle, the R peak (None: not
    at all), and it is this tapered beat that the network draws. The drawing passes a fixed low-pass
    filter at `lowpass` cycles a sample (None: none): transposed convolutions of stride 2 leave
    fuzz at half the sampling rate and its fractions (Odena et al. 2016, Distill 1:e3).
    window_size must be a multiple of 16: each of the four layers halves the length.
    Raises ValueError otherwise.
    """

    layout = staticmethod(as_image)   # in which the layers hand a signal on
    taps = 63                         # of the low-pass, a windowed sinc: it falls within 20 Hz

    def __init__(self, window_size, latent_dim, taper_samples=None, lowpass=None):
        super().__init__()
        if window_size % 16:
            raise ValueError(f"window_size {window_size}: expected a multiple of 16")
        self.model_args = {"window_size": window_size, "latent_dim": latent_dim,
                           "taper_samples": taper_samples, "lowpass": lowpass}
        # these follow .to(device) and are no weights of the network
        self.register_buffer("taper", as_float(gaussian(window_size, taper_samples)), False)
        kernel = firwin(self.taps, lowpass, fs=1) if lowpass else np.ones(1)
        self.register_buffer("kernel", as_float(kernel).view(1, 1, -1), False)
        self.length = window_size // 16

        # --- down: each layer halves the length
        self.encoder = nn.Sequential(        # (n, 1, 720)
            *self.conv(1, 32, kernel=7),     # (n, 32, 360)
            *self.conv(32, 64, kernel=5),    # (n, 64, 180)
            *self.conv(64, 128, kernel=5),   # (n, 128, 90)
            *self.conv(128, 128, kernel=3))  # (n, 128, 45)
        self.to_latent = nn.Linear(128 * self.length, latent_dim)

        # --- up: each layer doubles it
        self.from_latent = nn.Linear(latent_dim, 128 * self.length)
        self.decoder = nn.Sequential(        # (n, 128, 45)
            *self.conv_transpose(128, 128),  # (n, 128, 90)
            *self.conv_transpose(128, 64),   # (n, 64, 180)
            *self.conv_transpose(64, 32),    # (n, 32, 360)
            # linear: the signal has both signs
            StridedConvTranspose1d(32, 1, 4, stride=2, padding=1))  # (n, 1, 720)

    @staticmethod
    def conv(inputs, outputs, kernel):
        """A strided convolution that halves the length, with batch norm and ReLU."""
        return [StridedConv1d(inputs, outputs, kernel, stride=2, padding=kernel // 2),
                ChannelsLastBatchNorm1d(outputs), nn.ReLU(inplace=True)]

    @staticmethod
    def conv_transpose(inputs, outputs):
        """A transposed convolution that doubles the length, with batch norm and ReLU."""
        return [StridedConvTranspose1d(inputs, outputs, 4, stride=2, padding=1),
                ChannelsLastBatchNorm1d(outputs), nn.ReLU(inplace=True)]

    def encode(self, x):
        """x (n, 1, window_size) -> z (n, latent_dim)"""
        h = self.encoder(self.layout(x * self.taper))  # (n, 128, 1, 45)
        return self.to_latent(h.flatten(1))

    def decode(self, z):
        """z (n, latent_dim) -> recon (n, 1, window_size)"""
        h = self.from_latent(z).view(-1, 128, self.length)  # (n, 128, 45)
        fuzzy = self.decoder(self.layout(h)).flatten(1).unsqueeze(1)
        return F.conv1d(fuzzy, self.kernel, padding="same")

    def forward(self, x):
        """x (n, 1, window_size) -> recon of the same shape: of x times the taper"""
        return self.decode(self.encode(x))


def firwin(taps, cutoff, fs):
    """(taps,) low-pass of a windowed sinc, as scipy.signal.firwin makes it: that takes half a
    second to load, and whatever has a network needs one.
    """
    t = np.arange(taps) - (taps - 1) / 2
    kernel = np.sinc(2 * cutoff / fs * t) * np.hamming(taps)
    return kernel / kernel.sum()


NETWORKS = {"ConvAutoencoder": ConvAutoencoder}


def new_network():
    """An untrained network as config.py asks for; UserError for a name that is not there."""
    name = config.NETWORK
    if name not in NETWORKS:
        raise UserError(
            f"config.py: NETWORK = {name!r}; expected one of {', '.join(NETWORKS)}. "
            "Edit NETWORK, or add the network to NETWORKS in models.py: docs/extending.md.")
    return NETWORKS[name](**network_sizes())


def network_sizes():
    """The arguments of a network's class, from config.py."""
    taper_s, lowpass_hz = config.TAPER_SIGMA_S, config.LOWPASS_HZ
    return {"window_size": config.WINDOW_SIZE, "latent_dim": config.LATENT_DIM,
            "taper_samples": taper_s and taper_s * config.FS_HZ,
            "lowpass": lowpass_hz and lowpass_hz / config.FS_HZ}


def as_float(values):
    """An array as a tensor of float32."""
    return torch.as_tensor(values, dtype=torch.float32)


def n_parameters(model):
    """Number of trained values."""
    return sum(p.numel() for p in model.parameters())


# --- inference ------------------------------------------------------------------------------------

def fused(model):
    """A copy for inference whose convolutions hold the batch norms and the ReLUs behind them: the
    same to float rounding; the model itself where it is one.
    """
    if not any(isinstance(layer, nn.BatchNorm1d) for layer in model.modules()):
        return model
    result = copy.deepcopy(model).eval()

    for layers in [m for m in result.modules() if isinstance(m, nn.Sequential)]:
        for k, (before, layer) in enumerate(itertools.pairwise(layers), 1):
            if not isinstance(layer, nn.BatchNorm1d):
                continue
            layers[k - 1] = fuse_conv_bn_eval(before, layer,
                                              isinstance(before, nn.ConvTranspose1d))
            layers[k] = nn.Identity()

            # and the ReLU behind it
            behind = layers[k + 1] if k + 1 < len(layers) else None
            if isinstance(behind, nn.ReLU) and hasattr(before, "then_relu"):
                layers[k - 1].then_relu = True
                layers[k + 1] = nn.Identity()
    return result


def reconstruct(model, x, batch_size, device):
    """x (n, w) float32 array -> recon (n, w), z (n, latent_dim), as float32 CPU tensors."""
    model = fused(model)
    recon = torch.empty(x.shape)
    z = torch.empty(len(x), model.model_args["latent_dim"])

    @torch.inference_mode()
    def draw(part):
        batch = torch.from_numpy(x[part]).unsqueeze(1).to(device)  # (b, 1, w)
        latent = model.encode(batch)
        recon[part] = model.decode(latent).squeeze(1).cpu()
        z[part] = latent.cpu()

    if torch.device(device).type == "cpu":
        # each thread has its own arrays: of larger batches the system gets them back each time
        in_threads(draw, slices(len(x), min(batch_size, THREAD_BATCH)))
    else:
        # a GPU does one batch at a time: those of many threads would only fill its memory
        for part in slices(len(x), batch_size):
            draw(part)
    return recon, z


@torch.inference_mode()
def latents(model, x, batch_size, device):
    """x (n, w) float32 array -> z (n, latent_dim) float32 array: half the work of `reconstruct`."""
    model = fused(model)
    parts = [model.encode(torch.from_numpy(x[start:start + batch_size]).unsqueeze(1).to(device))
             for start in range(0, len(x), batch_size)]
    return torch.cat(parts).cpu().numpy()


# --- identity -------------------------------------------------------------------------------------

def network_code(network):
    """SHA-256 (hex) of a network's class and those it extends, but for comments and docstrings.

    A checkpoint keeps it: an edited network never passes for the one that was trained.
    """
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    digest = hashlib.sha256()
    before = tokenize.NEWLINE

    # a subclass that changes one line is another network, and so is one whose parent was edited
    source = ""
    for kind in network.__mro__:
        if kind is not object and not kind.__module__.startswith("torch"):
            source += inspect.getsource(kind)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        # a string that begins a line is a docstring: it changes nothing
        docstring = token.type == tokenize.STRING and before in (tokenize.NEWLINE, tokenize.INDENT)
        if token.type not in skipped and not docstring:
            digest.update(token.string.encode())
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            before = token.type
    return digest.hexdigest()


def weights_digest(model):
    """SHA-256 (hex) of all weights: which training a result belongs to."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- the checkpoint file --------------------------------------------------------------------------

def save_checkpoint(path, model, **fields):
    """Write network and `fields` (tensors, numbers, strings, dicts, lists) whole or not at all."""
    network = type(model)
    stored = {"format": FORMAT, "network": network.__name__, "network_code": network_code(network),
              "model_args": model.model_args,
              "state_dict": {k: v.detach().cpu() for k, v in model.state_dict().items()}, **fields}
    buffer = io.BytesIO()  # written by Python, so that a full disk is an OSError with its reason
    torch.save(stored, buffer)
    with whole_file(Path(path)) as part:
        part.write_bytes(buffer.getbuffer())


def check_packing(path):
    """Raise ValueError for a file of torch.save that unpacks to more than it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"no file of torch.save: {error}") from error
    if unpacked > path.stat().st_size:
        raise ValueError(f"unpacks to {unpacked:,} bytes")


def check_sizes(network, model_args, weights, size):
    """Raise ValueError where a network would be larger than the weights of a file of `size` bytes.

    A few bytes may ask for a network that fills the memory.
    """
    held = sum(value.numel() for value in weights.values())
    numbers = [value for value in model_args.values() if isinstance(value, (int, float))]
    if held > size or any(not abs(value) <= size for value in numbers):
        raise ValueError(f"sizes {model_args} for {size:,} bytes")

    # shapes alone: nothing is allocated
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in network(**model_args).state_dict().items()}
    if any(key not in weights or weights[key].shape != shape for key, shape in shapes.items()):
        raise ValueError("weights of other names or shapes")


def load_checkpoint(path, command, needs=DETECTOR):
    """Checkpoint file -> (model in eval mode, dict of everything stored).

    Never unpickles objects (weights_only). Raises UserError, naming the file and the `command`
    that makes it, if it is missing, damaged, of another network than NETWORKS holds today, or
    lacks one of `needs`.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: missing. Make it with: {command}")
    remedy = f"Name another checkpoint, or make it with: {command}"

    try:
        check_packing(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise UserError(
            f"{path}: not a readable checkpoint ({type(error).__name__}). {remedy}") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise UserError(
            f"{path}: not a checkpoint of this project (format {FORMAT!r} expected). {remedy}")

    network = NETWORKS.get(str(stored.get("network")))
    if network is None or network_code(network) != stored.get("network_code"):
        raise UserError(
            f"{path}: made with another network: {stored.get('network')} in models.py is missing "
            f"or was edited since. Take models.py as it was, or train anew with: {command}")
    try:
        check_sizes(network, stored["model_args"], stored["state_dict"], path.stat().st_size)
        model = network(**stored["model_args"])
        model.load_state_dict(stored["state_dict"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{path}: weights do not fit the network: {said(error)}. {remedy}"
            ) from error

    lacking = [key for key in needs if key not in stored]
    if lacking:
        raise UserError(f"{path}: lacks {', '.join(lacking)}: not the file its name says. {remedy}")
    return model.eval(), stored


# --- is it up to date -----------------------------------------------------------------------------

def stamp_of(segments, protocol, seed):
    """What a checkpoint was trained on and with."""
    names = settings.TRAINING_SETTINGS
    if protocol == "archive":  # scaling/train_on_shards.py
        names += settings.ARCHIVE_SETTINGS
    return {"database": segments.meta["database"], "simulated": segments.meta["simulated"],
            "segments_id": segments.meta["id"], "segment_settings": segments.meta["settings"],
            "protocol": protocol, "seed": seed, "training_settings": settings.snapshot(names),
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__}}


def stale(stored, stamp):
    """Why a checkpoint's weights do not belong to these segments and settings; [] if they do."""
    why = settings.differences(stored["training_settings"], stamp["training_settings"])
    why += settings.differences(stored["segment_settings"], stamp["segment_settings"])
    identity = {key: stamp[key] for key in ("segments_id", "protocol", "seed")}
    return why or settings.differences(stored, identity)
