"""Convolutions on the GPU: direct kernels where channels are few, patches and products elsewhere.

A convolution of few channels has so little arithmetic that launches decide: one or two, and no
patches in memory. The direct kernels keep the weights, or a thread's sums, on the chip.

Derivation: derivations/07-convolutions.md.
"""

from __future__ import annotations

import math

import numpy as np

from snfnp.ops.conv.definition import Conv
from snfnp.ops.gpu import source
from snfnp.ops.gpu.launch import Strided, strides

_CONV_ITEMS = 64  # of a block: 100 images of 14 × 14 pixels then make 300, more than there are SMs
_LONG = 32  # kH kW I from which several threads share the rows of the kernel
_MOST_BLOCKS = 4096  # their threads then take several pixels each
_MOST_SUMS = 128  # channels that a block of weight gradients sums
_CHUNKS = 128  # parts of a batch whose weight gradients are summed on their own


class GpuConv(Conv):
    """Launches: 1 for `patches`, `shift_and_add`, `forward` of few channels and whatever stands
    beside that one, 2 for `weight_grads` of few channels (1×1 too, where a product would have as
    few rows as channels and a sum over all pixels), 1 and the product for `weight_grad` of many.
    Sums are taken in an order that depends on shapes alone.
    """

    def patches(self, x, kernel):
        kh, kw = kernel
        if kh == kw == 1:
            return super().patches(x, kernel)
        n, height, width, channels = x.shape
        cols = self.device.empty((n * height * width, kh * kw * channels), x.dtype)
        arguments = (Strided(x), *strides(x), cols, n, height, width, kh, kw, channels)
        self.device.each("patches", x.dtype, cols.size, *arguments)
        return cols

    def forward(self, x, k):
        if not _direct(k.shape):
            return super().forward(x, k)
        z = self._like_output(x, k)
        self._convolve(x, k, z)
        return z

    def forward_and_bias(self, x, k, b):
        if not _direct(k.shape):
            return super().forward_and_bias(x, k, b)
        z, shifted = self._like_output(x, k), self._like_output(x, k)
        self._convolve(x, k, z, shifted, a=1.0, bias=self.device.contiguous(b))
        return z, shifted

    def residual(self, z, k, x, before=0.0):
        if not _direct(k.shape):
            return super().residual(z, k, x, before)
        error, total = self.device.empty(x.shape, x.dtype), self.device.empty((), np.float64)
        self._convolve(z, k, None, error, a=1.0, b=-1.0, y=x, before=before, total=total)
        return error, total

    def forward_axpby(self, x, k, a, y, b):
        if not _direct(k.shape):
            return super().forward_axpby(x, k, a, y, b)
        out = self._like_output(x, k)
        self._convolve(x, k, None, out, a=b, b=a, y=y)
        return out

    def forward_into(self, x, k, a, b, out):
        if not _direct(k.shape) or not out.flags.c_contiguous:
            return super().forward_into(x, k, a, b, out)
        z = self._like_output(x, k)
        self._convolve(x, k, z, out, a=a, b=b, y=out)
        return z

    def _like_output(self, x, k):
        return self.device.empty((*x.shape[:3], k.shape[3]), x.dtype)

    def _convolve(self, x, k, z, out=None, a=0.0, b=0.0, y=None, bias=None, before=0.0, total=None):
        """z ← forward(x, k), out ← a z + b y + bias and total ← before + Σ out²/N in one launch.

        None: is not there. y may be `out`.
        """
        device, (kh, kw, inputs, outputs) = self.device, k.shape
        items = math.prod(x.shape[:3]) * -(-outputs // 4)
        blocks = min(-(-items // _CONV_ITEMS), _MOST_BLOCKS)
        splits = min(kh, 3) if kh * kw * inputs >= _LONG else 1
        partial = None if total is None else device.empty(blocks, np.float64)
        y = None if y is None else device.contiguous(y)
        epilogue = (z, out, *device.scalar(a), *device.scalar(b), y, bias)
        sum_of_squares = (*device.scalar(before), partial, total, device.counter())
        arguments = (device.contiguous(x), Strided(k), *strides(k), *epilogue, *sum_of_squares)
        sizes = (*x.shape[:3], *k.shape, splits)
        threads = splits * _CONV_ITEMS
        device.launch("conv", x.dtype, blocks, *arguments, *sizes, threads=threads)

    def shift_and_add(self, products):
        n, height, width, kh, kw, outputs = products.shape
        z = self.device.empty((n, height, width, outputs), products.dtype)
        arguments = (self.device.contiguous(products), z, n, height, width, kh, kw, outputs)
        self.device.each("shift_and_add", z.dtype, z.size, *arguments)
        return z

    def weight_grad(self, delta, x, out, add=False):
        kh, kw, inputs, outputs = out.shape
        if not out.flags.c_contiguous:
            return super().weight_grad(delta, x, out, add)
        if _few(out.shape):
            self._weight_grads((delta,), (x,), (out,), add=add)
            return out
        if outputs < inputs and kh * kw > 1:
            return super().weight_grad(delta, x, out, add)
        product = self.linalg.matmul_add if add else self.linalg.matmul
        cols, deltas = self.patches(x, (kh, kw)), delta.reshape(-1, outputs)
        product(cols.T, deltas, out=out.reshape(-1, outputs))
        return out

    def weight_grads(self, deltas, xs, scales, terms, multiples, volume, dz, out):
        kernel, shape = out[0].shape, deltas[0].shape
        if dz is not None and dz.shape != shape:  # fewer rows than δ: no pass is for both
            self.channels.sum(dz, out=out[-1])
            dz, out = None, out[:-1]
        alike = len(deltas) <= 2 and out[len(deltas) - 1].shape == kernel
        alike = alike and deltas[-1].shape == shape and (dz is None or dz.shape == shape)
        plain = all(each.flags.c_contiguous for each in out) and all(a.ndim == 4 for a in terms)
        # to a kernel an array without values is a null pointer, one that is not there
        plain = plain and deltas[0].size > 0
        if not (alike and plain and _few(kernel) and kernel[3] <= _MOST_SUMS):
            super().weight_grads(deltas, xs, scales, terms, multiples, volume, dz, out)
            return
        beside = tuple(zip(scales, terms, multiples, strict=True))
        self._weight_grads(deltas, xs, out, beside, volume, dz)

    def _weight_grads(self, deltas, xs, out, beside=(), volume=0.0, dz=None, add=False):
        """One or two weight gradients and the sum of dz, over chunks of image rows first, then over
        the chunks, with what is added to the gradients. beside: (scale, term, multiple) of each."""
        device, contiguous = self.device, self.device.contiguous
        dtype, size, (kh, kw, inputs, outputs) = out[0].dtype, out[0].size, out[0].shape
        n, height, width, _ = xs[0].shape
        rows = n * height
        chunk = max(1, -(-rows // _CHUNKS))
        chunks = max(1, -(-rows // chunk))
        items = kh * -(-kw // 4) * inputs * outputs  # for one thread each, of a slice of the rows
        item_blocks = -(-items // source.THREADS)
        items_each = -(-items // item_blocks)
        slices = min(source.THREADS // items_each, chunk)
        pairs, channels = len(deltas), 0 if dz is None else outputs
        parts = device.empty((chunks, pairs * size + channels), dtype)
        first, second = (contiguous(deltas[0]), contiguous(xs[0])), (None, None)
        if pairs == 2:
            second = (contiguous(deltas[1]), contiguous(xs[1]))
        dz, bias = (None, None) if dz is None else (contiguous(dz), out[-1])
        roles = pairs * item_blocks + (dz is not None)
        sizes = (rows, chunk, items_each, slices, height, width, *out[0].shape)
        threads = -(-items_each * slices // 32) * 32
        arguments = (*first, *second, dz, parts, *sizes)
        device.launch("conv_weight_grad", dtype, chunks * roles, *arguments, threads=threads)
        added = [self._term(*each) for each in beside] + [_NO_TERM] * (2 - len(beside))
        device.launch(
            "conv_weight_grad_sum",
            *(dtype, -(-parts.shape[1] // 32), parts, chunks, out[0]),
            *(out[1] if pairs == 2 else None, bias, size, channels, add),
            *device.scalar(volume),
            *(argument for term in added for argument in term),
            *(kw, inputs, outputs),
        )

    def _term(self, scale, a, multiple):
        """scale · a ⊙ multiple as arguments of a kernel."""
        if isinstance(multiple, int):
            return (float(scale * multiple), Strided(a), *strides(a), None)
        return (float(scale), Strided(a), *strides(a), self.device.constant(multiple))


_NO_TERM = (0.0, None, 0, 0, 0, 0, None)


def _direct(kernel) -> bool:
    """Whether a direct kernel is to be used for a convolution: a 1×1 kernel is a product."""
    return kernel[0] * kernel[1] > 1 and _few(kernel)


def _few(kernel) -> bool:
    """Whether direct kernels are to be used for a kernel of this shape: where all of its weights
    fit in 9 kB of shared memory, 18 in double precision."""
    kh, kw, inputs, outputs = kernel
    return kh * kw * inputs * -(-outputs // 4) <= source.constant("conv", "MOST_TAPS")
