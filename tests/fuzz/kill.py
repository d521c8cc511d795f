"""detect.py killed at random moments: PYTHONPATH=tests:. python -m fuzz.kill 50

A folder of recordings is gone through by a process that is killed (SIGKILL), again and again, into
the same output; with one job a second process reads ahead and draws. After each kill, what counts
as done has the bytes of a run left alone; so has everything after a last run that is not killed,
and nothing else is left. Says how many kills fell where.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
RECORDINGS = 6
ENDS = ("", ".csv", ".png", ".html")


def write_recordings(folder):
    """Short recordings of beats, one of them damaged."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(RECORDINGS):
        wave = np.exp(-np.square(np.arange(20 * 250) % (180 + 9 * k) - 40) / 18)
        np.save(folder / f"r{k}.npy", wave + 0.02 * rng.normal(size=len(wave)))
    (folder / "bad.edf").write_bytes(b"no EDF")


def start(folder, out, *flags):
    command = [sys.executable, "detect.py", str(folder), "--fs", "250", "--out", str(out), "--html",
               "--threads", "2", *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True)


def finish(process):
    """One failed: status 1, and no traceback."""
    _, said = process.communicate(timeout=600)
    assert process.returncode == 1 and b"1 of %d recordings failed" % (RECORDINGS + 1) in said, said.decode()
    assert b"Traceback" not in said, said.decode()


def files_of(out):
    """{name: bytes}, of the page without the ids that bokeh draws anew each time."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(out))] = path.read_bytes()
    return {name: b"" if name.startswith("r") and name.endswith(".html") else data
            for name, data in found.items()}


def check_done(out, whole):
    """How many recordings count as done; each has the bytes of a run left alone."""
    files = files_of(out)
    done = [name for name in files if name.endswith(".ecgad.json") and ".part-" not in name]
    for name in done:
        stem = name.removesuffix(".json")
        for end in (*ENDS, ".json"):
            assert files[stem + end] == whole[stem + end], f"{stem}{end} is not whole"
    # whatever has its name is whole, done or not
    for name, data in files.items():
        assert ".part-" in name or name.startswith("summary") or data == whole[name], name
    return len(done)


def wait_for_writes(out, count, process):
    """Until so many names have come or gone in the output folder, or the process has ended."""
    seen = set(os.listdir(out)) if out.exists() else set()
    while count > 0 and process.poll() is None:
        time.sleep(0.002)
        now = set(os.listdir(out)) if out.exists() else set()
        count -= len(now ^ seen)
        seen = now


def kills(count, jobs="1", seed=0):
    """{recordings that were done: kills that fell there} of so many kills."""
    rng = random.Random(seed)
    fell = {}
    with tempfile.TemporaryDirectory(prefix="kill-") as temporary:
        folder = Path(temporary, "in")
        write_recordings(folder)
        finish(start(folder, Path(temporary, "whole")))
        whole = files_of(Path(temporary, "whole"))

        out = Path(temporary, "out")
        for _ in range(count):
            # what is done is skipped: once all is, from the beginning
            if len(list(out.glob("*.json"))) == RECORDINGS:
                shutil.rmtree(out)
            process = start(folder, out, "--jobs", jobs)
            wait_for_writes(out, rng.randint(0, 36), process)
            time.sleep(rng.uniform(0, 0.3))
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.killpg(process.pid, signal.SIGKILL)
            killed = process.wait() == -signal.SIGKILL
            process.communicate()
            where = check_done(out, whole) if killed else "ended first"
            fell[where] = fell.get(where, 0) + 1

        finish(start(folder, out, "--jobs", jobs))
        left = files_of(out)
        assert left == whole, sorted(left.keys() ^ whole.keys()) or "other bytes"
    return fell


if __name__ == "__main__":
    found = kills(int(sys.argv[1]), *sys.argv[2:])
    print(f"{sum(found.values())} kills: after a last run every file is that of a run left alone")
    for where, count in sorted(found.items(), key=str):
        print(f"  {count} with {where} of {RECORDINGS} recordings done")
