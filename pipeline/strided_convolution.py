"""nn.Conv1d and nn.ConvTranspose1d of stride 2, and nn.BatchNorm1d, faster on a CPU and
otherwise the same.

Signals (n, c, length) are kept in channels-last layout, as images of height 1. There a signal
is one matrix of rows (a sample each), batch norm runs over contiguous rows, and the gradient of
the weights is a product of two such matrices for each group of taps: as fast as large matrix
products are. The library's own kernel for it takes about twice as long on a CPU without
AVX-512: two fifths of a training step. Forward pass and gradient of the input are the
library's. On a GPU everything is.
"""

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import nn


class StridedConv1d(nn.Conv1d):
    """Stride 2 and odd kernel: (n, c, l) -> (n, o, l / 2), or the same of images (n, c, 1, l)."""

    then_relu = False   # set by models.fused: the ReLU behind it is done here

    def forward(self, h):
        weight = self.weight.unsqueeze(2)
        out = _convolve(as_image(h), weight, self.bias, (0, self.padding[0]), False,
                        self.then_relu)
        return like(h, out)


class StridedConvTranspose1d(nn.ConvTranspose1d):
    """Kernel 4, stride 2, padding 1: (n, c, l) -> (n, o, 2 l), or the same of images."""

    then_relu = False   # as above

    def forward(self, h):
        weight = self.weight.unsqueeze(2)
        out = _convolve(as_image(h), weight, self.bias, (0, self.padding[0]), True, self.then_relu)
        return like(h, out)


class ChannelsLastBatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d on the layout that the convolutions above leave, of signals or images."""

    over_processes = None   # pipeline/processes.py: one batch over several processes

    def forward(self, h):
        image = as_image(h)
        if self.training and self.over_processes:
            return like(h, self.over_processes(image, self))
        out = F.batch_norm(image, self.running_mean, self.running_var, self.weight, self.bias,
                           self.training, self.momentum, self.eps)
        return like(h, out)


def as_image(h):
    """h (n, c, length) as (n, c, 1, length) in channels-last layout; an image stays what it is."""
    if h.dim() == 4:
        return h.contiguous(memory_format=torch.channels_last)
    n, c, length = h.shape
    if c == 1:
        # with one channel nothing but the strides tells the layout
        return h.contiguous().as_strided((n, 1, 1, length), (length, 1, length, 1))
    return h.unsqueeze(2).contiguous(memory_format=torch.channels_last)


def like(h, image):
    """The image, or the signal that it is where h is a signal.

    A network should hand images on: what works in place on the view of a signal (a ReLU) makes
    autograd copy: a quarter of a training step.
    """
    return image if h.dim() == 4 else image.squeeze(2)


def _convolve(h, weight, bias, pad, transposed, then_relu):
    # on a GPU there is nothing to win, and what is exported keeps to common operators
    if h.device.type != "cpu" or torch.compiler.is_compiling():
        out = _forward(h, weight, bias, pad, transposed)
    elif torch.is_grad_enabled():
        out = _Convolution.apply(h, weight, bias, pad, transposed)
    elif then_relu and h.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return _convolve_relu(h, weight, bias, pad, transposed)
    else:
        out = _forward(h, weight, bias, pad, transposed)
    return out.relu() if then_relu else out


def _convolve_relu(h, weight, bias, pad, transposed):
    """`_forward` and a ReLU, bit for bit, without going over the memory once more: 3 % of the
    encoder's time.
    """
    if transposed:
        return torch.ops.mkldnn._convolution_transpose_pointwise(
            h, weight, bias, pad, (0, 0), (1, 2), (1, 1), 1, "relu", [], "")
    return torch.ops.mkldnn._convolution_pointwise(
        h, weight, bias, pad, (1, 2), (1, 1), 1, "relu", [], "")


def _forward(h, weight, bias, pad, transposed):
    convolve = F.conv_transpose2d if transposed else F.conv2d
    return convolve(h, weight, bias, (1, 2), pad)


class _Convolution(torch.autograd.Function):
    """Stride 2, either way round, with the gradient of its weights as matrix products."""

    @staticmethod
    def forward(ctx, h, weight, bias, pad, transposed):
        ctx.save_for_backward(h, weight)
        ctx.pad = pad
        ctx.transposed = transposed
        return _forward(h, weight, bias, pad, transposed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        h, weight = ctx.saved_tensors
        # of a ReLU's output it comes in either layout
        gradient = gradient.contiguous(memory_format=torch.channels_last)

        # of a single channel there is nothing to win: then the library does it
        by_library = min(weight.shape[:2]) == 1
        wanted = (ctx.needs_input_grad[0], by_library, False)
        of_bias = gradient.sum((0, 2, 3))
        of_h, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient, h, weight, None, (1, 2), ctx.pad, (1, 1), ctx.transposed,
            (0, 0), 1, wanted)

        # the longer signal is the input of a convolution, the output of a transposed one
        if not by_library:
            longer, shorter = (gradient, h) if ctx.transposed else (h, gradient)
            of_weight = weight_gradient(_rows(longer), _rows(shorter), weight.shape[3],
                                        ctx.pad[1]).unsqueeze(2)
        return of_h, of_weight, of_bias, None, None


def _rows(h):
    """(n, c, 1, length) in channels-last layout -> (n, length, c): a view."""
    return h.squeeze(2).transpose(1, 2)


def weight_gradient(longer, shorter, kernel, pad):
    """sum over segments and t of shorter[t] times longer[2 t + j - pad]: (n, 2 l, c), (n, l, o)
    -> (o, c, kernel).

    A row is a pair of samples of the longer signal. Taps whose pair is as many rows away make one
    product, over the rows of all segments at once; what it adds across the border of two segments
    is taken off again.
    """
    n, length, o = shorter.shape
    c = longer.shape[2]
    pairs = longer.reshape(n, length, 2 * c)
    rows_of_pairs = pairs.view(n * length, 2 * c)
    rows = shorter.reshape(n * length, o)
    result = longer.new_empty(kernel * c, o)

    for away, taps, halves in _products(kernel, pad):
        columns = slice(halves.start * c, halves.stop * c)
        ahead = max(away, 0)
        behind = max(-away, 0)
        total = result[taps.start * c:taps.stop * c]
        torch.mm(rows_of_pairs[ahead:n * length - behind, columns].t(),
                 rows[behind:n * length - ahead],
                 out=total)

        for k in range(abs(away)):  # pair k of the next segment, or the k-th last of the one before
            if away > 0:
                of_pairs = pairs[1:, k, columns]
                other = shorter[:-1, length - away + k]
            else:
                of_pairs = pairs[:-1, length - 1 - k, columns]
                other = shorter[1:, behind - 1 - k]
            total.addmm_(of_pairs.t(), other, alpha=-1)
    return result.view(kernel, c, o).permute(2, 1, 0)


@functools.cache
def _products(kernel, pad):
    """[(rows away, slice of taps, slice of the pair)] of weight_gradient."""
    taps = [(j, *divmod(j - pad, 2)) for j in range(kernel)]  # tap, rows away, which of the pair

    products = []
    for away, group in itertools.groupby(taps, key=lambda tap: tap[1]):
        group = list(group)
        first, last = group[0], group[-1]
        products.append((away, slice(first[0], last[0] + 1), slice(first[2], last[2] + 1)))
    return products
