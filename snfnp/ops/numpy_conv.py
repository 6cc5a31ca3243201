"""Convolutions in array terms: patches (im2col) and one matrix product.

Images are channels-last (N, H, W, C), kernels (kH, kW, I, O) with odd kH and kW, stride 1 and
"same" zero padding:

    z[n, y, x, o] = Σ_{h,w,i} k[h, w, i, o] · x[n, y + h − (kH−1)/2, x + w − (kW−1)/2, i]
"""

from __future__ import annotations

_MANY = 4  # times as many inputs as outputs: adding shifted products costs more per value


class ConvOps:
    """The definitions; part of `NumpyOps`, whose `xp` and `matmul` they use."""

    def patches(self, x, kernel):
        """im2col: row (n, y, x) holds the kH kW C values that the kernel sees from there.

        x (N, H, W, C), kernel = (kH, kW) -> (N H W, kH kW C), taps in the order of the stored
        kernel; for a 1×1 kernel a view of x, otherwise a copy kH kW times as large.
        """
        n, height, width, channels = x.shape
        kh, kw = kernel
        if kh == kw == 1:
            return x.reshape(n * height * width, channels)
        xp, top, left = self.xp, kh // 2, kw // 2
        padded = xp.zeros((n, height + kh - 1, width + kw - 1, channels), x.dtype)
        padded[:, top : top + height, left : left + width] = x
        # the kW·C values of one kernel row are one contiguous run of the padded image
        image, row, pixel, value = padded.strides
        windows = xp.lib.stride_tricks.as_strided(
            padded, (n, height, width, kh, kw * channels), (image, row, pixel, row, value)
        )
        return windows.reshape(n * height * width, kh * kw * channels)

    def conv(self, x, k):
        """Cross-correlation of images x (N, H, W, I) with a kernel k (kH, kW, I, O).

        -> (N, H, W, O). O(N H W kH kW I O), as one product: of the patches and the kernel, or,
        where patches of many inputs would be far larger than the result, of all pixels and all
        taps, shifted and added.
        """
        kh, kw, inputs, outputs = k.shape
        if kh * kw > 1:
            k = self.xp.ascontiguousarray(k)  # a flipped kernel would be a slow factor
        if kh * kw > 1 and _MANY * outputs <= inputs:
            taps = k.transpose(2, 0, 1, 3).reshape(inputs, kh * kw * outputs)
            products = self.matmul(x.reshape(-1, inputs), taps)
            return self._shift_and_add(products.reshape(*x.shape[:3], kh, kw, outputs))
        z = self.matmul(self.patches(x, (kh, kw)), k.reshape(kh * kw * inputs, outputs))
        return z.reshape(*x.shape[:3], outputs)

    def _shift_and_add(self, products):
        """z[y, x] = Σ_{h,w} products[y + h − (kH−1)/2, x + w − (kW−1)/2, h, w] inside the image."""
        n, height, width, kh, kw, outputs = products.shape
        # what the padding puts below and on the right of `patches`, the mirror image has on the
        # other sides: for kernels of even size they differ
        xp, top, left = self.xp, kh - 1 - kh // 2, kw - 1 - kw // 2
        z = xp.zeros((n, height + kh - 1, width + kw - 1, outputs), products.dtype)
        for h in range(kh):
            for w in range(kw):
                y, c = kh - 1 - h, kw - 1 - w
                z[:, y : y + height, c : c + width] += products[:, :, :, h, w]
        return xp.ascontiguousarray(z[:, top : top + height, left : left + width])

    def conv_weight_grad(self, delta, x, out, add=False):
        """δ ⋆ x: the gradient of ⟨δ, conv(x, k)⟩ with respect to k, summed over samples and pixels.

        delta (N, H, W, O), x (N, H, W, I) -> out (kH, kW, I, O), written or (`add`) added to.
        The patches are those of x or of δ, whichever has fewer channels: δ ⋆ x = flip(x ⋆ δ) where
        both sizes of the kernel are odd.
        """
        kh, kw, inputs, outputs = out.shape
        if outputs < inputs and kh % 2 and kw % 2:  # the flip of an even kernel pads elsewhere
            cols = self.patches(delta, (kh, kw))
            flipped = self.matmul(cols.T, x.reshape(-1, inputs)).reshape(kh, kw, outputs, inputs)
            gradient = flipped[::-1, ::-1].swapaxes(2, 3)
        else:
            cols = self.patches(x, (kh, kw))
            gradient = self.matmul(cols.T, delta.reshape(-1, outputs)).reshape(out.shape)
        if add:
            gradient = gradient + out
        out[...] = gradient
        return out
