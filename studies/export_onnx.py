"""The network for those who deploy it elsewhere, as ONNX.

reads   checkpoints/patient.pt      shipped; --checkpoint names another
writes  checkpoints/patient.onnx    beside it, or --out: its outputs checked with onnxruntime

Needs: pip install -r requirements-export.txt
"""

import argparse
import logging
import warnings
from pathlib import Path

import torch
from torch import nn

import config
from models import fused, load_checkpoint
from pipeline import errors, settings
from pipeline.artefacts import whole_file
from pipeline.errors import UserError

TOLERANCE = 1e-5   # largest difference to torch, relative to the largest value


class Deployed(nn.Module):
    """Normalised segments x (n, window_size) -> recon (n, window_size), z (n, latent_dim)."""

    def __init__(self, model):
        super().__init__()
        self.model = fused(model)

    def forward(self, x):
        z = self.model.encode(x.unsqueeze(1))
        return self.model.decode(z).squeeze(1), z


def export_onnx(model, path):
    """Write the network for any number of segments; its largest relative difference to torch.

    Raises UserError, and writes nothing, without the packages or where that is above TOLERANCE.
    """
    try:
        import onnxruntime, onnxscript  # torch's exporter and its check need them
    except ImportError as error:
        raise UserError(f"{error}. Install what the export needs with: "
                        "pip install -r requirements-export.txt") from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of torchvision, not needed here

    network = Deployed(model).eval()
    window = model.model_args["window_size"]
    many = {0: torch.export.Dim("n", min=1)}

    # two segments to trace with: torch takes a dimension of 1 for a constant
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)   # torch's of itself
        program = torch.onnx.export(network, (torch.randn(2, window),), dynamo=True, verbose=False,
                                    input_names=["x"], output_names=["recon", "z"],
                                    dynamic_shapes=(many,))

    # a number of segments that it was not traced with
    worst = 0.0
    for n in (1, 7):
        x = torch.randn(n, window, generator=torch.Generator().manual_seed(n))
        with torch.inference_mode():
            expected = network(x)
        for ours, theirs in zip(expected, program(x)):  # a call runs onnxruntime
            worst = max(worst, ((ours - theirs).abs().max() / ours.abs().max()).item())
    if worst > TOLERANCE:
        raise UserError(f"{path}: not written: onnxruntime differs from torch by {worst:.1e}, "
                        f"expected {TOLERANCE:g}. Take the versions of requirements-export.txt.")

    with whole_file(path) as part:
        program.save(str(part), external_data=False)
    return worst


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shipped = settings.database().checkpoint_path("patient", config.SEED)
    parser.add_argument("--checkpoint", type=Path, default=shipped, help="[checkpoints/patient.pt]")
    parser.add_argument("--out", type=Path, help="[beside the checkpoint]")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    path = args.out or args.checkpoint.with_suffix(".onnx")
    command = settings.database().command("train_mitbih.py", "--protocol", "patient")
    model, _ = load_checkpoint(args.checkpoint, command, needs=())
    worst = export_onnx(model, path)
    print(f"wrote {path}: largest difference to torch {worst:.1e} of the largest value")


if __name__ == "__main__":
    errors.run(main)
