"""Other papers' convolutions, baselines of the paper's Table 1.

Emerging convolutions (Hoogeboom et al. 2019): a causal convolution is triangular, so that its
determinant is a product and its inverse a substitution. Two of them in opposite directions see a
pixel's whole neighbourhood, as a 3×3 convolution does.

The convolution exponential (Hoogeboom et al. 2020): exp(T(K)) x = Σ_i T(K)^i x / i! is invertible
for every kernel K: its inverse is exp(−T(K)), and its log-determinant is the trace of T(K).
Derivation: derivations/11-emerging.md and 12-convolution-exponential.md.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from snfnp.context import BackwardContext
from snfnp.errors import SingularMatrixError, require_real, require_sizes, require_whole
from snfnp.layers.base import Forward, Layer, Params, Shape
from snfnp.layers.linear import Linear, xavier
from snfnp.maps import Conv2d
from snfnp.ops import Array, Ops, RandomKey
from snfnp.ops.channels.definition import pixels
from snfnp.rules import Exact

_START = RandomKey(0, 0)  # of the power iteration: any direction, always the same
_MARGIN = 1e-5  # added to S by the authors' code


def emerging_layers(name: str, channels: int, gain: float = 0.01) -> tuple:
    """The (name, layer) pairs of a 1×1 convolution and of two causal 2×2 convolutions in opposite
    directions, which have a bias.

    The kernels are initially the identity plus Xavier normal noise of this gain (A.3). In the
    authors' code the 1×1 convolution is initially a random orthogonal matrix, and the noise of the
    causal kernels has a standard deviation of 1/(2C).
    """
    return (
        (
            f"{name}_mix",
            Linear(Conv2d((1, 1), channels), Exact(), bias=False, gain=gain),
        ),
        (f"{name}_causal", CausalConv2d(channels, gain=gain)),
        (f"{name}_anticausal", CausalConv2d(channels, gain=gain, reverse=True)),
    )


@dataclass(frozen=True)
class CausalConv2d(Layer):
    """z = T(W) x + b with a 2×2 kernel that sees the pixel and those above and on the left of it.

    W (2, 2, C, C), with zero padding on top and on the left. Its last tap, W[1, 1], is the pixel
    itself: there channel o sees channels i <= o alone, and W's other values are ignored (gradient
    0). So T(W) is triangular in raster order, and its diagonal is H W copies of W[1, 1]'s.

    Args:
        channels: C.
        bias: whether there is a b (C,).
        gain: W is initially the identity plus Xavier normal noise of this gain.
        reverse: see the pixels below and on the right instead: the same convolution between two
            turns of the image by 180 degrees.
    """

    channels: int
    bias: bool = True
    gain: float = 0.01
    reverse: bool = False

    def __post_init__(self):
        require_whole(self, 1, channels=self.channels)
        require_real(self, math.inf, or_zero=True, gain=self.gain)

    def parameter_shapes(self, shape: Shape) -> dict:
        c = self.channels
        shapes = {"W": (2, 2, c, c)}
        return shapes | {"b": (c,)} if self.bias else shapes

    def init(self, rng: np.random.Generator, shape: Shape) -> dict:
        params = super().init(rng, shape)
        size = params["W"].shape
        w = rng.normal(scale=xavier(size, self.gain), size=size)
        w[1, 1] = np.triu(w[1, 1]) + np.eye(self.channels)
        return params | {"W": w}

    def output_shape(self, shape: Shape) -> Shape:
        # the shape of the input, if it has C channels
        return Conv2d((1, 1), self.channels).output_shape(shape)

    def forward(self, ops: Ops, p: Params, x: Array) -> Forward:
        """ldj is 0: see `log_det`. O(N H W C²)."""
        z = _causal(ops, _masked(ops, p["W"]), x, self.reverse)
        if self.bias:
            z = ops.channels.shift(z, p["b"])
        return z, 0, {"x": x}

    def inverse(self, ops: Ops, p: Params, z: Array) -> Array:
        """Exact, by substitution from row to row of the image. O(N H (W C)² + (W C)³). Rounding
        errors grow on the way if other taps are large against W[1, 1].
        """
        self._diagonal(ops, p)  # raises where W has no inverse
        n, height, width, channels = z.shape
        x = turned(z - p["b"] if self.bias else z, self.reverse).copy()
        # Rows y of an image obey z_y = x_y B + x_{y−1} A. B and A are what the convolution makes of
        # images of two rows, of which the first one is a unit vector and the second one is 0.
        size = width * channels
        units = ops.xp.eye(size, 2 * size, dtype=z.dtype).reshape(
            size, 2, width, channels
        )
        z_units = ops.conv.correlate(units, _masked(ops, p["W"])).reshape(size, 2, size)
        b_inverse = ops.linalg.inverse(z_units[:, 0])
        a = z_units[:, 1]
        rows = x.reshape(n, height, size)  # a view: the loop solves for x in place
        for y in range(height):
            if y:
                rows[:, y] -= rows[:, y - 1] @ a
            rows[:, y] = rows[:, y] @ b_inverse
        return ops.xp.ascontiguousarray(turned(x, self.reverse))

    def backward(
        self, ctx: BackwardContext, p: Params, cache: dict, dz: Array, grads: Params
    ) -> Array:
        """δ_x = T(W)ᵀ δ_z; G_W = δ_z ⋆ x where W is not ignored, and on the diagonal of W[1, 1]
        also H W Σ ∂𝓛/∂ldj / W[1, 1, c, c]."""
        ops = ctx.ops
        x = cache["x"]
        g_w = grads["W"]
        diagonal = self._diagonal(ops, p, wait=False)
        ops.conv.weight_grad(turned(dz, self.reverse), turned(x, self.reverse), out=g_w)
        log_det_grad = ctx.log_det_weight * pixels(x) / diagonal
        g_w[1, 1] = ops.xp.triu(g_w[1, 1]) + ops.xp.diag(log_det_grad.astype(g_w.dtype))
        if self.bias:
            ops.channels.sum(dz, out=grads["b"])
        # T(W)ᵀ is T of the transposed taps between two turns of the image
        return _causal(ops, _masked(ops, p["W"]).swapaxes(2, 3), dz, not self.reverse)

    def log_det(self, ops: Ops, p: Params, shape: Shape) -> float:
        """log|det T(W)| = H W Σ_c log|W[1, 1, c, c]|. O(C)."""
        return (
            shape[0] * shape[1] * float(ops.xp.log(abs(self._diagonal(ops, p))).sum())
        )

    def _diagonal(self, ops: Ops, p: Params, wait: bool = True) -> Array:
        """The diagonal of W[1, 1] (C,). Raises SingularMatrixError if it has a zero or a NaN.

        Without `wait`, it is not checked where the host would have to wait for the device: a zero
        then becomes an infinite gradient.
        """
        diagonal = p["W"][1, 1].diagonal()
        invertible = (abs(diagonal) > 0).all()
        known = bool(invertible) if wait else ops.known_on_host(invertible)
        if known is False:  # None: the host does not know
            raise SingularMatrixError(
                "a causal kernel has a zero or NaN on its diagonal"
            )
        return diagonal


def _causal(ops: Ops, kernel: Array, images: Array, reverse: bool) -> Array:
    """The convolution with a 2×2 kernel, between two turns of the images if `reverse`."""
    z = ops.conv.correlate(turned(images, reverse), kernel)
    return ops.xp.ascontiguousarray(turned(z, reverse))


def turned(images: Array, reverse: bool) -> Array:
    """Images (N, H, W, C), turned by 180 degrees if `reverse` (a view)."""
    return images[:, ::-1, ::-1] if reverse else images


def _masked(ops: Ops, w: Array) -> Array:
    """A causal kernel with zeros for the values that are ignored."""
    k = w.copy()
    k[1, 1] = ops.xp.triu(k[1, 1])
    return k


def exponential_layers(name: str, channels: int, gain: float = 0.01) -> tuple:
    """The (name, layer) pairs of a bias, a 1×1 convolution, the exponential of a 3×3 convolution
    and a bias.

    The layers are initially the identity but for Xavier normal noise of this gain in both kernels
    (A.3). In the authors' code the 1×1 convolution is initially a random orthogonal matrix, and the
    noise of the 3×3 kernel has a standard deviation of 1/(9C).
    """
    return (
        (f"{name}_pre", Bias()),
        (
            f"{name}_mix",
            Linear(Conv2d((1, 1), channels), Exact(), bias=False, gain=gain),
        ),
        (f"{name}_exp", ConvExponential(channels, gain=gain)),
        (f"{name}_post", Bias()),
    )


@dataclass(frozen=True)
class Bias(Layer):
    """z = x + b with one b per value of a sample, initially 0. O(N D)."""

    def parameter_shapes(self, shape: Shape) -> dict:
        return {"b": shape}

    def forward(self, ops: Ops, p: Params, x: Array) -> Forward:
        return ops.channels.shift(x, p["b"]), 0, {}

    def inverse(self, ops: Ops, p: Params, z: Array) -> Array:
        return z - p["b"]

    def backward(
        self, ctx: BackwardContext, p: Params, cache: dict, dz: Array, grads: Params
    ) -> Array:
        """G_b = Σ_n δ_n; δ_x is δ_z itself."""
        dz.sum(axis=0, out=grads["b"])
        return dz


@dataclass(frozen=True)
class ConvExponential(Layer):
    """z = exp(T(K)) x with K = W / S: a power series of a convolution of bounded norm.

    S = max(1, σ/c) + 1e-5 with the bound c (`norm`) reduces the norm of T(K) to about c where that
    of T(W) is larger. σ estimates the norm of T(W) from below, by the power method from a fixed
    direction: a function of W alone, with an exact gradient. The series ends after n terms; for a
    norm r of T(K), the rest is at most eʳ rⁿ⁺¹/(n+1)!: for r = 0.9, 2e-4 with n = 6 and 6e-12 with
    n = 13. The log-determinant is that of the whole series. Parameter: W (kH, kW, C, C). Cost of
    each direction: n convolutions of the batch, 2 `iterations` + 1 of one image.

    Args:
        channels: C.
        kernel: (kH, kW), both odd.
        norm: c, the bound.
        iterations: steps of the power method.
        terms: n in single precision and n in double precision. The authors' code takes the first
            in training and the second in evaluation.
        gain: W is initially Xavier normal noise of this gain.
    """

    channels: int
    kernel: tuple[int, int] = (3, 3)
    norm: float = 0.9
    iterations: int = 5
    terms: tuple[int, int] = (6, 13)
    gain: float = 0.01

    def __post_init__(self):
        _ = self.map  # raises if a size of the kernel is even, or there are no channels
        require_whole(self, 1, iterations=self.iterations)
        require_sizes(self, 2, terms=self.terms)
        require_real(self, math.inf, norm=self.norm)
        require_real(self, math.inf, or_zero=True, gain=self.gain)

    @cached_property
    def map(self) -> Conv2d:
        return Conv2d(self.kernel, self.channels)

    def parameter_shapes(self, shape: Shape) -> dict:
        return {"W": self.map.weight_shape}

    def init(self, rng: np.random.Generator, shape: Shape) -> dict:
        shape = self.map.weight_shape
        return {"W": rng.normal(scale=xavier(shape, self.gain), size=shape)}

    def output_shape(self, shape: Shape) -> Shape:
        return self.map.output_shape(shape)

    def forward(self, ops: Ops, p: Params, x: Array) -> Forward:
        """z = Σ_i y_i with y_0 = x and y_i = T(K) y_{i-1} / i. ldj is 0: see `log_det`."""
        sigma, path = self._spectral_norm(ops, p["W"], x.shape[1:])
        z, terms = self._series(ops, p["W"] / self._scale(ops, sigma), x)
        return z, 0, {"terms": terms, "sigma": sigma, "path": path}

    def inverse(self, ops: Ops, p: Params, z: Array) -> Array:
        """x = exp(−T(K)) z: the same series with −T(K)."""
        sigma, _ = self._spectral_norm(ops, p["W"], z.shape[1:])
        return self._series(ops, p["W"] / -self._scale(ops, sigma), z)[0]

    def backward(
        self, ctx: BackwardContext, p: Params, cache: dict, dz: Array, grads: Params
    ) -> Array:
        """δ_n = δ_z and δ_{i-1} = δ_z + T(K)ᵀ δ_i / i are the deltas of y_n, …, y_0 = x;
        G_K = Σ_i (δ_i / i) ⋆ y_{i-1}, plus H W on the diagonal of the central tap."""
        ops = ctx.ops
        w = p["W"]
        terms = cache["terms"]
        sigma = cache["sigma"]
        scale = self._scale(ops, sigma)
        k = w / scale
        g_k = grads["W"]
        delta = dz
        term_grad = ops.xp.empty_like(g_k)
        g_k.fill(0)
        for i in range(len(terms) - 1, 0, -1):
            # 1/i is a factor of kernels rather than of batches, and dz is added in place
            g_k += self.map.weight_grad(ops, delta, terms[i - 1], out=term_grad) / i
            delta = ops.linalg.axpby(1.0, dz, 1.0, self.map.adjoint(ops, k / i, delta))
        # plus ∂ log_det/∂K, weighted by Σ ∂𝓛/∂ldj
        self._centre(g_k)[...] += (
            ctx.dldj.sum() * pixels(dz) * ops.xp.eye(self.channels, dtype=w.dtype)
        )

        # K = W/S: G_W = G_K/S − ⟨G_K, W⟩/S² ∂S/∂W, and ∂S/∂W = (∂σ/∂W)/c if σ > c, else 0
        g_k /= scale
        beyond = sigma > self.norm
        if ops.known_on_host(beyond) is not False:  # True, or the host does not know
            slope = beyond * (g_k * w).sum() / (scale * self.norm)
            g_k -= slope * self._spectral_norm_grad(ops, w, sigma, cache["path"])
        return delta

    def log_det(self, ops: Ops, p: Params, shape: Shape) -> float:
        """log det exp(T(K)) = trace T(K) = H W Σ_c K[centre, c, c]."""
        sigma, _ = self._spectral_norm(ops, p["W"], shape)
        trace = self._centre(p["W"]).diagonal().sum() / self._scale(ops, sigma)
        return shape[0] * shape[1] * float(trace)

    def _series(self, ops: Ops, k: Array, x: Array) -> tuple[Array, list[Array]]:
        """Σ_i T(k)^i x / i! for i = 0, …, terms, and the list of its terms."""
        z = x.copy()
        terms = [x]
        single, double = self.terms
        count = single if x.dtype == np.float32 else double
        for i in range(1, count + 1):
            terms.append(self.map.apply(ops, k / i, terms[-1]))
            ops.linalg.axpby(1.0, terms[-1], 1.0, z)
        return z, terms

    def _centre(self, w: Array) -> Array:
        """The centre tap (C, C) of a kernel (a view)."""
        return w[self.kernel[0] // 2, self.kernel[1] // 2]

    def _scale(self, ops: Ops, sigma: Array) -> Array:
        """S of K = W/S, a number of shape () on the device. A NaN stays a NaN."""
        return ops.xp.maximum(sigma / self.norm, 1.0) + _MARGIN

    def _spectral_norm(self, ops: Ops, w: Array, shape: Shape) -> tuple[Array, tuple]:
        """σ = ‖T(w) v‖ at the unit image v that the power method reaches, and its path there:
        (v_j, T(w) v_j, ‖T(w)ᵀ T(w) v_j‖) for every step, and then (v, T(w) v)."""
        xp = ops.xp
        v = ops.random.normal(_START, (1, *shape), w.dtype)
        v /= xp.linalg.norm(v)
        path = []
        tiny = xp.finfo(w.dtype).tiny  # no division by 0 for w = 0
        for _ in range(self.iterations):
            u = self.map.apply(ops, w, v)
            following = self.map.adjoint(ops, w, u)
            length = xp.linalg.norm(following) + tiny
            path.append((v, u, length))
            v = following / length
        u = self.map.apply(ops, w, v)
        return xp.linalg.norm(u) + tiny, (*path, (v, u))

    def _spectral_norm_grad(
        self, ops: Ops, w: Array, sigma: Array, path: tuple
    ) -> Array:
        """∂σ/∂w, backwards through every step of the power method.

        With u = T(w) v / σ it is u ⋆ v for a fixed v, and what goes back to v is the part of
        ∂σ/∂v = T(w)ᵀ u that is orthogonal to the unit vector v: T(w)ᵀ u − σ v, 0 at a singular
        vector. In the steps before, it is orthogonal to their v without being projected.
        """
        *steps, (v, u) = path
        u = u / sigma
        gradient = self.map.weight_grad(ops, u, v, out=ops.xp.empty_like(w))
        v_bar = self.map.adjoint(ops, w, u) - sigma * v
        # a step: u = T(w) v, following = T(w)ᵀ u, and the next v is following / length
        for v, u, length in reversed(steps):
            following_bar = v_bar / length
            u_bar = self.map.apply(ops, w, following_bar)
            self.map.weight_grad(ops, u, following_bar, out=gradient, add=True)
            self.map.weight_grad(ops, u_bar, v, out=gradient, add=True)
            v_bar = self.map.adjoint(ops, w, u_bar)
        return gradient
