"""The network's convolutions on (n, c, 1, length) in channels-last layout, with a fast gradient of their weights.

There a signal is one matrix of rows (a sample each), so the gradient of a strided convolution's weights is a
product of two such matrices for each group of taps: as fast as large matrix products are. The library's own kernel
for it takes about twice as long on a CPU without AVX-512: two fifths of a training step.
Forward pass and gradient of the input are the library's. On a GPU everything is.
"""

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import nn


def halve(h, conv, norm):
    """A convolution (nn.Conv1d) of stride 2 and odd kernel, and its batch norm: (n, c, 1, l) -> (n, o, 1, l / 2)."""
    return _apply(h, conv, norm, False)


def double(h, conv, norm=None):
    """A transposed one (nn.ConvTranspose1d) of kernel 4, stride 2, padding 1: (n, c, 1, l) -> (n, o, 1, 2 l)."""
    return _apply(h, conv, norm, True)


def rows_first(x):
    """x (n, 1, length) as (n, 1, 1, length) whose strides say channels-last: with one channel nothing else tells."""
    n, _, length = x.shape
    return x.contiguous().as_strided((n, 1, 1, length), (length, 1, length, 1))


def _apply(h, conv, norm, transposed):
    """`norm`: nn.BatchNorm1d, nn.Identity where it was folded away, None after the last layer."""
    weight, pad = conv.weight.unsqueeze(2), (0, conv.padding[0])
    if isinstance(norm, nn.BatchNorm1d) and norm.training and h.device.type == "cpu":
        h = _batch_norm(_Convolution.apply(h, weight, conv.bias, pad, transposed), norm)
        # The mean to be kept is of the output with its bias. `data`: the backward pass holds the mean, but has no use
        # for it in training.
        norm.running_mean.data.add_(conv.bias.data, alpha=norm.momentum)
        return h
    return _batch_norm((F.conv_transpose2d if transposed else F.conv2d)(h, weight, conv.bias, (1, 2), pad), norm)


def _batch_norm(h, norm):
    """nn.BatchNorm1d's statistics and weights on (n, c, 1, length); nothing where there is none."""
    if not isinstance(norm, nn.BatchNorm1d):
        return h
    if norm.training and hasattr(norm, "over_processes"):  # parallel.py: one batch over several processes
        return norm.over_processes(h, norm)
    return F.batch_norm(h, norm.running_mean, norm.running_var, norm.weight, norm.bias,
                        norm.training, norm.momentum, norm.eps)


class _Convolution(torch.autograd.Function):
    """Stride 2, either way round, before a batch norm in training. That takes any constant away: the bias is not
    added, which saves a pass over the output, and has no gradient."""

    @staticmethod
    def forward(ctx, h, weight, bias, pad, transposed):
        ctx.save_for_backward(h, weight)
        ctx.pad, ctx.transposed = pad, transposed
        return (F.conv_transpose2d if transposed else F.conv2d)(h, weight, None, (1, 2), pad)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        h, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        by_library = min(weight.shape[:2]) == 1  # of a single channel: nothing to win
        wanted = (ctx.needs_input_grad[0], by_library, False)
        of_h, of_weight, _ = torch.ops.aten.convolution_backward(gradient, h, weight, None, (1, 2), ctx.pad, (1, 1),
                                                                 ctx.transposed, (0, 0), 1, wanted)
        if not by_library:
            longer, shorter = (gradient, h) if ctx.transposed else (h, gradient)
            of_weight = weight_gradient(_rows(longer), _rows(shorter), weight.shape[3], ctx.pad[1]).unsqueeze(2)
        return of_h, of_weight, gradient.new_zeros(gradient.shape[1]), None, None


def _rows(h):
    """(n, c, 1, length) in channels-last layout -> (n, length, c): a view."""
    return h.squeeze(2).transpose(1, 2)


def weight_gradient(longer, shorter, kernel, pad):
    """sum over segments and t of shorter[t] times longer[2 t + j - pad]: (n, 2 l, c), (n, l, o) -> (o, c, kernel).

    A row is a pair of samples of the longer signal. Taps whose pair is as many rows away make one product, over the
    rows of all segments at once; what it adds across the border of two segments is taken off again.
    """
    n, length, o = shorter.shape
    c = longer.shape[2]
    pairs = longer.reshape(n, length, 2 * c)
    rows_of_pairs, rows = pairs.view(n * length, 2 * c), shorter.reshape(n * length, o)
    result = longer.new_empty(kernel * c, o)
    for away, taps, halves in _products(kernel, pad):
        columns = slice(halves.start * c, halves.stop * c)
        ahead, behind = max(away, 0), max(-away, 0)
        total = result[taps.start * c:taps.stop * c]
        torch.mm(rows_of_pairs[ahead:n * length - behind, columns].t(), rows[behind:n * length - ahead], out=total)
        for k in range(abs(away)):  # pair k of the next segment, or the k-th last of the one before
            of_pairs = pairs[1:, k, columns] if away > 0 else pairs[:-1, length - 1 - k, columns]
            other = shorter[:-1, length - away + k] if away > 0 else shorter[1:, behind - 1 - k]
            total.addmm_(of_pairs.t(), other, alpha=-1)
    return result.view(kernel, c, o).permute(2, 1, 0)


@functools.cache
def _products(kernel, pad):
    """[(rows away, slice of taps, slice of the pair)] of weight_gradient."""
    taps = [(j, *divmod(j - pad, 2)) for j in range(kernel)]  # tap, rows away, which of the pair
    groups = [(away, list(group)) for away, group in itertools.groupby(taps, key=lambda tap: tap[1])]
    return [(away, slice(group[0][0], group[-1][0] + 1), slice(group[0][2], group[-1][2] + 1))
            for away, group in groups]
