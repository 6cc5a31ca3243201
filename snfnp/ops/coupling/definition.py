"""The affine coupling and its network in array terms; see derivations/14-coupling.md.

The channels of an image are halved, x = (x₁, x₂); h (N, H, W, C) is what a network makes of x₁,
two interleaved channels h₀ (0, 2, …) and h₁ (1, 3, …) for each channel of x₂:

    z₁ = x₁,   z₂ = x₂ exp(s) + h₁,   s = 2 tanh(h₀/2)

The network, with a scale k:

    a₁ = max(w1 ⋆ x₁ + b1, 0),  a₂ = max(a₁ w2 + b2, 0),  h = (w3 ⋆ a₂ + b3) exp(k logs)
"""

import math

from snfnp.ops.channels.definition import Channels
from snfnp.ops.conv.definition import Conv, flip
from snfnp.ops.group import OperationGroup
from snfnp.ops.linalg.definition import LinearAlgebra


class Coupling(OperationGroup):
    linalg: LinearAlgebra
    channels: Channels
    conv: Conv
    # Values of a hidden layer that the network takes at once, so that a CPU's caches hold them.
    network_values = 2000 * 512
    # Whether the backward pass is given a₁: on a CPU to compute it again takes about as long as to
    # write and read it.
    keeps_first = False
    keeps = True  # False: `network` keeps nothing (`Ops.forward_only`)

    def forward(self, x, h):
        """x, h (N, H, W, C) -> z (N, H, W, C), ldj (N,) = Σ s, s (N, H, W, C/2). O(N H W C)."""
        xp, half = self.xp, x.shape[-1] // 2
        s = 2 * xp.tanh(h[..., ::2] / 2)
        z = xp.ascontiguousarray(x).copy()
        z[..., half:] = x[..., half:] * xp.exp(s) + h[..., 1::2]
        return z, s.sum(axis=(1, 2, 3)), s

    def inverse(self, z, h):
        """z, h (N, H, W, C) -> the x with forward(x, h) = z, exact. O(N H W C)."""
        xp, half = self.xp, z.shape[-1] // 2
        x = xp.ascontiguousarray(z).copy()
        x[..., half:] = (z[..., half:] - h[..., 1::2]) * xp.exp(-2 * xp.tanh(h[..., ::2] / 2))
        return x

    def backward(self, x, s, dz, dldj):
        """δ_{x₁} = δ_{z₁},  δ_{x₂} = δ_{z₂} eˢ,  δ_{h₀} = δ_s (1 − s²/4),  δ_{h₁} = δ_{z₂},

        with δ_s = δ_{z₂} x₂ eˢ + δ_ldj, and 1 − s²/4 = 1 − tanh²(h₀/2) = ds/dh₀.
        x, dz (N, H, W, C), s (N, H, W, C/2), dldj (N,) -> dx, dh (N, H, W, C). O(N H W C).
        """
        xp, half = self.xp, x.shape[-1] // 2
        dx, dh = xp.ascontiguousarray(dz).copy(), xp.empty_like(dz, order="C")
        dx[..., half:] *= xp.exp(s)
        ds = dx[..., half:] * x[..., half:] + dldj[:, None, None, None]
        dh[..., ::2] = ds * (1 - s * s / 4)
        dh[..., 1::2] = dz[..., half:]
        return dx, dh

    def bias_relu(self, out, b):
        """out ← max(out + b, 0), rows (M, F) and b (F,). O(M F)."""
        xp = self.xp
        out += b
        return xp.maximum(out, 0, out=out)

    def bias_relu_backward(self, out, a, g_b, add=False):
        """out ← out ⊙ [a > 0] for a = max(v + b, 0): the delta of a becomes that of v.

        out, a (M, F), g_b (F,): ← the gradient of b, Σ of out's new rows, or with `add` plus that.
        Where a is NaN, out is kept; a NaN in out stays NaN. O(M F).
        """
        out *= ~(a <= 0)
        self._add_up(out, g_b, add)

    def network(self, x, p, scale, keep):
        """x (N, H, W, C), of which x₁ is read -> h (N, H, W, C), and what the backward pass needs,
        if asked to `keep` it: {"a2": a₂ (N H W, width)}, and "a1" like it where `keeps_first`.

        p: w1 (kH, kW, C/2, width), b1 (width,), w2 (width, width), b2 (width,), w3 (kH, kW, width,
        C), b3 and logs (C,); scale: k. 2 N H W (width² + 1.5 kH kW C width) operations, in blocks
        of samples.
        """
        xp, width, (samples, height, columns, _) = self.xp, len(p["b1"]), x.shape
        matmul = self.linalg.matmul
        h = xp.empty(x.shape, x.dtype)
        blocks, most = self._blocks(samples, height * columns, width)
        patches, w1 = self._patches(x, p), p["w1"].reshape(-1, width)
        keep = keep and self.keeps
        kept = {"a1": keep and self.keeps_first, "a2": keep}
        hidden = {
            name: xp.empty((samples * height * columns if whole else most, width), x.dtype)
            for name, whole in kept.items()
        }
        for block, rows in blocks:
            size = slice(rows.stop - rows.start)
            a1, a2 = (hidden[name][rows if whole else size] for name, whole in kept.items())
            self.bias_relu(matmul(patches[rows], w1, out=a1), p["b1"])
            self.bias_relu(matmul(a1, p["w2"], out=a2), p["b2"])
            v = self.conv.correlate(a2.reshape(-1, height, columns, width), p["w3"])
            self.channels.shift_scale(v, 1.0, p["b3"], scale, p["logs"], out=h[block])
        return h, {name: hidden[name] for name, whole in kept.items() if whole}

    def network_backward(self, x, hidden, h, dh, p, scale, out, grads):
        """δ_h -> δ_{x₁}, which is added to out[..., :C/2], and the gradients of p.

        x, p and scale are those of `network`, h and hidden its results; dh, out (N, H, W, C).
        grads: an array for each parameter of p, all of them written. Twice the operations of
        `network`.
        """
        xp, width = self.xp, len(p["b1"])
        matmul = self.linalg.matmul
        out_3 = (grads["b3"], grads["logs"])
        dh = self.channels.shift_scale_backward(dh, h, 1.0, scale, p["logs"], None, out_3)

        samples, height, columns, channels = x.shape
        kernel = p["w3"].shape[:2]
        w1, w3_adjoint = p["w1"].reshape(-1, width), flip(p["w3"]).reshape(-1, width)
        w1_adjoint = flip(p["w1"])
        patches_1, patches_3 = self._patches(x, p), self.conv.patches(dh, kernel)
        # (width, taps): BLAS is faster this way round. patches_3 are those of flip(w3).
        g_w1, g_w3 = (xp.empty((width, q.shape[1]), x.dtype) for q in (patches_1, patches_3))
        blocks, most = self._blocks(samples, height * columns, width)
        kept = hidden.get("a1")
        d1, d2 = (xp.empty((most, width), x.dtype) for _ in range(2))
        a1 = xp.empty((most, width), x.dtype) if kept is None else kept
        for block, rows in blocks:
            size, add = rows.stop - rows.start, block.start > 0  # the first block writes
            d1_, d2_, a2 = d1[:size], d2[:size], hidden["a2"][rows]

            self._product(a2.T, patches_3[rows], g_w3, add)
            matmul(patches_3[rows], w3_adjoint, out=d2_)
            self.bias_relu_backward(d2_, a2, grads["b2"], add)

            a1_ = a1[:size] if kept is None else a1[rows]
            if kept is None:
                self.bias_relu(matmul(patches_1[rows], w1, out=a1_), p["b1"])
            self._product(a1_.T, d2_, grads["w2"], add)
            matmul(d2_, p["w2"].T, out=d1_)
            self.bias_relu_backward(d1_, a1_, grads["b1"], add)

            self._product(d1_.T, patches_1[rows], g_w1, add)
            images = d1_.reshape(-1, height, columns, width)
            out[block][..., : channels // 2] += self.conv.correlate(images, w1_adjoint)
        grads["w1"][...] = g_w1.T.reshape(p["w1"].shape)
        grads["w3"][...] = flip(g_w3.T.reshape(*kernel, channels, width))

    def _blocks(self, samples, pixels, width):
        """[(slice of the samples, slice of their rows), …] of about equal size, and the most rows;
        an empty batch is one empty block."""
        most = max(1, self.network_values // (pixels * width))
        step = math.ceil(samples / max(1, math.ceil(samples / most)))
        starts = range(0, samples, step) if samples else [0]
        blocks = [slice(start, min(start + step, samples)) for start in starts]
        return [(b, slice(b.start * pixels, b.stop * pixels)) for b in blocks], step * pixels

    def _patches(self, x, p):
        """The first convolution's patches, of x₁ alone."""
        return self.conv.patches(x[..., : x.shape[-1] // 2], p["w1"].shape[:2])

    def _add_up(self, rows, g_b, add):
        """g_b (F,) = or += the sum of rows (M, F)."""
        sums = rows.sum(axis=0)
        g_b[...] = g_b + sums if add else sums

    def _product(self, a, b, out, add):
        """out = a b, or out += a b: by way of a temporary, on a CPU faster than `matmul_add`."""
        if add:
            out += self.linalg.matmul(a, b)
        else:
            self.linalg.matmul(a, b, out=out)
