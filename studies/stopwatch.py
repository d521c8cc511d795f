"""Timings: candidates in turn, each in a process of its own; whole commands, with their memory."""

import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from pipeline.errors import UserError

JOIN_S = 10     # for a candidate's process to end by itself
POLL_S = 0.02   # between two looks at a command's memory


# --- taking turns ---------------------------------------------------------------------------------

def serve(pipe, make, args):
    """Body of a candidate's process: once before the clock runs, then a timing for each word."""
    work = make(*args)
    work()
    pipe.send(None)
    while pipe.recv():
        start = time.perf_counter()
        work()
        pipe.send(time.perf_counter() - start)


def alternate(candidates, repeats):
    """{name: [seconds]} of {name: (function that makes the work, its arguments)}, in turn.

    Raises EOFError where a candidate dies.
    """
    context = multiprocessing.get_context("spawn")
    pipes = {}
    processes = []
    try:
        for name, (make, args) in candidates.items():
            pipes[name], other = context.Pipe()
            processes.append(context.Process(target=serve, args=(other, make, args), daemon=True))
            processes[-1].start()
            other.close()       # a candidate that dies ends the run with EOFError, not by waiting
            pipes[name].recv()

        times = {name: [] for name in candidates}
        for _ in tqdm(range(repeats), desc=" / ".join(candidates), disable=None):
            for name, pipe in pipes.items():
                pipe.send(True)
                times[name].append(pipe.recv())

        for pipe, process in zip(pipes.values(), processes):
            pipe.send(False)
            process.join(JOIN_S)  # what is killed leaves warnings behind
    finally:
        for process in processes:
            process.kill()
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
        ratios = [b / a for a, b in zip(seconds, times[against])]
        rows.append({"what": what, "name": name, "times_s": seconds, "median_s": median,
                     "rate": done / median, "unit": f"{unit}/s", "against": against,
                     "times_as_fast": statistics.median(ratios)})
    return rows


# --- whole commands -------------------------------------------------------------------------------

def resident_mb(pid):
    """Memory of a process and all below it, in MB (Linux); 0 for one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = status.split("VmRSS:")[1].split()[0] if "VmRSS:" in status else 0
    return int(own) / 1024 + sum(map(resident_mb, children))


def time_command(folder, *command):
    """{"command", "seconds", "peak_mb"} of a script and its arguments, run in `folder`.

    Raises UserError with what it printed where it fails.
    """
    command = list(map(str, command))
    peak = 0

    # a file: a pipe that nobody reads would stop the command when full
    with tempfile.TemporaryFile("w+") as printed:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *command], cwd=folder,
                                   stdout=subprocess.DEVNULL, stderr=printed)
        while process.poll() is None:
            peak = max(peak, resident_mb(process.pid))
            time.sleep(POLL_S)
        seconds = time.perf_counter() - start
        if process.returncode:
            printed.seek(0)
            raise UserError(f"python {' '.join(command)}: exit status {process.returncode}\n"
                            f"{printed.read()}")
    return {"command": " ".join(command), "seconds": seconds, "peak_mb": peak}
