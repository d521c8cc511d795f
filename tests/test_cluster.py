"""Tasks on this machine and on a real cluster of processes: killed workers, poisoned records, edited settings."""

import os
import shutil
import signal
import sys
import time
from functools import partial

import pytest

from recording import cluster
import config
from pipeline import errors, settings
from pipeline.errors import UserError

cloudpickle = pytest.importorskip("cloudpickle")  # comes with dask
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
    """1 is a bad record, 2 a defect, 3 kills its process, 4 succeeds at its third start, 5 is not there."""
    note(log, item)
    if item == 1:
        raise errors.UserError("1.hea: bad. Leave it out.")
    if item == 2:
        return 1 / 0
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 4 and starts(log).count(4) < 3:
        raise ConnectionResetError("gone")
    if item == 5:
        raise FileNotFoundError(2, "No such file or directory", "five.hea")
    return item


def outcomes(*args, **kwargs):
    results = list(cluster.each(*args, **kwargs))
    assert len({item for item, _, _ in results}) == len(results)
    return {item: (result, why) for item, result, why in results}


# --- on this machine ----------------------------------------------------------------------------

@pytest.mark.parametrize("jobs", [1, 2])
def test_what_may_pass_is_tried_again_and_all_else_is_listed(tmp_path, monkeypatch, jobs):
    if jobs == 1:  # other processes wait in earnest: a second
        monkeypatch.setattr(cluster, "WAITS_S", (0, 0, 0))
    items = [0, 1, 2, 5, 6] + [4] * (jobs == 1)
    found = outcomes(partial(troubled, tmp_path / "log"), items, jobs)
    assert found[0] == (0, None) and found[6] == (6, None) and set(found) == set(items)
    assert found[1] == (None, "1.hea: bad. Leave it out.")
    assert found[2][1].startswith("ZeroDivisionError: division by zero (test_cluster.py, line ")
    assert found[5] == (None, "five.hea: No such file or directory")
    counts = {item: starts(tmp_path / "log").count(item) for item in items}
    assert counts == {item: 3 if item == 4 else 1 for item in items}
    assert found.get(4, (4, None)) == (4, None)


def test_a_connection_that_stays_lost_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "WAITS_S", (0,))
    found = outcomes(partial(troubled, tmp_path / "log"), [4])
    assert found[4] == (None, "4: gone") and starts(tmp_path / "log") == [4, 4]


def test_killed_process_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="--jobs 2 was killed.*fewer --jobs"):
        outcomes(partial(troubled, tmp_path / "log"), [0, 3], 2)


# --- who is there -------------------------------------------------------------------------------

def test_dask_is_asked_for_by_name_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match="pip install -r requirements-cluster.txt"):
        outcomes(abs, [1], address="tcp://127.0.0.1:1")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense", "http://127.0.0.1:80"])
def test_unreachable_scheduler_is_said_in_time(address, monkeypatch):
    pytest.importorskip("distributed")
    assert cluster.CONNECT_S <= 10
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    before = time.monotonic()
    with pytest.raises(UserError, match=f"--cluster {address}: no dask scheduler answers"):
        outcomes(abs, [1], address=address)
    assert time.monotonic() - before < 4


def test_scheduler_without_workers_is_said(monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    with distributed.LocalCluster(n_workers=0, dashboard_address=None) as empty:
        with pytest.raises(UserError, match="has no worker. Start some with: dask worker"):
            outcomes(abs, [1], address=empty.scheduler_address)


def test_workers_with_other_versions_are_refused(dask_cluster, monkeypatch):
    here = cluster.cluster_worker.versions(cluster.PACKAGES)
    assert here["torch"][0].isdigit() and here["python"].startswith("3.")
    monkeypatch.setattr(cluster.cluster_worker, "versions", versions_elsewhere)
    with pytest.raises(UserError, match=r"has torch 1\.0\.0, expected 1\.0\.1"):
        outcomes(abs, [1], address=dask_cluster)


def versions_elsewhere(packages):
    import sys
    return {"torch": "1.0.1" if "pytest" in sys.modules else "1.0.0"}


# --- on the cluster -----------------------------------------------------------------------------

def surroundings(sent, item):
    from recording import cluster
    import config as settings
    return os.listdir(os.getcwd()), settings.__file__, cluster.local(sent).read_text(), settings.LATENT_DIM


def test_modules_settings_and_files_reach_workers_in_empty_folders(dask_cluster, tmp_path, monkeypatch):
    """A worker outlives its clients: it must use today's settings, not those of the first one."""
    (tmp_path / "weights.pt").write_text("weights")
    for latent in (config.LATENT_DIM, 77, config.LATENT_DIM):
        root = tmp_path / str(latent)
        root.mkdir(exist_ok=True)
        for path in settings.ROOT.glob("*.py"):
            shutil.copy(path, root)
        text = (root / "config.py").read_text()
        (root / "config.py").write_text(text.replace("\nLATENT_DIM = 32", f"\nLATENT_DIM = {latent}"))
        with monkeypatch.context() as patch:
            patch.setattr(config, "ROOT", root)
            found = outcomes(partial(surroundings, tmp_path / "weights.pt"), range(4), address=dask_cluster,
                             files=[tmp_path / "weights.pt"])
        for (listed, file, text, dim), why in found.values():
            assert why is None and not any(name.endswith(".py") for name in listed)
            assert "-modules.zip" in file and text == "weights" and dim == latent


def worker_pids(address):
    from distributed import Client
    with Client(address, set_as_default=False) as client:
        return client.run(os.getpid)


def scheduler_tasks(address):
    from distributed import Client
    with Client(address, set_as_default=False) as client:
        return client.run_on_scheduler(count_tasks)


def count_tasks(dask_scheduler):
    return sum(key.startswith("task-") for key in dask_scheduler.tasks)


def test_killed_worker_loses_nothing_and_only_its_own_task_is_done_again(dask_cluster, tmp_path):
    log, n, results = tmp_path / "log", 24, {}
    for item, result, why in cluster.each(partial(task, log, 0.1), range(n), address=dask_cluster):
        results[item] = result, why
        if len(results) == 6:
            os.kill(sorted(worker_pids(dask_cluster).values())[0], signal.SIGKILL)
    assert results == {item: (2 * item, None) for item in range(n)}
    again = len(starts(log)) - n
    assert 1 <= again <= 2, "the one it was at, and perhaps one whose result had not been fetched"


def test_poisoned_records_are_listed_and_their_neighbours_are_done(dask_cluster, tmp_path):
    found = outcomes(partial(troubled, tmp_path / "log"), [0, 1, 2, 3, 5, 6, 7, 8], address=dask_cluster)
    assert {item for item, (_, why) in found.items() if why is None} == {0, 6, 7, 8}
    assert found[1][1] == "1.hea: bad. Leave it out." and found[2][1].startswith("ZeroDivisionError")
    assert found[3][1].startswith("3: every worker that took it was lost (2 times, by itself)")
    assert starts(tmp_path / "log").count(3) == 4


def test_few_are_in_flight_and_nothing_is_left_when_the_caller_stops(dask_cluster, tmp_path):
    log, most = tmp_path / "log", cluster.AHEAD * 2
    running = cluster.each(partial(task, log, 0.05), range(10**6), address=dask_cluster)
    for _ in range(10):
        next(running)
    assert 0 < scheduler_tasks(dask_cluster) <= most + 1
    running.close()
    deadline = time.monotonic() + 10
    while scheduler_tasks(dask_cluster) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert scheduler_tasks(dask_cluster) == 0
    n = len(starts(log))
    time.sleep(0.5)
    assert len(starts(log)) == n <= 10 + 2 * most
