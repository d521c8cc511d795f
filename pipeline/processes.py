"""Data-parallel training under torchrun: each process has its share of a batch, the first speaks.

    torchrun --nproc-per-node=4 train_mitbih.py

trains with the losses of one process: gradients are averaged (DistributedDataParallel), batch norm
is over the whole batch, and a batch is cut into equal shares. gloo on a CPU, nccl on GPUs.
One process alone is no group: then each function here hands back what it was given.
"""

import contextlib
import os
import signal
import sys
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import UserError
from pipeline.runtime import is_first, launched


def count():
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """Number of this process among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def silence_others():
    """Only the first process prints, errors apart: those say whose they are."""
    if not is_first():
        sys.stdout = open(os.devnull, "w")


@contextlib.contextmanager
def group(device, batch_size, timeout_s, resume):
    """The processes of torchrun as one group while they train; nothing for one process alone.

    Raises UserError for a batch that cannot be shared out, and where another process dies or does
    not answer for timeout_s; `resume` is the command that goes on with the run.
    """
    if launched() == 1 or dist.is_initialized():
        yield
        return
    if batch_size % launched():
        raise UserError(
            f"config.py: BATCH_SIZE = {batch_size}; expected a whole multiple of the {launched()} "
            "processes that share each batch. Edit BATCH_SIZE or start another number of them.")


    lost = (
        f"process {os.environ.get('RANK')} of {launched()}: another one died or did not answer for "
        f"{timeout_s:g} s " "({}). Epochs that ended are kept. Go on with: " + resume)

    def ended(*_):  # torchrun may see the dead process before this one misses it
        raise UserError(lost.format("torchrun ends this one"))


    before = signal.signal(signal.SIGTERM, ended)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo",
                                timeout=timedelta(seconds=timeout_s))
        yield
        dist.barrier()  # nobody leaves while another still talks
        dist.destroy_process_group()
    except UserError:
        raise
    except RuntimeError as error:  # gloo and the store have no class of their own for a lost peer
        if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise
        # without the line of gloo's source and its advice
        why = str(error).split("] ", 1)[-1].split(". ")[0]
        raise UserError(lost.format(why)) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def torchrun(command):
    """The command line that runs `command` ("python SCRIPT ...") as this run was started."""
    several = f"torchrun --nproc-per-node={os.environ.get('LOCAL_WORLD_SIZE', 1)} "
    return command if launched() == 1 else command.replace("python ", several, 1)


def check_agreement(what, remedy):
    """UserError where the processes do not hold equal values of `what`, a plain value."""
    if count() > 1:
        everywhere = [None] * count()
        dist.all_gather_object(everywhere, what)
        if any(other != everywhere[0] for other in everywhere):
            raise UserError(f"the processes do not start from the same: {everywhere}. {remedy}")


# --- a training step ------------------------------------------------------------------------------

def share(rows):
    """This process's part of the rows of a batch: neighbours, as many as the others' up to one."""
    return rows if count() == 1 else rows.tensor_split(count())[rank()]


def total(value, device):
    """Sum of a number over the processes."""
    if count() == 1:
        return value
    kind = torch.float64 if device.type == "cpu" else torch.float32
    tensor = torch.tensor(value, dtype=kind, device=device)
    dist.all_reduce(tensor)
    return tensor.item()


class _Step(torch.nn.Module):
    """Both modules as one, the loss as its forward pass: what DistributedDataParallel needs."""

    def __init__(self, loss, *modules):
        super().__init__()
        self.loss = loss
        self.parts = torch.nn.ModuleList(modules)

    def forward(self, *batch):
        return self.loss(*self.parts, *batch)


def averaged(loss, *modules):
    """`loss(*modules, *batch)` as a function of a share, with the gradients of the whole batch."""
    step = _Step(loss, *modules)
    if count() == 1:
        return step

    for norm in step.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):
            norm.over_processes = batch_norm  # ChannelsLastBatchNorm1d calls it in its place

    # gradients of a kernel of height 1 have other strides for the same layout: nothing is
    # copied twice for it
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    # running statistics are equal everywhere
    return DistributedDataParallel(step, forward_sync_buffers=False)


def batch_norm(h, norm):
    """Training-mode batch norm of h (n, c, 1, length) with the statistics of all processes' rows.

    torch.nn.SyncBatchNorm does the same, but on GPUs only. Every process must hold n rows.
    """
    return _BatchNorm.apply(h, norm.weight, norm.bias, norm)


def _wide(value):
    """Sums of autocast's half precision are taken in single precision."""
    return value if value.dtype == torch.double else value.float()


class _BatchNorm(torch.autograd.Function):
    """Ioffe and Szegedy 2015, sums over all processes; weight and bias get this process's share."""

    @staticmethod
    def forward(ctx, h, weight, bias, norm):
        # of the rows of this process
        var, mean = torch.var_mean(_wide(h), (0, 2, 3), correction=0)

        # of all rows; mean of squares less squared mean: digits cancel, hence double precision
        moments = torch.stack([mean, var]).double()
        moments[1] += moments[0].square()
        dist.all_reduce(moments)
        moments /= count()
        moments[1] -= moments[0].square()
        mean, var = moments.to(norm.running_mean.dtype)

        # as nn.BatchNorm1d keeps them: the variance without bias
        n = count() * h.numel() // h.shape[1]
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var * (n / (n - 1)), norm.momentum)

        ctx.save_for_backward(h, weight, mean, torch.rsqrt(var + norm.eps))
        return F.batch_norm(h, mean, var, weight, bias, False, 0.0, norm.eps)

    @staticmethod
    def backward(ctx, gradient):
        h, weight, mean, slope = map(_wide, ctx.saved_tensors)
        shape = (1, -1, 1, 1)
        gradient = _wide(gradient)
        unit = (h - mean.view(shape)) * slope.view(shape)
        own = torch.stack([gradient.sum((0, 2, 3)), (gradient * unit).sum((0, 2, 3))])

        sums = own.clone()
        dist.all_reduce(sums)
        sums /= count() * h.numel() // h.shape[1]

        inner = gradient - sums[0].view(shape) - unit * sums[1].view(shape)
        return (inner * (weight * slope).view(shape)).to(
            ctx.saved_tensors[0].dtype), own[1], own[0], None
