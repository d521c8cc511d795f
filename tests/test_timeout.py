"""--timeout: a recording that takes too long is listed as failed, and the others are done."""

import sys
import threading
import time

import cloudpickle
import numpy as np
import pytest

import detect
from conftest import ecg_mv
from pipeline.errors import UserError
from recording import cluster, reader

pytestmark = pytest.mark.alone
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers do not have this file


def sleeps(path, fs_hz):
    """An opener whose library waits for ever."""
    time.sleep(60)


def spins(path, fs_hz):
    """One that computes for ever, and takes whatever ends it for a damaged file."""
    while True:
        try:
            for _ in range(10**9):
                pass
        except Exception as error:
            raise UserError("damaged") from error


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "good.npy", ecg_mv(20 * 250))
    (tmp_path / "slow.csv").write_text("1\n2\n")
    return tmp_path


@pytest.mark.parametrize("opener", [sleeps, spins])
def test_the_slow_one_is_listed_and_the_rest_is_done(folder, monkeypatch, opener):
    monkeypatch.setitem(reader.READERS, ".csv", opener)
    before = time.monotonic()
    with pytest.raises(UserError) as caught:
        detect.main([str(folder), "--fs", "250", "--timeout", "5", "--threads", "1"])
    assert time.monotonic() - before < 30
    said = str(caught.value)
    assert said.startswith("1 of 2 recordings failed:\n") and "not done within 5 s" in said
    assert "slow.csv" in said and "good.npy" not in said
    assert (folder / "good.ecgad.json").exists() and not list(folder.glob("slow.ecgad*"))
    assert "not done within 5 s" in (folder / "summary.csv").read_text()


def work(item):
    """1 takes for ever; of a module that a process of --jobs can load."""
    while item == 1:
        time.sleep(0.01)
    return item


def limited(item):
    with cluster.within(0.5, f"{item}.csv"):
        return work(item)


def test_processes_of_their_own_have_the_same_limit():
    found = {item: (result, why) for item, result, why in cluster.each(limited, [0, 1, 2], 2)}
    assert found.pop(1)[1].startswith("1.csv: not done within 0.5 s. Give it longer with --timeout")
    assert found == {0: (0, None), 2: (2, None)}


def test_a_thread_is_ended_and_its_next_task_is_left_alone():
    """As on a worker of a cluster, whose threads are no main thread and go on to the next task."""
    found = []

    def thread():
        found.append(cluster.attempt(limited, 1)[2])
        time.sleep(1)
        found.append(cluster.attempt(limited, 2)[1])

    running = threading.Thread(target=thread)
    running.start()
    running.join(10)
    assert found[0].startswith("1.csv: not done within 0.5 s") and found[1] == 2


def test_workers_of_a_cluster_have_the_same_limit(dask_cluster):
    done = cluster.each(limited, range(6), address=dask_cluster)
    found = {item: (result, why) for item, result, why in done}
    assert found.pop(1)[1].startswith("1.csv: not done within 0.5 s")
    assert found == {item: (item, None) for item in (0, 2, 3, 4, 5)}


def test_no_alarm_is_left_behind(monkeypatch):
    """Neither after the block, nor where it rings on its last line."""
    monkeypatch.setattr(cluster, "AGAIN_S", 0.05)
    for _ in range(20):
        with pytest.raises(UserError, match="not done"), cluster.within(0.01, "x"):
            time.sleep(0.2)
    with cluster.within(0.2, "x"):
        pass
    time.sleep(0.4)


@pytest.mark.parametrize("wrong", ["0", "-1", "nan", "inf", "x"])
def test_nonsense_is_refused(wrong):
    with pytest.raises(SystemExit):
        detect.parse_args(["x.hea", "--timeout", wrong])
