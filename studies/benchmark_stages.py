"""Time and memory of whole commands of the project."""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

import config
from pipeline import errors, settings

POLL_S = 0.02         # between two looks at a stage's memory


def resident_mb(pid):
    """Memory of a process and all below it, in MB (Linux); 0 for one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, ValueError):
        return 0
    own = status.split("VmRSS:")[1].split()[0] if "VmRSS:" in status else 0
    return int(own) / 1024 + sum(map(resident_mb, children))


def stage(folder, *command):
    """{"command", "seconds", "peak_mb"} of a script and its arguments, run in `folder`.

    Raises UserError with what it printed where it fails.
    """
    command, peak = list(map(str, command)), 0
    with tempfile.TemporaryFile("w+") as printed:  # a pipe that nobody reads would stop it when full
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *command], cwd=folder, stdout=subprocess.DEVNULL, stderr=printed)
        while process.poll() is None:
            peak = max(peak, resident_mb(process.pid))
            time.sleep(POLL_S)
        seconds = time.perf_counter() - start
        if process.returncode:
            printed.seek(0)
            raise errors.UserError(f"python {' '.join(command)}: exit status {process.returncode}\n{printed.read()}")
    return {"command": " ".join(command), "seconds": seconds, "peak_mb": peak}


def stages(database):
    """Each command of the pipeline in a copy of the project: its code, and its records by a link."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for path in (*settings.ROOT.glob("*.py"), *settings.ROOT.glob("*.txt")):
            shutil.copy(path, folder)
        records = database.records_dir()
        (folder / "data").mkdir()
        (folder / "data" / records.name).symlink_to(records)
        commands = ["dataset.py", *(f"{script} --protocol {protocol}" for protocol in config.PROTOCOLS
                                    for script in ("train_mitbih.py", "evaluate.py", "visualize.py")),
                    f"detect.py data/{records.name}/{database.records[0]}.hea --out found"]
        return [stage(folder, *command.split()) for command in tqdm(commands, desc="stages", disable=None)]
