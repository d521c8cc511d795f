"""The network's convolutions on (n, c, 1, length) in channels-last layout, with a fast gradient of their weights.

There a signal is one matrix of rows (a sample each), so the gradient of a strided convolution's weights is a
product of two such matrices for each group of taps: as fast as large matrix products are. The library's own kernel
for it takes about twice as long on a CPU without AVX-512: two fifths of a training step.
Forward pass and gradient of the input are the library's. On a GPU everything is.
"""

import itertools

import torch
import torch.nn.functional as F


def halve(h, conv):
    """A convolution (nn.Conv1d) of stride 2 and odd kernel: (n, c, 1, l) -> (n, o, 1, l / 2)."""
    return _apply(h, conv, False)


def double(h, conv):
    """A transposed one (nn.ConvTranspose1d) of kernel 4, stride 2, padding 1: (n, c, 1, l) -> (n, o, 1, 2 l)."""
    return _apply(h, conv, True)


def rows_first(x):
    """x (n, 1, length) as (n, 1, 1, length) whose strides say channels-last: with one channel nothing else tells."""
    n, _, length = x.shape
    return x.contiguous().as_strided((n, 1, 1, length), (length, 1, length, 1))


def _apply(h, conv, transposed):
    weight, pad = conv.weight.unsqueeze(2), (0, conv.padding[0])
    if conv.training and h.device.type == "cpu" and min(weight.shape[:2]) > 1:  # one channel: nothing to win
        return _Convolution.apply(h, weight, conv.bias, pad, transposed)
    return (F.conv_transpose2d if transposed else F.conv2d)(h, weight, conv.bias, (1, 2), pad)


class _Convolution(torch.autograd.Function):
    """Stride 2, either way round, before a batch norm: that takes any constant away, so the bias has no gradient."""

    @staticmethod
    def forward(ctx, h, weight, bias, pad, transposed):
        ctx.save_for_backward(h, weight)
        ctx.pad, ctx.transposed = pad, transposed
        return (F.conv_transpose2d if transposed else F.conv2d)(h, weight, bias, (1, 2), pad)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        h, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_h, _, _ = torch.ops.aten.convolution_backward(gradient, h, weight, None, (1, 2), ctx.pad, (1, 1),
                                                         ctx.transposed, (0, 0), 1, (True, False, False))
        longer, shorter = (gradient, h) if ctx.transposed else (h, gradient)
        of_weight = weight_gradient(_rows(longer), _rows(shorter), weight.shape[3], ctx.pad[1])
        return of_h, of_weight.unsqueeze(2), gradient.new_zeros(gradient.shape[1]), None, None


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
    taps = [(j, *divmod(j - pad, 2)) for j in range(kernel)]  # tap, rows away, which of the pair
    result = longer.new_empty(kernel, c, o)
    for away, group in itertools.groupby(taps, key=lambda tap: tap[1]):
        group = list(group)
        (first, _, half), (last, _, half_last) = group[0], group[-1]
        columns = slice(half * c, (half_last + 1) * c)
        ahead, behind = max(away, 0), max(-away, 0)
        total = (pairs.view(n * length, -1)[ahead:n * length - behind, columns].t()
                 @ shorter.reshape(n * length, o)[behind:n * length - ahead])
        for k in range(abs(away)):  # pair k of the next segment, or the k-th last of the one before
            of_pairs = pairs[1:, k, columns] if away > 0 else pairs[:-1, length - 1 - k, columns]
            other = shorter[:-1, length - away + k] if away > 0 else shorter[1:, behind - 1 - k]
            total -= of_pairs.t() @ other
        result[first:last + 1] = total.view(-1, c, o)
    return result.permute(2, 1, 0)

