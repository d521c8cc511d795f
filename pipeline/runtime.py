"""What training and evaluation share: flags, device, segments, and whether a checkpoint fits them."""

import argparse
import ctypes

import numpy as np
import torch
from threadpoolctl import threadpool_limits

import config
from pipeline import settings
from pipeline import processes
from pipeline.errors import UserError
from dataset import command_of, load_segments
from models import load_checkpoint

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
KEPT_BLOCK = 1 << 25          # 32 MB: the most that every version of glibc takes
KEPT_FREE = 1 << 29           # 512 MB of free memory are kept

STAMP = ("segments_id", "segment_settings", "training_settings", "protocol", "seed", "history")
FINISHED = (*STAMP, "fitted", "thresholds", "calibration", "levels", "part_limits", "score_settings", "weights")
STOPPED = (*STAMP, "head", "optimizer", "schedule", "best", "best_state")


def stage_parser(description):
    """Parser with the flags of training and evaluation; `description` is the script's docstring."""
    parser = machine_parser(description)
    parser.add_argument("--protocol", choices=config.PROTOCOLS, default=config.PROTOCOL)
    parser.add_argument("--seed", type=int, default=config.SEED, help="another seed, another checkpoint file")
    return parser


def machine_parser(description):
    """Parser of a script that goes over both protocols: which data, on what."""
    settings.check()
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--simulated", action="store_true", help="use the simulated database")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=config.THREADS, help="0: one a core")
    return parser


def parsed(parser, argv):
    """Parsed flags, with negative numbers refused."""
    args = parser.parse_args(argv)
    if args.threads < 0 or getattr(args, "seed", 0) < 0:
        parser.error("--threads and --seed are whole numbers from 0")
    return args


def prepare(args):
    """(database, torch.device, Segments) for the flags, threads set."""
    database, device = machine(args)
    return database, device, load_segments(database)


def machine(args):
    """(database, torch.device) for the flags, threads set."""
    device = device_of(processes.device_name(args.device))
    use_threads(args.threads or processes.cores())
    return settings.database("simulated") if args.simulated else settings.database("mitdb"), device


def use_threads(n):
    """So many threads for torch and for numpy's and scikit-learn's matrix products, which have pools of their own.

    With another number of them a product is summed in another order and the last digits differ.
    """
    torch.set_num_threads(n)
    threadpool_limits(n)
    keep_memory()


def keep_memory():
    """Tell the C library to keep freed memory for the next array instead of giving it back to the system.

    A batch's arrays of 6 to 24 MB are freed and asked for again at every step, and the system then hands over and
    clears each of their pages anew: 20,000 page faults a training step, a tenth to a third of its time.
    Arrays above KEPT_BLOCK still go back at once. Only glibc has these settings; elsewhere nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK)
    mallopt(M_TRIM_THRESHOLD, KEPT_FREE)


def device_of(name):
    """torch.device, sure to be usable here."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}. Use --device cpu.") from error
    return device


def normal_validation(segments, protocol):
    """(k,) row numbers of the normal beats of the validation part: early stopping, scale, thresholds."""
    rows = segments.part(protocol, "validation")
    rows = rows[segments.rows["y"][rows] == 0]
    if not len(rows):
        raise UserError(f"{protocol} protocol: no normal beat in the validation part. "
                        "Choose other validation patients or fractions in config.py, then: python dataset.py")
    return rows


def stamp_of(segments, protocol, seed):
    """What a checkpoint was trained on and with."""
    names = settings.TRAINING_SETTINGS + (settings.ARCHIVE_SETTINGS if protocol == "archive" else ())
    return {"database": segments.meta["database"], "simulated": segments.meta["simulated"],
            "segments_id": segments.meta["id"], "segment_settings": segments.meta["settings"],
            "protocol": protocol, "seed": seed, "training_settings": settings.snapshot(names),
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__}}


def run_command(database, script, protocol, seed, *flags):
    """The command line that runs a stage for this protocol and seed."""
    seed_flag = ["--seed", str(seed)] if seed != config.SEED else []
    return command_of(database, "--protocol", protocol, *seed_flag, *flags, script=script)


def stale(stored, stamp):
    """Why a checkpoint does not belong to these segments and settings; [] if it does."""
    archive = settings.ARCHIVE_SETTINGS if stored["protocol"] == "archive" else ()
    why = settings.differences(stored["training_settings"], settings.TRAINING_SETTINGS + archive)
    why += settings.differences(stored["segment_settings"], settings.SEGMENT_SETTINGS)
    if not why and stored["segments_id"] != stamp["segments_id"]:
        why.append("the archive holds other shards" if archive else "data/segments.npz holds other beats or splits")
    same = all(stored[k] == stamp[k] for k in ("protocol", "seed"))
    return why if same else why + ["another protocol or seed"]


def read_checkpoint(path, command, needs):
    """(model, stored) of a checkpoint that holds the keys `needs` (FINISHED or STOPPED).

    UserError naming `command` if it is missing, damaged or of the other kind.
    """
    try:
        model, stored = load_checkpoint(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing. Make it with: {command}") from error
    except ValueError as error:
        raise UserError(f"{error}. Delete it and make it again with: {command}") from error
    lacking = [key for key in needs if key not in stored]
    if lacking:
        raise UserError(f"{path}: lacks {', '.join(lacking)}: not the file its name says. "
                        f"Delete it and make it again with: {command}")
    return model, stored
