"""Killed, out of disk, or twice at once: what detect.py leaves is whole, and a repeat completes it.
"""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from fuzz import kill

import detect
from pipeline.artefacts import whole_file
from pipeline.errors import UserError
from recording import cluster

pytestmark = pytest.mark.slow


def run(folder, out, *flags):
    detect.main([str(folder), "--fs", "250", "--out", str(out), "--threads", "1", *flags])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    time_s = np.arange(15 * 250) / 250
    for k in range(2):
        beats = np.exp(-np.square(time_s % (0.7 + k / 10) - 0.2) * 900)
        np.save(tmp_path / "in" / f"r{k}.npy", beats)
    return tmp_path / "in"


def test_killed_twice(monkeypatch):
    """`make kill` does it fifty times."""
    monkeypatch.setattr(kill, "RECORDINGS", 3)
    assert sum(kill.kills(2).values()) == 2    # fifty of them: make kill


def test_two_runs_into_one_folder(tmp_path):
    """Both end as one does alone: neither takes the other's half-written file for its own."""
    kill.write_recordings(tmp_path / "in")
    kill.finish(kill.start(tmp_path / "in", tmp_path / "alone"))
    both = [kill.start(tmp_path / "in", tmp_path / "out", "--force") for _ in range(2)]
    for process in both:
        kill.finish(process)
    assert kill.files_of(tmp_path / "out") == kill.files_of(tmp_path / "alone")


def test_a_file_that_another_run_is_writing_is_left_to_it(tmp_path):
    """A killed run's is cleared away; names of files are no patterns."""
    path = tmp_path / "r[1].csv"
    gone = subprocess.Popen(["true"])
    gone.wait()
    for pid, left in ((os.getppid(), True), (gone.pid, False), (os.getpid(), False)):
        part = tmp_path / f".part-{pid}-{path.name}"
        part.write_text("half")
        with whole_file(path) as mine:
            mine.write_text("whole")
        assert part.exists() == left and path.read_text() == "whole"


def test_a_disk_that_is_full_at_each_write_in_turn(folder, tmp_path, monkeypatch):
    """One line; whatever is there is whole; with room again, the bytes are those of before."""
    run(folder, tmp_path / "whole")
    whole = kill.files_of(tmp_path / "whole")
    out = tmp_path / "out"

    real = os.replace
    n = full_at = 0

    def replace(source, target):
        nonlocal n
        # libraries write caches of their own
        own = Path(target).is_relative_to(tmp_path)
        n += own
        if own and n == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    for full_at in range(1, 100):
        n = 0
        shutil.rmtree(out, ignore_errors=True)
        try:
            run(folder, out)
        except UserError as error:
            # a line that is too long is broken, wherever the folder's name ends it
            assert "No space left on device" in " ".join(str(error).split()), str(error)
        files = kill.files_of(out)
        for name, data in files.items():
            assert name.startswith("summary") or data == whole[name], name
        for name in files:
            if name.endswith(".json"):
                assert {name[:-5] + end for end in ("", ".csv", ".png")} <= files.keys()
        if n < full_at:
            break
    assert full_at == 11 and files == whole   # four files each, and the two of the summary

    # what failed is done by the next run, what was done is not
    full_at = 3
    n = 0
    shutil.rmtree(out)
    with pytest.raises(UserError, match="1 of 2 recordings failed"):
        run(folder, out)
    full_at = 0
    run(folder, out)
    assert kill.files_of(out) == whole


def test_no_room_for_what_a_reviewer_changed(tmp_path, monkeypatch):
    pd.DataFrame({"sample": [100, 200], "kind": ["N", "V"], "flag": [0, 1],
                  "state": ["scored"] * 2}).to_csv(tmp_path / "r.ecgad.csv", index=False)
    wfdb.wrann("r", "ecgad", np.array([100, 200]), ["N", "V"], fs=360, write_dir=str(tmp_path))
    (tmp_path / "r.reviewed.csv").write_text("sample,reviewed_kind,verdict\n200,N,rejected\n")
    before = sorted(os.listdir(tmp_path))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "r.reviewed")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):  # errors.run makes a line of it
        detect.main(["--reviewed", str(tmp_path / "r.reviewed.csv")])
    assert sorted(os.listdir(tmp_path)) == before
    monkeypatch.undo()
    detect.main(["--reviewed", str(tmp_path / "r.reviewed.csv")])
    assert wfdb.rdann(str(tmp_path / "r"), "reviewed").symbol == ["N", "N"]


def test_a_full_disk_is_not_tried_again():
    assert errno.ENOSPC not in cluster.PASSING
