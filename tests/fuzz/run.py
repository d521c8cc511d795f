"""Feed spoilt files to a target and keep those that end otherwise than in a result or a UserError.

    PYTHONPATH=tests:. python -m fuzz.run TARGET --seconds 60 [--found FOLDER] [--corpus FOLDER]

TARGET "all" is each in turn, for its share of the seconds: `make fuzz SECONDS=600`.

Atheris (requirements/fuzz.txt) mutates valid files, and keeps what reaches new lines of the
readers. An error that is new by its type and line goes to FOLDER/TARGET-NAME; what ends the process
itself (a crash in C, more than 20 s or 1 GB) goes there as crash-, timeout- or oom-. Says how many.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import atheris

# large libraries first: only what is loaded below is watched for new lines
import matplotlib.figure  # noqa: F401
import models  # noqa: F401
import pandas  # noqa: F401
import scipy.io  # noqa: F401
import scipy.signal  # noqa: F401
import sklearn  # noqa: F401
import soundfile  # noqa: F401

with atheris.instrument_imports(include=["recording", "wfdb", "ecgdatakit"]):
    from fuzz import targets

SEEN = {}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=["all", *targets.TARGETS])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--found", type=Path, default=Path("found"))
    parser.add_argument("--corpus", type=Path, help="kept between runs; default: none")
    args = parser.parse_args()
    args.found.mkdir(parents=True, exist_ok=True)
    if args.target == "all":
        run_all(args)
        return

    folder = tempfile.TemporaryDirectory(prefix="fuzz-")
    path, seeds = targets.TARGETS[args.target][0](Path(folder.name))
    other = tempfile.TemporaryDirectory(prefix="fuzz-")
    corpus = args.corpus or Path(other.name)
    corpus.mkdir(parents=True, exist_ok=True)
    for k, seed in enumerate(seeds):
        (corpus / f"seed{k}").write_bytes(seed)

    def one(data):
        try:
            targets.feed(args.target, path, data)
        except Exception as error:
            keep(args, error, data)

    # ends the process by itself, and so the folder is left behind: a temporary one
    atheris.Setup([sys.argv[0], f"-max_total_time={args.seconds}", "-timeout=20",
                   "-rss_limit_mb=1500", "-print_final_stats=1", "-verbosity=0", "-max_len=40000",
                   f"-artifact_prefix={args.found}/{args.target}-", str(corpus)], one)
    atheris.Fuzz()


def run_all(args):
    """Each target in a process of its own, for its share of the time."""
    seconds = max(1, args.seconds // len(targets.TARGETS))
    for name in targets.TARGETS:
        command = [sys.executable, "-m", "fuzz.run", name, "--seconds", str(seconds), "--found",
                   str(args.found)]
        if args.corpus:
            command += ["--corpus", str(args.corpus / name)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        tried = re.search(rb"number_of_executed_units: (\d+)", done.stdout)
        print(f"{name}: {int(tried[1]) if tried else 0:,} inputs, status {done.returncode}",
              flush=True)

    found = sorted(args.found.iterdir())
    for path in found:
        print(f"  {path}")
    sys.exit(f"{len(found)} inputs end badly: {args.found}" if found else None)


def keep(args, error, data):
    """Write the bytes, once for each type of error and line of the project."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if "/recording/" in frame.filename or "/fuzz/" in frame.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    name = f"{type(error).__name__}-{where}".replace(":", "-")
    if SEEN.setdefault(name, 0) == 0:
        file = args.found / f"{args.target}-{name}-{hashlib.sha256(data).hexdigest()[:8]}"
        file.write_bytes(data)
        print(f"FOUND {file}: {type(error).__name__}: {str(error)[:200]}", flush=True)
    SEEN[name] += 1


if __name__ == "__main__":
    main()
