"""Timings: candidates in turn, each in a process of its own; whole commands, with their memory."""

import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch
from tqdm import tqdm

from pipeline import runtime
from pipeline.errors import UserError

WAIT_S = 0.02   # between two looks whether a command has ended
MATRIX = 2048                          # side of the large matrix product: the machine's limit
PRODUCT_GFLOP = 2 * MATRIX ** 3 / 1e9  # its operations


# --- taking turns ---------------------------------------------------------------------------------

def prepare(make, args):
    """Make the work of this process, and do it once before the clock runs."""
    # a process has one work: what is timed is not sent to it again
    global work
    work = make(*args)
    work()


def time_once():
    """Seconds of the work of this process."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(candidates, repeats):
    """{name: [seconds]} of {name: (function that makes the work, its arguments)}, in turn.

    Raises BrokenProcessPool where a candidate dies.
    """
    # a forked process would inherit threads and memory of this one
    context = multiprocessing.get_context("spawn")
    times = {name: [] for name in candidates}
    with ExitStack() as stack:
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, context, prepare, candidate))
                 for name, candidate in candidates.items()}

        # one timing of each in a round: a machine's speed drifts, and all of them drift with it
        for _ in tqdm(range(repeats), desc=" / ".join(candidates), disable=None):
            for name, pool in pools.items():
                times[name].append(pool.submit(time_once).result())
    return times


def time_group(what, candidates, amounts, against, repeats):
    """A row a candidate: median, rate, and the median of the ratios to `against`, turn by turn.

    amounts: what is done in a timing and its unit, (number, "segments"), or ({name: number}, unit).
    """
    times = alternate(candidates, repeats)
    amount, unit = amounts
    rows = []

    for name, seconds in times.items():
        median = statistics.median(seconds)
        done = amount[name] if isinstance(amount, dict) else amount

        # of the same round: what slowed one down slowed the other down as well
        ratios = [b / a for a, b in zip(seconds, times[against])]
        rows.append({"what": what, "name": name, "times_s": seconds, "median_s": median,
                     "rate": done / median, "unit": f"{unit}/s", "against": against,
                     "times_as_fast": statistics.median(ratios)})
    return rows


def matrix_product(threads, times):
    """So many products of two large matrices."""
    # the usual yardstick of what the cores can do: 148 GFLOP/s on two (docs/results.md)
    runtime.use_threads(threads)
    a = torch.randn(MATRIX, MATRIX)
    out = torch.empty(MATRIX, MATRIX)
    return lambda: [torch.mm(a, a, out=out) for _ in range(times)]


# --- whole commands -------------------------------------------------------------------------------

def resident_mb(pid):
    """Memory of a process and all below it, in MB (Linux), what they share counted once; 0 for one
    that has ended.
    """
    try:
        # "proportional": of a page that two of them share each has half
        status = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0

    # one that has ended and was not waited for yet has no such line
    own = status.split("Pss:")[1].split()[0] if "Pss:" in status else 0
    return int(own) / 1024 + sum(map(resident_mb, children))


def time_command(folder, *command, look_s=None):
    """{"command", "seconds", "peak_mb"} of a script and its arguments, run in `folder`; look_s:
    time between two looks at its memory, None: it is not looked at, and "peak_mb" is 0.

    The system counts the pages anew at each look, half a core's work where there are many of them:
    at 0.05 s a command takes a tenth longer. Raises UserError with what it printed where it fails.
    """
    command = list(map(str, command))
    peak = 0

    # a file: a pipe that nobody reads would stop the command when full
    with tempfile.TemporaryFile("w+") as printed:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *command], cwd=folder,
                                   stdout=subprocess.DEVNULL, stderr=printed)
        while process.poll() is None:
            # again and again: the system keeps no peak of a sum over processes
            if look_s:
                peak = max(peak, resident_mb(process.pid))
            time.sleep(look_s or WAIT_S)
        seconds = time.perf_counter() - start

        if process.returncode:
            printed.seek(0)
            raise UserError(f"python {' '.join(command)}: exit status {process.returncode}\n"
                            f"{printed.read()}")

    return {"command": " ".join(command), "seconds": seconds, "peak_mb": peak}
