"""The second process: it reads what the first would read, says what goes wrong, and never stays."""

import io
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import scored_beats
from numpy.testing import assert_array_equal
from PIL import Image

import detect
from pipeline.errors import UserError
from pipeline.settings import ROOT
from recording import pieces
from recording.ahead import LOST, ReadingAhead
from recording.reader import open_recording


# what it is asked for must be at the top of a module
def slow_sum(recording, start, stop):
    time.sleep(0.05)
    return recording.read(0, start, stop).sum(), os.getpid()


def broken(recording, item):
    raise [UserError("mend it"), ZeroDivisionError("no number"), FileNotFoundError(2, "gone", "x"),
           Unsendable("kept here")][item]


class Unsendable(Exception):
    def __reduce__(self):
        raise TypeError("stays")


def hang(recording, item):
    time.sleep(600)


def die(recording, item):
    os.kill(os.getpid(), signal.SIGKILL)


def here(*args):
    return os.getpid(), args


def large(recording, item):
    return np.full(1_000_000, item)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "r.npy"
    np.save(path, np.random.default_rng(0).normal(size=(5000, 2)))
    return path


@pytest.fixture
def second():
    with ReadingAhead() as second:
        yield second


def test_it_reads_what_the_first_process_would(path, second):
    with second.open_recording(path, 250) as there, open_recording(path, 250) as known:
        for name in ("name", "path", "fs_hz", "leads", "units", "calibrated", "n_samples", "start"):
            assert getattr(there, name) == getattr(known, name), name
        assert_array_equal(there.read(1, 100, 900), known.read(1, 100, 900))

        starts = range(0, 4000, 500)
        found = list(there.each(slow_sum, starts, 4500))
        assert [total for total, _ in found] == [t for t, _ in known.each(slow_sum, starts, 4500)]
        assert len({process for _, process in found} | {os.getpid()}) == 2

        # in the order that they are asked for, whenever they are waited for
        early = there.later(here, 1)
        assert there.later(here, 2)()[1] == (2,) and early()[1] == (1,)
        assert known.later(here, 1)() == (os.getpid(), (1,))


def test_the_next_answers_are_made_while_one_is_dealt_with(path, second):
    with second.open_recording(path, 250) as there:
        found = there.each(slow_sum, range(3), 10)
        time.sleep(1)
        begun = time.monotonic()
        assert len(list(found)) == 3 and time.monotonic() - begun < 0.1
        # each is larger than the line between the two holds
        assert [values[-1] for values in there.each(large, range(6))] == list(range(6))


@pytest.mark.parametrize("item, kind, said", [
    (0, UserError, "mend it"), (1, ZeroDivisionError, "no number"), (2, FileNotFoundError, "gone"),
    (3, RuntimeError, "Unsendable: kept here")])
def test_what_goes_wrong_there_is_raised_here_and_it_lives_on(path, second, item, kind, said):
    with second.open_recording(path, 250) as there:
        process = there.later(here)()[0]
        with pytest.raises(kind, match=said) as raised:
            list(there.each(broken, [item]))
        assert kind is RuntimeError or raised.value.place.startswith("test_ahead.py, line ")
        assert there.later(here)()[0] == process


def test_a_recording_that_cannot_be_read_is_the_same_error(tmp_path, path, second):
    (tmp_path / "bad.edf").write_bytes(b"no EDF")
    with pytest.raises(UserError) as known:
        open_recording(tmp_path / "bad.edf")
    with pytest.raises(UserError) as raised, second.open_recording(tmp_path / "bad.edf"):
        pass
    assert str(raised.value) == str(known.value)

    with second.open_recording(path, 250) as there:
        with pytest.raises(ValueError, match="no samples 0 to 9999"):
            there.read(0, 0, 9999)
        assert len(there.read(0, 0, 9)) == 9


def test_a_recording_that_is_left_in_the_middle_does_not_hold_up_the_next(path, second):
    begun = time.monotonic()
    with pytest.raises(KeyError), second.open_recording(path, 250) as there:
        next(there.each(slow_sum, range(3), 10))
        there.each(hang, [0])
        raise KeyError
    with second.open_recording(path, 250) as there:
        assert len(there.read(0, 0, 9)) == 9
    assert time.monotonic() - begun < 20


def test_a_killed_process_is_told_of_and_started_anew(path, second):
    with pytest.raises(UserError, match=LOST[:30]), second.open_recording(path, 250) as there:
        list(there.each(die, [0]))
    with second.open_recording(path, 250) as there:
        assert len(there.read(0, 0, 9)) == 9


@pytest.mark.alone
@pytest.mark.parametrize("how, status", [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_it_ends_with_the_first_process(path, tmp_path, how, status):
    """Whatever ends that; after Ctrl-C, which both are sent, without a word of its own."""
    code = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from pipeline import errors
from recording.ahead import ReadingAhead
import test_ahead
def main():
    with ReadingAhead() as second, second.open_recording(Path({str(path)!r}), 250) as there:
        print(there.later(test_ahead.here)()[0], flush=True)
        list(there.each(test_ahead.slow_sum, range(10000), 5000))
errors.run(main)
"""
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.PIPE, start_new_session=True)
    other = int(first.stdout.readline())
    assert other != first.pid
    if how == signal.SIGKILL:
        first.kill()
    else:
        os.killpg(first.pid, how)
    _, said = first.communicate(timeout=60)
    assert first.returncode == status and "Traceback" not in said, said

    # a zombie waits for its new parent; of one that runs there is a command line
    for _ in range(100):
        try:
            with open(f"/proc/{other}/cmdline") as file:
                if not file.read():
                    break
        except FileNotFoundError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("it is still there")


def test_for_a_picture_beats_are_copied_without_what_it_does_not_show():
    scored = scored_beats([100, 300, 500], [0, 5, np.nan], 1000)
    scored.beats.segments = scored.beats.z = open   # an object that stays here
    scored.beats.errors = lambda: None
    there = pickle.loads(pickle.dumps(scored.for_picture()))
    for name in ("samples", "excess", "flagged", "rr_before_s", "unreadable_s"):
        assert_array_equal(getattr(there, name), getattr(scored, name))
    assert there.found.kind is None and there.beats.segments is None
    assert scored.found.kind is not None and scored.beats.segments is open


def test_a_recording_may_take_too_long_there_too(path, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "read_piece", lambda *_: time.sleep(600))
    begun = time.monotonic()
    with pytest.raises(UserError, match="not done within\\s+2 s"):
        detect.main([str(path), "--fs", "250", "--out", str(tmp_path / "out"), "--threads", "2",
                     "--timeout", "2"])
    assert time.monotonic() - begun < 60 and not list((tmp_path / "out").glob("r.ecgad*"))


def test_files_are_the_same_with_and_without_it(tmp_path):
    """The whole of detect.py, over two recordings, one of them damaged."""
    rng = np.random.default_rng(0)
    wave = np.exp(-np.square(np.arange(40 * 250) % 210 - 90) / 18)
    np.save(tmp_path / "r.npy", np.stack([wave, -wave], 1) + 0.02 * rng.normal(size=(10000, 2)))
    (tmp_path / "bad.edf").write_bytes(b"no EDF")

    files = {}
    for threads in ("1", "2"):
        out = tmp_path / threads
        with pytest.raises(UserError, match="1 of 2 recordings failed"):
            detect.main([str(tmp_path / "r.npy"), str(tmp_path / "bad.edf"), "--fs", "250", "--out",
                         str(out), "--threads", threads])
        files[threads] = {path.name: path.read_bytes() for path in sorted(out.iterdir())}

    # with another number of threads the last digits of what the network draws are others
    pictures = [Image.open(io.BytesIO(files[threads].pop("r.ecgad.png"))) for threads in files]
    assert (np.asarray(pictures[0]) != np.asarray(pictures[1])).mean() < 1e-5
    assert len(files["1"]) == 5 and files["1"] == files["2"]
