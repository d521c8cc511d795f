"""Several processes under torchrun: one step against one process, whole runs, a killed process."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import models
import train_mitbih
from conftest import ON_SIMULATED, QUICK, Project, archive_of
from pipeline import processes
from pipeline.errors import UserError
from scaling import train_on_shards

TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2")
# Adam's first steps are of full length however small a gradient is, so that rounding grows: one
# process with 1 or with 2 threads differs by 1e-6 in the first step and by 4e-3 in the twelfth.
# Exactness is tested on one step.
ROUNDING = 0.02

# what each of two processes does; the first one's findings are compared with one process here
PROBE = """
import torch, models, train_mitbih
from pipeline import errors, processes, runtime
from scaling import train_on_shards
given = torch.load("given.pt")
with processes.group(torch.device("cpu"), 16, 30, "again"):
    norm = torch.nn.BatchNorm1d(3)
    norm.load_state_dict(given["norm"])
    h = processes.share(given["h"]).clone().requires_grad_()
    (processes.batch_norm(h, norm) * processes.share(given["g"])).sum().backward()
    found = {"norm": norm.state_dict(), "share": len(h),
             "total": processes.total(processes.rank() + 1.5, h.device)}
    for name, value in (("weight", norm.weight.grad), ("bias", norm.bias.grad)):
        found[name] = value.clone()
        torch.distributed.all_reduce(found[name])
    both = [torch.empty_like(h) for _ in range(2)]
    torch.distributed.all_gather(both, h.grad)
    found["h"] = torch.cat(both)

    torch.manual_seed(0)
    model, head = models.ConvAutoencoder(720, 32, 80.0).double(), torch.nn.Linear(32, 4)
    batch_loss = processes.averaged(train_mitbih.batch_loss, model, head)
    loss = batch_loss(*map(processes.share, given["batch"]))
    loss.backward()
    found["loss"] = processes.total(loss.item(), h.device) / 2
    found["grads"] = {name: p.grad.clone()
                      for name, p in [*model.named_parameters(), *head.named_parameters()]}
    found["state"] = model.state_dict()
    try:
        processes.check_agreement({"epochs done": processes.rank()}, "Share it.")
    except errors.UserError as error:
        found["disagreement"] = str(error)
    if runtime.is_first():
        torch.save(found, "found.pt")
    train_mitbih.main(["--database", "simulated", "--force"])
    train_on_shards.main(["archive", "--database", "simulated"])
"""


def given():
    """What the probe starts from; a channel far from 0, a narrow one: digits cancel."""
    torch.manual_seed(3)
    scale, offset = torch.tensor([[1.0, 3.0, 0.01], [0.0, 50.0, 1.0]]).view(2, 1, 3, 1, 1)
    h = torch.randn(8, 3, 1, 5) * scale + offset
    norm = torch.nn.BatchNorm1d(3)
    norm.weight.data = torch.tensor([0.5, 1.0, 2.0])
    return {"norm": norm.state_dict(), "h": h.contiguous(memory_format=torch.channels_last),
            "g": torch.randn(8, 3, 1, 5),
            "batch": (torch.randn(16, 720).double(), torch.randn(16, 720).double(),
                      torch.arange(16) % 4)}


@pytest.fixture(scope="module")
def together(tmp_path_factory, evaluated_root):
    """(Project, what it printed) after two processes ran the probe where one had trained before."""
    project = Project(tmp_path_factory.mktemp("together"))
    project.set(**QUICK)
    project.use_small_database(evaluated_root)
    with np.load(evaluated_root / "data" / "segments.npz") as stored:
        archive_of(dict(stored), project.folder / "archive")
    torch.save(given(), project.folder / "given.pt")
    (project.folder / "probe.py").write_text(PROBE)
    code, out, err = project.run(*TORCHRUN, "probe.py")
    assert code == 0, err
    assert "Warning" not in err
    return project, out


def checkpoint_of(root, name="beat.pt"):
    return models.load_checkpoint(root / "checkpoints" / name, "")[1]


def losses(root, protocol="beat"):
    """(epochs, 2) training and validation loss of the history below `root`."""
    table = pd.read_csv(root / "results" / protocol / "history.csv")
    return table[["train_loss", "validation_loss"]].to_numpy()


def process_of_rank(launcher, rank):
    """Process id of a rank among the children of torchrun."""
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError(f"no process of rank {rank}")


# --- one step -------------------------------------------------------------------------------------

def test_batch_norm_is_that_of_the_whole_batch(together):
    found, start = torch.load(together[0].folder / "found.pt"), given()
    norm, exact = torch.nn.BatchNorm1d(3).double(), start["h"].double().requires_grad_()
    norm.load_state_dict(start["norm"])
    (norm(exact.squeeze(2)) * start["g"].double().squeeze(2)).sum().backward()
    right = {"h": exact.grad, "weight": norm.weight.grad, "bias": norm.bias.grad,
             "running_mean": norm.running_mean, "running_var": norm.running_var}
    ours = found["norm"] | {name: found[name] for name in ("h", "weight", "bias")}
    for name, value in right.items():
        torch.testing.assert_close(ours[name].double(), value, rtol=2e-4, atol=2e-4)
    assert found["share"] == 4 and found["total"] == 4.0


def test_one_step_of_two_processes_is_one_step_of_one(together):
    found = torch.load(together[0].folder / "found.pt")
    torch.manual_seed(0)
    # in double precision: in single, a ReLU whose input is 0 up to rounding may have either sign
    model, head = models.ConvAutoencoder(720, 32, 80.0).double(), torch.nn.Linear(32, 4)
    loss = train_mitbih.batch_loss(model, head, *given()["batch"])
    loss.backward()
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, p in [*model.named_parameters(), *head.named_parameters()]:
        torch.testing.assert_close(found["grads"][name], p.grad, rtol=1e-4, atol=1e-6)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found["state"][name], value, rtol=1e-4, atol=1e-5,
                                   check_dtype=False)
    said = "do not start from the same: [{'epochs done': 0}, {'epochs done': 1}]. Share it."
    assert said in found["disagreement"]


# --- runs -----------------------------------------------------------------------------------------

def test_losses_of_two_processes_are_those_of_one(together, evaluated_root):
    project, out = together
    alone, ours = losses(evaluated_root), losses(project.folder / "simulated")
    assert len(ours) == QUICK["MAX_EPOCHS"] and not np.array_equal(ours, alone)
    np.testing.assert_allclose(ours, alone, rtol=ROUNDING)
    # the first process alone speaks
    assert out.count("epoch 0:") == 2 and out.count("2 x 1 threads") == 2


def test_two_processes_on_shards(together, evaluated):
    folder = together[0].folder
    train_on_shards.main([str(folder / "archive"), *ON_SIMULATED])
    ours = losses(folder / "simulated", "archive")
    np.testing.assert_allclose(ours, losses(evaluated.out, "archive"), rtol=ROUNDING)
    stored = checkpoint_of(folder / "simulated", "archive.pt")
    assert stored["fitted"]["reference_records"] == ["s01", "s02", "s10"]


def test_a_killed_process_ends_the_run_which_goes_on_with_several_and_with_one(together, evaluated):
    """To the weights of a run left alone, bit for bit: a sum of two has one rounding."""
    project, checkpoints = together[0], together[0].folder / "simulated" / "checkpoints"
    whole, undisturbed = checkpoint_of(checkpoints.parent), losses(checkpoints.parent)
    resume = checkpoints / "beat.resume.pt"
    process = project.start(*TORCHRUN, "train_mitbih.py", *ON_SIMULATED, "--force")
    deadline = time.time() + 60
    while not resume.exists() and time.time() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.kill(process_of_rank(process.pid, 1), signal.SIGKILL)
    killed = time.time()
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and time.time() - killed < 60
    assert "error: process 0 of 2: another one died" in err and "Signal 9 (SIGKILL)" in err
    assert ("Go on with: torchrun --nproc-per-node=2 train_mitbih.py --protocol beat "
            "--database simulated --resume") in err

    shutil.copy(resume, evaluated.checkpoint_path("beat", 0).with_suffix(".resume.pt"))
    train_mitbih.main([*ON_SIMULATED, "--resume"])
    np.testing.assert_allclose(losses(evaluated.out), undisturbed, rtol=ROUNDING)

    code, out, err = project.run(*TORCHRUN, "train_mitbih.py", *ON_SIMULATED, "--resume")
    assert code == 0 and "going on after epoch" in out, err
    assert checkpoint_of(checkpoints.parent)["weights"] == whole["weights"] and not resume.exists()


# --- what cannot work -----------------------------------------------------------------------------

def test_a_batch_that_cannot_be_shared_out_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    words = "BATCH_SIZE = 128; expected a whole multiple of the 3 processes"
    with (pytest.raises(UserError, match=words),
          processes.group(torch.device("cpu"), 128, 1, "again")):
        pytest.fail("started")


def test_fewer_segments_than_a_batch_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(UserError, match="50 segments.*BATCH_SIZE = 128"):
        train_mitbih.check_batches(50, 1, [], {})


def test_one_process_is_no_group(monkeypatch):
    monkeypatch.delattr(torch.distributed, "init_process_group")
    with processes.group(torch.device("cpu"), 127, 30, "again"):
        rows = torch.arange(5)
        assert processes.share(rows) is rows and processes.total(0.1, rows.device) == 0.1
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    step = processes.averaged(lambda model, x: model(x), network)
    assert not isinstance(step, torch.nn.parallel.DistributedDataParallel)
    assert not any(getattr(norm, "over_processes", None) for norm in network.modules())
