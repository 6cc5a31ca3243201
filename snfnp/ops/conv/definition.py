"""Convolutions in array terms: patches (im2col) and one matrix product.

Images are channels-last (N, H, W, C), kernels (kH, kW, I, O), stride 1 and "same" zero padding:

    z[n, y, x, o] = Σ_{h,w,i} k[h, w, i, o] · x[n, y + h − kH // 2, x + w − kW // 2, i]

A kernel of even size sees one pixel more above or on the left than below or on the right. See
derivations/07-convolutions.md.
"""

from snfnp.ops.group import Array, OperationGroup
from snfnp.ops.linalg.definition import LinearAlgebra

_MANY = 4  # inputs per output from which adding shifted products is cheaper than patches of x


class Conv(OperationGroup):
    linalg: LinearAlgebra

    def patches(self, x: Array, kernel: tuple[int, int]) -> Array:
        """im2col: row (n, y, x) holds the kH kW C values that the kernel sees from there.

        x (N, H, W, C), kernel = (kH, kW) -> (N H W, kH kW C), taps in the order of the stored
        kernel; for a 1×1 kernel a view of x, otherwise a copy kH kW times as large.
        """
        n, height, width, channels = x.shape
        kh, kw = kernel
        if kh == kw == 1:
            return x.reshape(n * height * width, channels)
        top = kh // 2
        left = kw // 2
        padded = self.xp.zeros((n, height + kh - 1, width + kw - 1, channels), x.dtype)
        padded[:, top : top + height, left : left + width] = x
        # the kW·C values of one kernel row are one contiguous run of the padded image
        image, row, pixel, value = padded.strides
        shape = (n, height, width, kh, kw * channels)
        strides = (image, row, pixel, row, value)
        windows = self.xp.lib.stride_tricks.as_strided(padded, shape, strides)
        return windows.reshape(n * height * width, kh * kw * channels)

    def correlate(self, x: Array, k: Array) -> Array:
        """Cross-correlation of images x (N, H, W, I) with a kernel k (kH, kW, I, O).

        -> (N, H, W, O). O(N H W kH kW I O), in one matrix product. Usually its factors are the
        patches and the kernel. If there are many more inputs than outputs, patches would be far
        larger than the result: pixels are then multiplied by all taps, and `shift_and_add` sums
        the products.
        """
        kh, kw, inputs, outputs = k.shape
        if kh * kw > 1:
            # k may be a view, such as `flip` returns: products with it would be slow
            k = self.xp.ascontiguousarray(k)
        if kh * kw > 1 and _MANY * outputs <= inputs:
            taps = k.transpose(2, 0, 1, 3).reshape(inputs, kh * kw * outputs)
            products = self.linalg.matmul(x.reshape(-1, inputs), taps)
            z = self.shift_and_add(products.reshape(*x.shape[:3], kh, kw, outputs))
        else:
            rows = self.patches(x, (kh, kw))
            z = self.linalg.matmul(rows, k.reshape(kh * kw * inputs, outputs))
        return z.reshape(*x.shape[:3], outputs)

    def shift_and_add(self, products: Array) -> Array:
        """z[y, x] = Σ_{h,w} products[y + h − kH // 2, x + w − kW // 2, h, w] inside the image.

        products (N, H, W, kH, kW, O) -> z (N, H, W, O). O(N H W kH kW O).
        """
        n, height, width, kh, kw, outputs = products.shape
        z = self.xp.zeros((n, height + kh - 1, width + kw - 1, outputs), products.dtype)
        for h in range(kh):
            for w in range(kw):
                row = kh - 1 - h
                column = kw - 1 - w
                z[:, row : row + height, column : column + width] += products[
                    :, :, :, h, w
                ]
        # The mirror image of `patches`, which pads kH // 2 rows above and (kH − 1) // 2 below: here
        # (kH − 1) // 2 are above. The two differ if kH is even. The same holds for columns.
        top = (kh - 1) // 2
        left = (kw - 1) // 2
        return self.xp.ascontiguousarray(z[:, top : top + height, left : left + width])

    def weight_grad(
        self, delta: Array, x: Array, out: Array, add: bool = False
    ) -> Array:
        """δ ⋆ x: the gradient of ⟨δ, correlate(x, k)⟩ with respect to k, summed over all pixels.

        delta (N, H, W, O), x (N, H, W, I) -> out (kH, kW, I, O), written or (`add`) added to.
        """
        rows = self.patches(x, out.shape[:2])
        deltas = delta.reshape(-1, out.shape[3])
        gradient = self.linalg.matmul(rows.T, deltas).reshape(out.shape)
        out[...] = gradient + out if add else gradient
        return out


def flip(k: Array) -> Array:
    """The kernel of the transposed convolution (a view): height and width mirrored, channels
    swapped (Eq. 26)."""
    return k[::-1, ::-1].swapaxes(2, 3)
