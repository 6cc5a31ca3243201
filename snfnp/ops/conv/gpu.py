"""Convolutions on the GPU: direct kernels if channels are few, else patches and products.

A convolution of few channels has so little arithmetic that launches take most of its time: one or
two, and no patches in memory. See derivations/07-convolutions.md.
"""

import math

from snfnp.ops.conv.definition import Conv, zeros_before
from snfnp.ops.gpu import source

_CONV_ITEMS = 64  # per block: 100 images of 14 × 14 pixels make 300 blocks, more than there are SMs
_LONG = 32  # from this kH kW I on, several threads share the rows of the kernel
_MOST_BLOCKS = 4096  # if more are needed, each thread takes several pixels instead
_CHUNKS = 288  # parts of a batch whose weight gradients are summed separately, at most


class GpuConv(Conv):
    def patches(self, x, kernel, before=None):
        kh, kw = kernel
        if kh == kw == 1:
            return super().patches(x, kernel)
        n, height, width, channels = x.shape
        cols = self.device.empty((n * height * width, kh * kw * channels), x.dtype)
        sizes = _padded(x, kernel, before) | {"channels": channels}
        self.device.each("patches", x.dtype, cols.size, x=x, cols=cols, **sizes)
        return cols

    def correlate(self, x, k, before=None, b=None):
        if not _few(k.shape):
            return super().correlate(x, k, before, b)
        device, (kh, kw, inputs, outputs) = self.device, k.shape
        z = device.empty((*x.shape[:3], outputs), x.dtype)
        items = math.prod(x.shape[:3]) * -(-outputs // 4)
        blocks = min(-(-items // _CONV_ITEMS), _MOST_BLOCKS)
        splits = min(kh, 3) if kh * kw * inputs >= _LONG else 1
        sizes = _padded(x, (kh, kw), before) | {"inputs": inputs, "outputs": outputs}
        own = {"x": x, "k": k, "z": z, "splits": splits} | sizes
        device.launch("conv", x.dtype, blocks, threads=splits * _CONV_ITEMS, **own)
        return z if b is None else self.xp.add(z, b, out=z)

    def shift_and_add(self, products):
        n, height, width, kh, kw, outputs = products.shape
        z = self.device.empty((n, height, width, outputs), products.dtype)
        sizes = _sizes(products, (kh, kw)) | {"outputs": outputs}
        self.device.each("shift_and_add", z.dtype, z.size, products=products, z=z, **sizes)
        return z

    def weight_grad(self, delta, x, out, add=False, before=None):
        kernel, outputs = out.shape[:2], out.shape[3]
        if not out.flags.c_contiguous:
            return super().weight_grad(delta, x, out, add, before)
        if _few(out.shape):
            return self._weight_grad(delta, x, out, add, before)
        rows = self.patches(x, kernel, before)
        product = self.linalg.matmul_add if add else self.linalg.matmul
        product(rows.T, delta.reshape(-1, outputs), out.reshape(-1, outputs))
        return out

    def _weight_grad(self, delta, x, out, add, before):
        """Sums over chunks of image rows first, then over the chunks."""
        device, dtype, (kh, kw, inputs, outputs) = self.device, out.dtype, out.shape
        rows = x.shape[0] * x.shape[1]
        chunk = max(1, -(-rows // _CHUNKS))
        chunks = max(1, -(-rows // chunk))
        items = kh * -(-kw // 4) * inputs * outputs  # for one thread each, of a slice of the rows
        item_blocks = -(-items // source.THREADS)
        items_each = -(-items // item_blocks)
        slices = min(source.THREADS // items_each, chunk)
        parts = device.empty((chunks, out.size), dtype)
        arrays = {"delta": delta, "x": x, "parts": parts}
        sizes = _padded(x, (kh, kw), before) | {"inputs": inputs, "outputs": outputs}
        work = {"chunk": chunk, "items_each": items_each, "slices": slices}
        threads, blocks = -(-items_each * slices // 32) * 32, chunks * item_blocks
        device.launch("conv_weight_grad", dtype, blocks, threads=threads, **arrays, **sizes, **work)
        sums = {"parts": parts, "count": chunks, "out": out, "size": out.size, "add": add}
        device.launch("conv_weight_grad_sum", dtype, -(-out.size // 32), **sums)
        return out


def _sizes(images, kernel) -> dict[str, int]:
    """The sizes of images (N, H, W, …) and of a kernel (kH, kW), by the names of parameters."""
    names = ("samples", "height", "width", "kh", "kw")
    return dict(zip(names, (*images.shape[:3], *kernel), strict=True))


def _padded(images, kernel, before) -> dict[str, int]:
    """These sizes, and the zeros before an image."""
    above, beside = zeros_before(kernel, before)
    return _sizes(images, kernel) | {"above": above, "beside": beside}


def _few(kernel) -> bool:
    """True if direct kernels are used for a kernel of this shape: all of its weights fit in 9 kB of
    shared memory, 18 in double precision."""
    kh, kw, inputs, outputs = kernel
    return kh * kw * inputs * -(-outputs // 4) <= source.constant("conv", "MOST_TAPS")
