"""Tasks on this machine and on a real cluster: killed workers, bad records, edited settings."""

import os
import signal
import sys
import time
from functools import partial

import cloudpickle
import pytest

from conftest import Project, start_dask
from pipeline import errors, settings
from pipeline.errors import UserError
from recording import cluster

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.alone
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers do not have this file


def note(path, item):
    """A line a start of a task, from any process."""
    with open(path, "a") as file:
        file.write(f"{item}\n")


def starts(path):
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def task(log, seconds, item):
    note(log, item)
    time.sleep(seconds)
    return 2 * item


def troubled(log, item):
    """1: a bad record, 2: a defect, 3: a killed process, 4: well at its third start."""
    note(log, item)
    if item == 1:
        raise errors.UserError("1.hea: bad. Leave it out.")
    if item == 2:
        return 1 / 0
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 4 and starts(log).count(4) < 3:
        raise ConnectionResetError("gone")
    return item


def outcomes(*args, **kwargs):
    """{item: (result, why)}, each item once."""
    results = list(cluster.each(*args, **kwargs))
    found = {item: (result, why) for item, result, why in results}
    assert len(found) == len(results)
    return found


# --- on this machine ----------------------------------------------------------------------------

@pytest.mark.parametrize("waits_s, fourth", [((0, 0), (4, None)), ((0,), (None, "4: gone"))])
def test_what_may_pass_is_tried_again_and_all_else_is_listed(tmp_path, monkeypatch, waits_s,
                                                             fourth):
    monkeypatch.setattr(cluster, "WAITS_S", waits_s)
    found = outcomes(partial(troubled, tmp_path / "log"), [0, 1, 2, 4])
    why = found.pop(2)[1]
    assert why.startswith("ZeroDivisionError: division by zero (test_cluster.py, line ")
    assert found == {0: (0, None), 1: (None, "1.hea: bad. Leave it out."), 4: fourth}
    assert starts(tmp_path / "log") == [0, 1, 2, 4] + [4] * len(waits_s)


def test_killed_process_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="--jobs 2 was killed.*fewer --jobs"):
        outcomes(partial(troubled, tmp_path / "log"), [0, 3], 2)


# --- who is there -------------------------------------------------------------------------------

@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense"])
def test_an_unreachable_scheduler_is_said_in_time(address, monkeypatch):
    assert cluster.CONNECT_S <= 10
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    before = time.monotonic()
    with pytest.raises(UserError, match=f"--cluster {address}: no dask scheduler answers"):
        outcomes(abs, [1], address=address)
    assert time.monotonic() - before < 4


@pytest.fixture
def own_cluster(tmp_path_factory):
    """(address, [scheduler, worker]): a cluster of the test's own."""
    with start_dask(tmp_path_factory, ["--no-nanny"]) as found:
        yield found


@pytest.mark.parametrize("lost, said", [(0, "connection to the scheduler was lost"),
                                        (1, "no worker can do it")])
def test_a_cluster_lost_in_the_middle_is_said_in_time(own_cluster, tmp_path, monkeypatch, lost,
                                                      said):
    address, processes = own_cluster
    monkeypatch.setattr(cluster, "LOST_S", 1)
    monkeypatch.setattr(cluster, "CONNECT_S", 2)
    running = cluster.each(partial(task, tmp_path / "log", 0.1), range(1000), address=address)
    next(running)
    processes[lost].kill()
    before = time.monotonic()
    with pytest.raises(UserError, match=said):
        list(running)
    assert time.monotonic() - before < 12
    if lost:
        with pytest.raises(UserError, match="has no worker. Start some with: dask worker"):
            outcomes(abs, [1], address=address)


def test_workers_with_other_versions_are_refused(dask_cluster, monkeypatch):
    monkeypatch.setattr(cluster, "versions", lambda: {"torch": "1.0.1"})
    with pytest.raises(UserError, match=r"a worker has .'torch': '\d.* '1\.0\.1'.*pip install"):
        outcomes(abs, [1], address=dask_cluster)


# --- on the cluster -----------------------------------------------------------------------------

def surroundings(sent, item):
    import config as there
    from recording import cluster
    return os.listdir("."), there.__file__, cluster.local(sent).read_text(), there.LATENT_DIM


def test_modules_settings_and_files_reach_workers(dask_cluster, tmp_path, monkeypatch):
    """A worker outlives its clients: it must use today's settings, not those of the first one."""
    weights = tmp_path / "weights.pt"
    (tmp_path / "own").mkdir()
    project = Project(tmp_path / "own")
    monkeypatch.setattr(settings, "ROOT", project.folder)
    for latent in (16, 77, 16):
        project.set(LATENT_DIM=latent)
        weights.write_text(f"weights {latent}")
        found = outcomes(partial(surroundings, weights), range(4), address=dask_cluster,
                         files=[weights])
        for (listed, file, sent, dim), why in found.values():
            assert why is None and not any(name.endswith(".py") for name in listed)
            assert "ecg-" in file and sent == f"weights {latent}" and dim == latent


@pytest.fixture
def client(dask_cluster):
    with distributed.Client(dask_cluster, set_as_default=False) as client:
        yield client


def test_a_killed_worker_costs_its_own_task_alone(dask_cluster, client, tmp_path):
    log, results = tmp_path / "log", []
    for outcome in cluster.each(partial(task, log, 0.1), range(24), address=dask_cluster):
        results.append(outcome)
        if len(results) == 6:
            os.kill(min(client.run(os.getpid).values()), signal.SIGKILL)
    assert sorted(results) == [(item, 2 * item, None) for item in range(24)]
    # the one it was at, if it was killed in the middle of one, and perhaps one whose result had not
    # been fetched: never all of them anew
    assert 24 <= len(starts(log)) <= 26


def test_poisoned_records_are_listed_and_their_neighbours_are_done(dask_cluster, tmp_path):
    items = [0, 1, 3, 5, 6, 7, 8]
    found = outcomes(partial(troubled, tmp_path / "log"), items, address=dask_cluster)
    assert {item for item, (_, why) in found.items() if why is None} == {0, 5, 6, 7, 8}
    assert found[1][1] == "1.hea: bad. Leave it out."
    assert found[3][1].startswith("3: every worker that took it was lost, by itself")
    assert starts(tmp_path / "log").count(3) == 4


def test_few_are_in_flight_and_nothing_is_left_when_the_caller_stops(dask_cluster, client,
                                                                     tmp_path):
    waiting = lambda: client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
    log, most = tmp_path / "log", cluster.AHEAD * 2
    running = cluster.each(partial(task, log, 0.05), range(10**6), address=dask_cluster)
    for _ in range(10):
        next(running)
    assert 0 < waiting() <= most + 1
    running.close()
    time.sleep(2)
    assert waiting() == 0 and len(starts(log)) <= 10 + 2 * most
