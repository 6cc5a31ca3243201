"""Convolutions on the GPU: patches and products, or direct kernels if channels are few, since then
launches take most of the time. See derivations/07-convolutions.md."""

import math

from snfnp.ops.conv.definition import Conv
from snfnp.ops.gpu import source

# Items of `correlate` in a block. An item is a pixel with four of its outputs: 100 images of
# 14 × 14 pixels make 300 blocks, more than there are SMs.
_CONV_ITEMS = 64
_LONG = 32  # if kH kW I is at least this, several threads share an item: each has some kernel rows
_MOST_BLOCKS = 4096  # if more are needed, each thread takes several items instead
_CHUNKS = 288  # parts of a batch whose weight gradients are summed separately, at most


class GpuConv(Conv):
    def patches(self, x, kernel):
        if kernel == (1, 1):
            return super().patches(x, kernel)
        channels = x.shape[3]
        cols = self.device.empty(
            (x.size // channels, math.prod(kernel) * channels), x.dtype
        )
        self.device.each(
            "patches",
            x.dtype,
            cols.size,
            x=x,
            cols=cols,
            channels=channels,
            **_sizes(x, kernel),
        )
        return cols

    def correlate(self, x, k):
        if not _few(k.shape):
            return super().correlate(x, k)
        kh, kw, inputs, outputs = k.shape
        z = self.device.empty((*x.shape[:3], outputs), x.dtype)
        items = math.prod(x.shape[:3]) * -(-outputs // 4)
        splits = min(kh, 3) if kh * kw * inputs >= _LONG else 1
        self.device.launch(
            "conv",
            x.dtype,
            min(-(-items // _CONV_ITEMS), _MOST_BLOCKS),
            threads=splits * _CONV_ITEMS,
            x=x,
            k=k,
            z=z,
            inputs=inputs,
            outputs=outputs,
            splits=splits,
            **_sizes(x, (kh, kw)),
        )
        return z

    def shift_and_add(self, products):
        *images, kh, kw, outputs = products.shape
        z = self.device.empty((*images, outputs), products.dtype)
        self.device.each(
            "shift_and_add",
            z.dtype,
            z.size,
            products=products,
            z=z,
            outputs=outputs,
            **_sizes(products, (kh, kw)),
        )
        return z

    def weight_grad(self, delta, x, out, add=False):
        if not out.flags.c_contiguous:
            return super().weight_grad(delta, x, out, add)
        kh, kw, inputs, outputs = out.shape
        if not _few(out.shape):
            rows = self.patches(x, (kh, kw))
            product = self.linalg.matmul_add if add else self.linalg.matmul
            product(rows.T, delta.reshape(-1, outputs), out.reshape(-1, outputs))
            return out
        # sums over chunks of image rows first, then over the chunks
        rows = x.shape[0] * x.shape[1]
        chunk = max(1, -(-rows // _CHUNKS))
        chunks = max(1, -(-rows // chunk))
        # Here an item is four neighbouring taps of a kernel row, for one input and one output. A
        # block takes `items_each` of them for one chunk. `slices` threads share an item: each takes
        # every slices-th row of the chunk.
        items = kh * -(-kw // 4) * inputs * outputs
        item_blocks = -(-items // source.THREADS)
        items_each = -(-items // item_blocks)
        slices = min(source.THREADS // items_each, chunk)
        parts = self.device.empty((chunks, out.size), out.dtype)
        self.device.launch(
            "conv_weight_grad",
            out.dtype,
            chunks * item_blocks,
            threads=-(-items_each * slices // 32) * 32,
            delta=delta,
            x=x,
            parts=parts,
            inputs=inputs,
            outputs=outputs,
            chunk=chunk,
            items_each=items_each,
            slices=slices,
            **_sizes(x, (kh, kw)),
        )
        self.device.launch(
            "conv_weight_grad_sum",
            out.dtype,
            -(-out.size // 32),
            parts=parts,
            count=chunks,
            out=out,
            size=out.size,
            add=add,
        )
        return out


def _sizes(images, kernel) -> dict[str, int]:
    """The sizes of images (N, H, W, …) and of a kernel, by the names of parameters."""
    samples, height, width = images.shape[:3]
    kh, kw = kernel
    return {
        "samples": samples,
        "height": height,
        "width": width,
        "kh": kh,
        "kw": kw,
    }


def _few(kernel) -> bool:
    """True if all weights of a direct kernel fit in a block's shared memory, in groups of four
    outputs: 9 kB, 18 in double precision."""
    kh, kw, inputs, outputs = kernel
    return kh * kw * inputs * -(-outputs // 4) <= source.constant("conv", "MOST_TAPS")
