"""Convolutions on the GPU: direct kernels where channels are few, patches and products elsewhere.

A convolution of few channels has so little arithmetic that launches decide: one or two, and no
patches in memory. The direct kernels keep the weights, or a thread's sums, on the chip.
"""

from __future__ import annotations

import math

from snfnp.ops import cuda
from snfnp.ops.cupy_launch import Strided, strides
from snfnp.ops.numpy_conv import ConvOps
from snfnp.ops.numpy_emerging import EmergingOps

_CONV_ITEMS = 64  # of a block: 100 images of 14 × 14 pixels then make 300, more than there are SMs
_LONG = 32  # kH kW I from which several threads share the rows of the kernel
_MOST_BLOCKS = 4096  # their threads then take several pixels each
_CHUNKS = 128  # parts of a batch whose weight gradients are summed on their own


class CudaConvOps(ConvOps, EmergingOps):
    """ConvOps and EmergingOps with kernels.

    Launches: 1 for `patches`, `_shift_and_add`, `conv` of few channels and `causal_conv_inverse`,
    2 for `conv_weight_grad` of few channels (1×1 too, where a product would have as few rows as
    channels and a sum over all pixels), 1 and the product for that of many. Sums are taken in an
    order that depends on shapes alone.
    """

    def patches(self, x, kernel):
        kh, kw = kernel
        if kh == kw == 1:
            return super().patches(x, kernel)
        n, height, width, channels = x.shape
        cols = self.empty((n * height * width, kh * kw * channels), x.dtype)
        arguments = (Strided(x), *strides(x), cols, n, height, width, kh, kw, channels)
        self.each("patches", x.dtype, cols.size, *arguments)
        return cols

    def conv(self, x, k):
        kh, kw, inputs, outputs = k.shape
        if kh * kw == 1 or not _few(k.shape):
            return super().conv(x, k)
        z = self.empty((*x.shape[:3], outputs), x.dtype)
        items = math.prod(x.shape[:3]) * -(-outputs // 4)
        blocks = min(-(-items // _CONV_ITEMS), _MOST_BLOCKS)
        splits = min(kh, 3) if kh * kw * inputs >= _LONG else 1
        arrays = (self.contiguous(x), Strided(k), *strides(k), z)
        arguments = (*arrays, *x.shape[:3], *k.shape, splits)
        self.launch("conv", x.dtype, blocks, *arguments, threads=splits * _CONV_ITEMS)
        return z

    def _shift_and_add(self, products):
        n, height, width, kh, kw, outputs = products.shape
        z = self.empty((n, height, width, outputs), products.dtype)
        arguments = (self.contiguous(products), z, n, height, width, kh, kw, outputs)
        self.each("shift_and_add", z.dtype, z.size, *arguments)
        return z

    def conv_weight_grad(self, delta, x, out, add=False):
        kh, kw, inputs, outputs = out.shape
        if not out.flags.c_contiguous:
            return super().conv_weight_grad(delta, x, out, add)
        if _few(out.shape):
            return self._direct_weight_grad(delta, x, out, add)
        if outputs < inputs and kh * kw > 1:
            return super().conv_weight_grad(delta, x, out, add)
        product = self.matmul_add if add else self.matmul
        cols, deltas = self.patches(x, (kh, kw)), delta.reshape(-1, outputs)
        product(cols.T, deltas, out=out.reshape(-1, outputs))
        return out

    def _direct_weight_grad(self, delta, x, out, add):
        """Over chunks of image rows first, then over the chunks."""
        kh, kw, inputs, outputs = out.shape
        n, height, width, _ = x.shape
        rows = n * height
        chunk = max(1, -(-rows // _CHUNKS))
        chunks = max(1, -(-rows // chunk))
        items = kh * -(-kw // 4) * inputs * outputs  # for one thread each, of a slice of the rows
        item_blocks = -(-items // cuda.THREADS)
        items_each = -(-items // item_blocks)
        slices = min(cuda.THREADS // items_each, chunk)
        parts = self.empty((chunks, *out.shape), out.dtype)
        self.launch(
            "conv_weight_grad",
            *(out.dtype, chunks * item_blocks),
            *(self.contiguous(delta), self.contiguous(x), parts, rows, chunk, items_each, slices),
            *(height, width, *out.shape),
            threads=-(-items_each * slices // 32) * 32,
        )
        arguments = (parts, out, chunks, out.size, add)
        self.launch("conv_weight_grad_sum", out.dtype, -(-out.size // 32), *arguments)
        return out

    def causal_conv_inverse(self, z, k):
        samples, height, width, channels = z.shape
        x = self.empty(z.shape, z.dtype)
        widest = min(height, width) * channels  # values of the longest anti-diagonal
        threads = min(-(-widest // 32) * 32, cuda.THREADS)
        arguments = (self.contiguous(z), self.contiguous(k), x, samples, height, width, channels)
        self.launch("causal_conv_inverse", z.dtype, samples, *arguments, threads=threads)
        return x


def _few(kernel) -> bool:
    """Whether direct kernels are to be used for a kernel of this shape: where all of its weights
    fit in 9 kB of shared memory, 18 in double precision."""
    kh, kw, inputs, outputs = kernel
    return kh * kw * inputs * -(-outputs // 4) <= cuda.constant("conv.cu", "MOST_TAPS")
