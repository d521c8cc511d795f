"""The convolutions against torch's own, in double precision, and a training run against the plain network."""

import ctypes
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from studies import benchmark
import config
from pipeline import settings
from pipeline import strided_convolution
import train_mitbih


@pytest.mark.parametrize("kernel, pad, length", [(3, 1, 12), (5, 2, 12), (7, 3, 16), (4, 1, 12), (5, 2, 2)])
def test_gradient_of_weights_is_that_of_torch(kernel, pad, length):
    torch.manual_seed(kernel)
    x = torch.randn(3, 4, length, dtype=torch.double)
    weight = torch.randn(5, 4, kernel, dtype=torch.double, requires_grad=True)
    y = F.conv1d(x, weight, stride=2, padding=pad)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    found = strided_convolution.weight_gradient(x.transpose(1, 2), gradient.transpose(1, 2), kernel, pad)
    torch.testing.assert_close(found, weight.grad, rtol=1e-12, atol=1e-12)


def plain_and_ours():
    run = train_mitbih.Run(0, 512, 4, torch.device("cpu"))
    return benchmark.PlainAutoencoder(run.model), run


def test_steps_give_the_losses_of_the_plain_network():
    plain, run = plain_and_ours()
    plain.double(), run.model.double()  # in single precision the two part by rounding errors, as any two orders of sums
    x = torch.randn(64, 720, generator=torch.Generator().manual_seed(0), dtype=torch.double).cumsum(1) / 20
    tapered = (x * run.model.taper).unsqueeze(1)
    pairs = []
    for model, forward in ((plain, lambda: F.mse_loss(plain(tapered), tapered)),
                           (run.model, lambda: train_mitbih.reconstruction_loss(run.model, x)[0])):
        optimizer = torch.optim.SGD(model.train().parameters(), 0.05)  # AdamW makes steps of rounding errors
        losses = []
        for _ in range(12):
            optimizer.zero_grad()
            loss = forward()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        pairs.append(losses)
    assert pairs[0][-1] < 0.9 * pairs[0][0]
    torch.testing.assert_close(*map(torch.tensor, pairs), rtol=1e-9, atol=0)


def test_encoder_and_decoder_run_over_contiguous_rows(monkeypatch):
    """In the other layout each batch norm and product would copy: a third of the time."""
    _, run = plain_and_ours()
    seen = []
    for name in ("halve", "double"):
        real = getattr(strided_convolution, name)
        monkeypatch.setattr(strided_convolution, name, lambda *layer, real=real: seen.append(real(*layer)) or seen[-1])
    run.model.train()(torch.randn(4, 1, 720))
    assert len(seen) == 8 and all(h.is_contiguous(memory_format=torch.channels_last) for h in seen)


FAULTS = """
import resource, torch
from pipeline.runtime import keep_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        kept = [torch.ones(6 << 20) for _ in range(8)]  # of 25 MB
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(); before = faults()
keep_memory()
faults(); print(before, faults())
"""


def test_freed_arrays_are_kept_for_the_next():
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("not glibc")
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=settings.ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 20000 and after < 1000
