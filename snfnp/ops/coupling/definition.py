"""The affine coupling and its network in array terms; see derivations/14-coupling.md.

The channels of an image are halved, x = (x₁, x₂); h (N, H, W, C) is what a network makes of x₁,
two interleaved channels h₀ (0, 2, …) and h₁ (1, 3, …) for each channel of x₂:

    z₁ = x₁,   z₂ = x₂ exp(s) + h₁,   s = 2 tanh(h₀/2)

The network, with k = 3:

    a₁ = max(w1 ⋆ x₁ + b1, 0),  a₂ = max(a₁ w2 + b2, 0),  h = (w3 ⋆ a₂ + b3) exp(k logs)
"""

import math

from snfnp.ops.channels.definition import Channels
from snfnp.ops.conv.definition import Conv, flip
from snfnp.ops.group import Array, OperationGroup
from snfnp.ops.linalg.definition import LinearAlgebra

_SCALE = 3  # k: as in Glow, the factor makes `logs` learn faster


class Coupling(OperationGroup):
    linalg: LinearAlgebra
    channels: Channels
    conv: Conv
    # Values of a hidden layer in one block of samples: a CPU's caches hold them.
    network_values = 2000 * 512
    # Whether a backward pass may follow, for which `network` can keep hidden layers.
    keeps_hidden = True
    # Whether a₁ is one of them. A CPU takes about as long to compute it again as to write and read
    # it, and need not store it.
    keeps_a1 = False

    def forward(self, x: Array, h: Array) -> tuple[Array, Array, Array]:
        """x, h (N, H, W, C) -> z (N, H, W, C), ldj (N,) = Σ s, s (N, H, W, C/2). O(N H W C)."""
        xp = self.xp
        half = x.shape[-1] // 2
        s = 2 * xp.tanh(h[..., ::2] / 2)
        z = x.copy()  # contiguous
        z[..., half:] = x[..., half:] * xp.exp(s) + h[..., 1::2]
        return z, s.sum(axis=(1, 2, 3)), s

    def inverse(self, z: Array, h: Array) -> Array:
        """z, h (N, H, W, C) -> the x with forward(x, h) = z, exact. O(N H W C)."""
        xp = self.xp
        half = z.shape[-1] // 2
        x = z.copy()
        x[..., half:] = (z[..., half:] - h[..., 1::2]) * xp.exp(
            -2 * xp.tanh(h[..., ::2] / 2)
        )
        return x

    def backward(
        self, x: Array, s: Array, dz: Array, dldj: Array
    ) -> tuple[Array, Array]:
        """δ_{x₁} = δ_{z₁},  δ_{x₂} = δ_{z₂} eˢ,  δ_{h₀} = δ_s (1 − s²/4),  δ_{h₁} = δ_{z₂},

        with δ_s = δ_{z₂} x₂ eˢ + δ_ldj, and 1 − s²/4 = 1 − tanh²(h₀/2) = ds/dh₀.
        x, dz (N, H, W, C), s (N, H, W, C/2), dldj (N,) -> dx, dh (N, H, W, C). O(N H W C).
        """
        xp = self.xp
        half = x.shape[-1] // 2
        dx = dz.copy()
        dh = xp.empty_like(dz, order="C")
        dx[..., half:] *= xp.exp(s)
        ds = dx[..., half:] * x[..., half:] + dldj[:, None, None, None]
        dh[..., ::2] = ds * (1 - s * s / 4)
        dh[..., 1::2] = dz[..., half:]
        return dx, dh

    def bias_relu(self, out: Array, b: Array) -> Array:
        """out ← max(out + b, 0), rows (M, F) and b (F,). O(M F)."""
        out += b
        return self.xp.maximum(out, 0, out=out)

    def bias_relu_backward(
        self, out: Array, a: Array, g_b: Array, add: bool = False
    ) -> None:
        """out ← out ⊙ [a > 0] for a = max(v + b, 0): δ_a becomes δ_v. O(M F).

        out, a (M, F); g_b (F,) ← the gradient of b, which is the sum of the rows of δ_v, or with
        `add` g_b += that. Where a is NaN, out is kept; a NaN in out stays NaN.
        """
        out *= ~(a <= 0)
        self._add_up(out, g_b, add)

    def network(
        self, x: Array, p: dict[str, Array], keep: bool
    ) -> tuple[Array, dict[str, Array]]:
        """x (N, H, W, C), of which x₁ is read -> h (N, H, W, C), and the hidden layers that the
        backward pass needs.

        keep: whether these are wanted: {"a2": a₂ (N H W, width)}, and "a1": a₁ if `keeps_a1`; else
        {}. p: w1 (kH, kW, C/2, width), b1 (width,), w2 (width, width), b2 (width,), w3 (kH, kW,
        width, C), b3 and logs (C,). 2 N H W (width² + 1.5 kH kW C width) operations, in
        blocks of samples.
        """
        samples, height, columns, _ = x.shape
        width = len(p["b1"])
        matmul = self.linalg.matmul
        h = self.xp.empty(x.shape, x.dtype)
        patches = self._patches(x, p)
        w1 = p["w1"].reshape(-1, width)
        keep = keep and self.keeps_hidden
        keep_a1 = keep and self.keeps_a1
        blocks, most = self._blocks(samples, height * columns, width)
        # A layer that is not kept has the rows of one block, which every block overwrites.
        hidden_1 = self.xp.empty((len(patches) if keep_a1 else most, width), x.dtype)
        hidden_2 = self.xp.empty((len(patches) if keep else most, width), x.dtype)
        for block, rows in blocks:
            overwritten = slice(rows.stop - rows.start)
            a1 = hidden_1[rows if keep_a1 else overwritten]
            a2 = hidden_2[rows if keep else overwritten]
            self.bias_relu(matmul(patches[rows], w1, out=a1), p["b1"])
            self.bias_relu(matmul(a1, p["w2"], out=a2), p["b2"])
            v = self.conv.correlate(a2.reshape(-1, height, columns, width), p["w3"])
            # (v + b3) exp(k logs)
            self.channels.shift_scale(v, 1.0, p["b3"], _SCALE, p["logs"], out=h[block])
        hidden = {"a2": hidden_2} if keep else {}
        if keep_a1:
            hidden["a1"] = hidden_1
        return h, hidden

    def network_backward(
        self,
        x: Array,
        hidden: dict[str, Array],
        h: Array,
        dh: Array,
        p: dict[str, Array],
        out: Array,
        grads: dict[str, Array],
    ) -> None:
        """δ_h -> δ_{x₁}, which is added to out[..., :C/2], and the gradients of p.

        x and p are those of `network`, h and hidden its results; dh, out (N, H, W, C).
        grads: an array for each parameter of p, all of them written. Twice the operations of
        `network`.
        """
        xp = self.xp
        matmul = self.linalg.matmul
        samples, height, columns, channels = x.shape
        width = len(p["b1"])
        # h = (v + b3) exp(k logs): δ_h becomes δ_v
        dv = self.channels.shift_scale_backward(
            dh, h, 1.0, _SCALE, p["logs"], None, (grads["b3"], grads["logs"])
        )
        w1 = p["w1"].reshape(-1, width)
        w1_adjoint = flip(p["w1"])
        w3_adjoint = flip(p["w3"]).reshape(-1, width)
        patches_1 = self._patches(x, p)
        # The gradient of flip(w3) has a₂ᵀ as its first factor and patches of δ_v as its second, as
        # that of w1 has δᵀ and patches of x₁: BLAS is faster with `width` rows in the product.
        patches_3 = self.conv.patches(dv, p["w3"].shape[:2])
        g_w1 = xp.empty((width, patches_1.shape[1]), x.dtype)
        g_w3 = xp.empty((width, patches_3.shape[1]), x.dtype)
        blocks, most = self._blocks(samples, height * columns, width)
        recompute = "a1" not in hidden
        deltas_1 = xp.empty((most, width), x.dtype)
        deltas_2 = xp.empty((most, width), x.dtype)
        hidden_1 = xp.empty((most, width), x.dtype) if recompute else hidden["a1"]
        for block, rows in blocks:
            overwritten = slice(rows.stop - rows.start)
            d1 = deltas_1[overwritten]
            d2 = deltas_2[overwritten]
            a1 = hidden_1[overwritten if recompute else rows]
            a2 = hidden["a2"][rows]
            add = block.start > 0  # the first block writes

            self._product(a2.T, patches_3[rows], g_w3, add)
            matmul(patches_3[rows], w3_adjoint, out=d2)
            self.bias_relu_backward(d2, a2, grads["b2"], add)

            if recompute:
                self.bias_relu(matmul(patches_1[rows], w1, out=a1), p["b1"])
            self._product(a1.T, d2, grads["w2"], add)
            matmul(d2, p["w2"].T, out=d1)
            self.bias_relu_backward(d1, a1, grads["b1"], add)

            self._product(d1.T, patches_1[rows], g_w1, add)
            images = d1.reshape(-1, height, columns, width)
            out[block][..., : channels // 2] += self.conv.correlate(images, w1_adjoint)
        grads["w1"][...] = g_w1.T.reshape(p["w1"].shape)
        grads["w3"][...] = flip(g_w3.T.reshape(*p["w3"].shape[:2], channels, width))

    def _blocks(
        self, samples: int, pixels: int, width: int
    ) -> tuple[list[tuple[slice, slice]], int]:
        """[(slice of the samples, slice of their rows), …] of about equal size, and the number of
        rows in the largest. A row is a pixel's hidden values. An empty batch is one empty block."""
        limit = max(1, self.network_values // (pixels * width))
        step = math.ceil(samples / max(1, math.ceil(samples / limit)))
        blocks = []
        for start in range(0, samples, step) if samples else [0]:
            stop = min(start + step, samples)
            blocks.append((slice(start, stop), slice(start * pixels, stop * pixels)))
        return blocks, step * pixels

    def _patches(self, x: Array, p: dict[str, Array]) -> Array:
        """The first convolution's patches, of x₁ alone."""
        return self.conv.patches(x[..., : x.shape[-1] // 2], p["w1"].shape[:2])

    def _add_up(self, rows: Array, g_b: Array, add: bool) -> None:
        """g_b (F,) ← the sum of rows (M, F), or with `add` g_b += it."""
        sums = rows.sum(axis=0)
        g_b[...] = g_b + sums if add else sums

    def _product(self, a: Array, b: Array, out: Array, add: bool) -> None:
        """out = a b, or out += a b: by way of a temporary, on a CPU faster than `matmul_add`."""
        if add:
            out += self.linalg.matmul(a, b)
        else:
            self.linalg.matmul(a, b, out=out)
