"""Convolutions on the GPU: direct kernels if channels are few, else patches and products.

A convolution of few channels has so little arithmetic that its time is that of its launches: one
or two, and no patches in memory. See derivations/07-convolutions.md.
"""

import math

import numpy as np

from snfnp.ops.conv.definition import Conv
from snfnp.ops.epilogue import Epilogue, Finished, WeightGradient
from snfnp.ops.gpu import source

_CONV_ITEMS = 64  # per block: 100 images of 14 × 14 pixels make 300 blocks, more than there are SMs
_LONG = 32  # from this kH kW I on, several threads share the rows of the kernel
_MOST_BLOCKS = 4096  # if more are needed, each thread takes several pixels instead
_MOST_SUMS = 128  # the most output channels for which a block can also sum dz
_CHUNKS = 128  # the most parts of a batch whose weight gradients are summed separately


NO_SECOND = dict.fromkeys(("x_2", "k_2", "z_2", "out_2", "y_2")) | {"a_2": 0.0, "b_2": 0.0}


class GpuConv(Conv):
    """Launches: 1 for `patches`, `shift_and_add`, `correlate` of few channels and its epilogue, 2
    for `weight_grads` of few channels (1×1 too: a product would have as few rows as channels), 1
    and the product for `weight_grad` of many."""

    def patches(self, x, kernel):
        kh, kw = kernel
        if kh == kw == 1:
            return super().patches(x, kernel)
        n, height, width, channels = x.shape
        cols = self.device.empty((n * height * width, kh * kw * channels), x.dtype)
        sizes = _sizes(x, kernel) | {"channels": channels}
        self.device.each("patches", x.dtype, cols.size, x=x, cols=cols, **sizes)
        return cols

    def correlate(self, x, k):
        if not _few(k.shape):
            return super().correlate(x, k)
        return self._convolve(x, k).z

    def correlate_then(self, x, k, epilogue):
        out = epilogue.out
        if not _few(k.shape) or not (out is None or out.flags.c_contiguous):
            return super().correlate_then(x, k, epilogue)
        return self._convolve(x, k, epilogue)

    def correlate_both(self, first, second):
        (x, k, _), (x_2, k_2, more) = first, second
        alike = (x.shape, k.shape, x.dtype) == (x_2.shape, k_2.shape, x_2.dtype)
        totals = first[2].before is not None or more.before is not None or first[2].out is not None
        if not alike or totals or more.bias is not None or not _few(k.shape) or not x.size:
            return super().correlate_both(first, second)
        keep = more.keep or more.out is not None
        out_2 = self.device.empty((*x.shape[:3], k.shape[3]), x.dtype)
        z_2 = self.device.empty(out_2.shape, x.dtype) if keep else None
        own = {"x_2": x_2, "k_2": k_2, "z_2": z_2, "out_2": out_2}
        own |= {"a_2": more.a, "b_2": more.b, "y_2": more.y}
        return self._convolve(*first, own), Finished(z_2, out_2, None)

    def _convolve(self, x, k, epilogue: Epilogue | None = None, second=NO_SECOND):
        """correlate(x, k) and its epilogue in one launch; second: arguments for another one."""
        device, (kh, kw, inputs, outputs) = self.device, k.shape
        shape = (*x.shape[:3], outputs)
        a, y, b, bias, before, out, keep = epilogue or Epilogue(keep=True)
        z = device.empty(shape, x.dtype) if keep or out is not None else None
        if out is None and epilogue:
            out = device.empty(shape, x.dtype)
        items = math.prod(x.shape[:3]) * -(-outputs // 4)
        blocks = min(-(-items // _CONV_ITEMS), _MOST_BLOCKS)
        splits = min(kh, 3) if kh * kw * inputs >= _LONG else 1
        partial = total = None
        if before is not None:
            partial, total = device.empty(blocks, np.float64), device.empty((), np.float64)
        arrays = {"x": x, "k": k, "z": z, "out": out, "y": y, "bias": bias}
        numbers = {"a": a, "b": b, "before": 0.0 if before is None else before}
        sums = {"partial": partial, "total": total, "arrived": device.counter()}
        sizes = _sizes(x, (kh, kw)) | {"inputs": inputs, "outputs": outputs, "splits": splits}
        arguments = arrays | numbers | sums | sizes | second
        blocks *= 1 if second is NO_SECOND else 2
        device.launch("conv", x.dtype, blocks, threads=splits * _CONV_ITEMS, **arguments)
        return Finished(z, out, total)

    def shift_and_add(self, products):
        n, height, width, kh, kw, outputs = products.shape
        z = self.device.empty((n, height, width, outputs), products.dtype)
        sizes = _sizes(products, (kh, kw)) | {"outputs": outputs}
        self.device.each("shift_and_add", z.dtype, z.size, products=products, z=z, **sizes)
        return z

    def weight_grad(self, delta, x, out, add=False):
        kh, kw, inputs, outputs = out.shape
        if not out.flags.c_contiguous:
            return super().weight_grad(delta, x, out, add)
        if _few(out.shape):
            gradient = WeightGradient(delta, x, 0.0, None, 1, out)
            self._weight_grads((gradient,), 0.0, None, None, add)
            return out
        if outputs < inputs and kh * kw > 1:
            return super().weight_grad(delta, x, out, add)
        product = self.linalg.matmul_add if add else self.linalg.matmul
        cols, deltas = self.patches(x, (kh, kw)), delta.reshape(-1, outputs)
        product(cols.T, deltas, out=out.reshape(-1, outputs))
        return out

    def weight_grads(self, gradients, volume, dz=None, db=None):
        delta, kernel = gradients[0].delta, gradients[0].out.shape
        if db is not None and dz.shape != delta.shape:  # δ has more rows: no one pass does both
            self.channels.sum(dz, out=db)
            db = None
        alike = all(g.delta.shape == delta.shape and g.out.shape == kernel for g in gradients)
        plain = all(g.out.flags.c_contiguous and g.term.ndim == 4 for g in gradients)
        plain = plain and (db is None or db.flags.c_contiguous)
        # an empty array has a null pointer, which to a kernel means that there is none
        plain = plain and len(gradients) <= 2 and delta.size > 0
        if alike and plain and _few(kernel) and kernel[3] <= _MOST_SUMS:
            self._weight_grads(gradients, volume, dz, db)
        else:
            super().weight_grads(gradients, volume, dz, db)

    def _weight_grads(self, gradients, volume, dz, db, add=False):
        """One or two weight gradients and the sum of dz, over chunks of image rows first, then over
        the chunks, with what is added to the gradients."""
        device, (first, *more) = self.device, gradients
        second = more[0] if more else _NO_GRADIENT
        dtype, size, (kh, kw, inputs, outputs) = first.out.dtype, first.out.size, first.out.shape
        rows = first.x.shape[0] * first.x.shape[1]
        chunk = max(1, -(-rows // _CHUNKS))
        chunks = max(1, -(-rows // chunk))
        items = kh * -(-kw // 4) * inputs * outputs  # for one thread each, of a slice of the rows
        item_blocks = -(-items // source.THREADS)
        items_each = -(-items // item_blocks)
        slices = min(source.THREADS // items_each, chunk)
        channels = 0 if db is None else outputs
        parts = device.empty((chunks, len(gradients) * size + channels), dtype)
        roles = len(gradients) * item_blocks + (db is not None)
        arrays = {"delta": first.delta, "x": first.x, "delta_2": second.delta, "x_2": second.x}
        arrays |= {"dz": None if db is None else dz, "parts": parts}
        sizes = _sizes(first.x, (kh, kw)) | {"inputs": inputs, "outputs": outputs}
        work = {"chunk": chunk, "items_each": items_each, "slices": slices}
        threads = -(-items_each * slices // 32) * 32
        blocks, arguments = chunks * roles, arrays | sizes | work
        device.launch("conv_weight_grad", dtype, blocks, threads=threads, **arguments)
        arrays = {"out": first.out, "out_2": second.out, "db": db, "parts": parts, "count": chunks}
        terms = self._term(first, "") | self._term(second, "_2")
        sizes = {"inputs": inputs, "outputs": outputs, "size": size, "channels": channels}
        arguments, blocks = arrays | terms | sizes | {"width": kw}, -(-parts.shape[1] // 32)
        device.launch("conv_weight_grad_sum", dtype, blocks, add=add, volume=volume, **arguments)

    def _term(self, gradient, suffix: str) -> dict:
        """The term added to a gradient's sum, by the names of parameters with this suffix."""
        scale, multiple = gradient.scale, gradient.multiple
        if isinstance(multiple, int):
            scale, multiple = scale * multiple, None
        else:
            multiple = self.device.constant(multiple)
        term = {"scale": float(scale), "term": gradient.term, "multiple": multiple}
        return {f"{name}{suffix}": value for name, value in term.items()}


def _sizes(images, kernel) -> dict[str, int]:
    """The sizes of images (N, H, W, …) and of a kernel (kH, kW), by the names of parameters."""
    names = ("samples", "height", "width", "kh", "kw")
    return dict(zip(names, (*images.shape[:3], *kernel), strict=True))


_NO_GRADIENT = WeightGradient(None, None, 0.0, None, 1, None)


def _few(kernel) -> bool:
    """True if direct kernels are used for a kernel of this shape: all of its weights fit in 9 kB of
    shared memory, 18 in double precision."""
    kh, kw, inputs, outputs = kernel
    return kh * kw * inputs * -(-outputs // 4) <= source.constant("conv", "MOST_TAPS")
