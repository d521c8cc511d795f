"""The convolutions against torch's own, in double precision, and a training run against the
plain network."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import ConvAutoencoder
from pipeline import strided_convolution
from pipeline.settings import ROOT
from pipeline.strided_convolution import (ChannelsLastBatchNorm1d, StridedConv1d,
                                          StridedConvTranspose1d)


@pytest.mark.parametrize("kernel, pad, length", [(3, 1, 12), (5, 2, 12), (7, 3, 16), (4, 1, 12),
                                                 (5, 2, 2)])
def test_gradient_of_weights_is_that_of_torch(kernel, pad, length):
    torch.manual_seed(kernel)
    x = torch.randn(3, 4, length, dtype=torch.double)
    weight = torch.randn(5, 4, kernel, dtype=torch.double, requires_grad=True)
    y = F.conv1d(x, weight, stride=2, padding=pad)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    found = strided_convolution.weight_gradient(x.transpose(1, 2), gradient.transpose(1, 2), kernel,
                                                pad)
    torch.testing.assert_close(found, weight.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ours, plain, args", [
    (StridedConv1d, nn.Conv1d, (1, 6, 7, 2, 3)), (StridedConv1d, nn.Conv1d, (4, 6, 5, 2, 2)),
    (StridedConvTranspose1d, nn.ConvTranspose1d, (6, 4, 4, 2, 1)),
    (StridedConvTranspose1d, nn.ConvTranspose1d, (6, 1, 4, 2, 1))])
def test_a_layer_is_torchs_own_with_all_its_gradients(ours, plain, args):
    torch.manual_seed(1)
    ours = ours(*args).double()
    plain = plain(*args).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(5, args[0], 16, dtype=torch.double)
    outputs = []
    for layer in (ours, plain):
        seen = x.clone().requires_grad_()
        layer(seen).square().sum().backward()
        outputs.append([layer(x), seen.grad, *(p.grad for p in layer.parameters())])
    for a, b in zip(*outputs):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_training_gives_the_losses_of_the_plain_network():
    """In double precision: in single the two part by rounding errors, as any two orders of sums."""
    torch.manual_seed(0)
    ours = ConvAutoencoder(720, 32, 80).double()
    plain = ConvAutoencoder(720, 32, 80).double()
    for layers in (plain.encoder, plain.decoder):
        for k, layer in enumerate(layers):
            for kind, torchs in ((StridedConv1d, nn.Conv1d),
                                 (StridedConvTranspose1d, nn.ConvTranspose1d)):
                if isinstance(layer, kind):
                    layers[k] = torchs(layer.in_channels, layer.out_channels, layer.kernel_size[0],
                                       2, layer.padding)
            if isinstance(layer, ChannelsLastBatchNorm1d):
                layers[k] = nn.BatchNorm1d(layer.num_features)
    plain.layout = lambda h: h
    plain.double().load_state_dict(ours.state_dict())
    x = torch.randn(64, 1, 720, generator=torch.Generator().manual_seed(0),
                    dtype=torch.double).cumsum(2) / 20
    pairs = []
    for model in (plain, ours):
        # AdamW makes steps of rounding errors
        optimizer = torch.optim.SGD(model.train().parameters(), 0.05)
        losses = []
        for _ in range(12):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), x * model.taper)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        pairs.append(losses)
    assert pairs[0][-1] < 0.9 * pairs[0][0]
    torch.testing.assert_close(*map(torch.tensor, pairs), rtol=1e-9, atol=0)


def test_encoder_and_decoder_run_over_contiguous_rows():
    """In the other layout each batch norm and product would copy: a third of the time."""
    model = ConvAutoencoder(720, 32)
    seen = []
    for layer in model.modules():
        if isinstance(layer, (StridedConv1d, StridedConvTranspose1d, ChannelsLastBatchNorm1d)):
            layer.register_forward_hook(lambda layer, args, out: seen.append(out))
    model.train()(torch.randn(4, 1, 720))
    assert len(seen) == 15
    assert all(h.is_contiguous(memory_format=torch.channels_last) for h in seen)


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
    # fixed thresholds: by itself glibc moves them, and may keep memory for reasons of its own
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT, env=env, capture_output=True,
                          text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 100 and after < before / 10   # with huge pages a fault is for 2 MB
