"""The self-normalizing training steps in PyTorch, for `benchmark.py` to put beside ours.

For comparison only: the package has no use for PyTorch and never imports it, nor does any other
script. What a person who has PyTorch would write: linear layers with the paper's update by hand
(the six products of `snfnp.rules`, since no automatic gradient gives it), automatic gradients
around them, the fused Adam, and its CUDA graphs. Models, initial parameters and batches are ours;
images are (N, C, H, W) here and kernels (O, I, kH, kW).
"""

from __future__ import annotations

import math
import time

import torch
import torch.nn.functional as F

from snfnp.layers import (
    ActNorm,
    AffineCoupling,
    Linear,
    RationalQuadraticSpline,
    SmoothLeakyReLU,
    SplitPrior,
    Squeeze,
)
from snfnp.maps import Dense
from snfnp.ops.spline.definition import slope_shift

_KERNEL, _SPLINE = (3, 2, 0, 1), (2, 0, 1, 3)  # our axes in PyTorch's order


def training_call(trainer, images, tf32: bool, graph: bool):
    """A trainer's step on the GPU, as a call without arguments, on host images (M, H, W, C).

    Images lie channels first or last, whichever turns out faster.
    """
    layouts = (False, True) if len(trainer.flow.shape) == 3 else (False,)
    device = torch.device("cuda")
    fastest, best = None, math.inf
    for channels_last in layouts:
        step = Step(trainer, images, device, channels_last, tf32, graph)
        seconds = _seconds(step)
        if seconds < best:
            fastest, best = step, seconds
        del step
    torch.cuda.empty_cache()
    return fastest


def _seconds(step, warmup: int = 5, steps: int = 10) -> float:
    for _ in range(warmup):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


class Step:
    """step(): gather the next batch and ascend Eq. 3 once."""

    def __init__(self, trainer, images, device, channels_last=False, tf32=False, graph=False):
        self.flow, config = trainer.flow, trainer.config
        self.lam, self.batch_size, self.tf32 = trainer.lam, config.batch_size, tf32
        self.dtype = getattr(torch, config.dtype)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.params = {
            layer: {name: self._leaf(trainer, name, value, device) for name, value in own.items()}
            for layer, own in trainer.params.items()
        }
        on_gpu = device.type == "cuda"
        self.optimiser = torch.optim.Adam(
            [leaf for own in self.params.values() for leaf in own.values()],
            lr=torch.tensor(config.lr, device=device) if on_gpu else config.lr,
            betas=(trainer.adam.beta1, trainer.adam.beta2),
            eps=trainer.adam.eps,
            maximize=True,
            fused=True,
            capturable=on_gpu,
        )
        self.products = {}
        shape = self.flow.shape
        for name, layer in self.flow.layers:
            if isinstance(layer, Linear):
                dense = isinstance(layer.map, Dense)
                self.products[name] = (
                    _DenseMap() if dense else _Conv(layer.map, shape, self, device)
                )
            shape = layer.output_shape(shape)
        self.log = torch.zeros(3, dtype=torch.float64, device=device)
        self.images = torch.from_numpy(images).to(device)
        self.batch = self.images[: self.batch_size].clone()
        self.index = len(images)  # a new epoch comes first
        self.graph = None
        if graph:
            self._capture()

    def _leaf(self, trainer, name, value, device):
        host = torch.from_numpy(trainer.ops.to_host(value)).clone()
        leaf = to_torch(name, host).to(device, self.dtype).contiguous()
        if leaf.ndim == 4 and name not in ("widths", "heights", "slopes"):
            leaf = leaf.contiguous(memory_format=self.format)
        return leaf.requires_grad_()

    def __call__(self) -> None:
        if self.index + self.batch_size > len(self.images):
            self.order = torch.randperm(len(self.images), device=self.images.device)
            self.index = 0
        rows = self.order[self.index : self.index + self.batch_size]
        torch.index_select(self.images, 0, rows, out=self.batch)
        self.index += self.batch_size
        if self.graph is not None:
            self.graph.replay()
        else:
            self._ascend()

    def _capture(self) -> None:
        """Three plain steps beside the default stream, then the capture."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._ascend()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._ascend()
        self.graph = graph

    def _ascend(self) -> None:
        noise = torch.rand(self.batch.shape, dtype=torch.float64, device=self.batch.device)
        self.ascend(self.batch, noise)

    def ascend(self, images, noise) -> None:
        """One step on images (N, H, W, C), uint8, with dequantisation noise of their shape."""
        _set_precision(self.tf32)
        self.optimiser.zero_grad(set_to_none=True)
        errors: list[torch.Tensor] = []
        density = self.density(images, noise, errors).mean()
        density.backward()
        self.optimiser.step()
        with torch.no_grad():
            reconstruction = torch.stack(errors).sum()
            gradients = [p.grad for own in self.params.values() for p in own.values()]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            surrogate = density - self.lam * reconstruction
            self.log.copy_(torch.stack([surrogate, reconstruction, norm]))

    def density(self, images, noise, errors):
        """log p_Z(z) + the data-dependent log-determinants (N,).

        errors: receives each linear layer's reconstruction error in the backward pass.
        """
        x, ldj = _preprocess(self.flow.preprocess, images, noise, self.dtype)
        if len(self.flow.shape) == 3:
            x = x.permute(0, 3, 1, 2).contiguous(memory_format=self.format)
        else:
            x = x.reshape(len(x), -1)
        for name, layer in self.flow.layers:
            p = self.params[name]
            if isinstance(layer, Linear):
                weights = (p["W"], p["R"], p["b"], self.products[name])
                x = _SelfNormalizing.apply(x, *weights, self.lam, errors)
                continue
            if isinstance(layer, Squeeze):
                x = F.pixel_unshuffle(x, 2).contiguous(memory_format=self.format)
                continue
            x, layer_ldj = _FORWARD[type(layer)](layer, p, x)
            ldj = ldj + layer_ldj
        return ldj + _gaussian_log_density(x)


def to_torch(name: str, value):
    """A parameter of ours in PyTorch's order of axes (a view)."""
    if name == "w2":  # a 1×1 convolution, inputs first
        return value.T[:, :, None, None]
    if value.ndim == 4:
        return value.permute(_SPLINE if name in ("widths", "heights", "slopes") else _KERNEL)
    return value


def _set_precision(tf32: bool) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(cudnn, "conv"):  # PyTorch 2.9 and newer
        matmul.fp32_precision = cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"
    else:
        matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    cudnn.benchmark = True


def _preprocess(preprocess, images, noise, dtype):
    """Preprocess images as `snfnp.layers.Preprocess` does, in double precision."""
    alpha, levels = preprocess.alpha, preprocess.levels
    noisy = images + noise
    s = alpha + (1 - 2 * alpha) * (noisy / levels)
    rest = alpha + (1 - 2 * alpha) * ((levels - noisy) / levels)
    log_s, log_rest = torch.log(s), torch.log(rest)
    constant = math.log1p(-2 * alpha) - math.log(levels)
    ldj = (constant - log_s - log_rest).flatten(1).sum(1)
    return (log_s - log_rest).to(dtype), ldj.to(dtype)


def _gaussian_log_density(z):
    return -0.5 * (z * z).flatten(1).sum(1) - 0.5 * math.log(2 * math.pi) * z[0].numel()


# ---------------------------------------------------------------- linear layers


class _SelfNormalizing(torch.autograd.Function):
    """z = T(W) x + b, with the update of `snfnp.rules.SelfNormalizing` for its gradient."""

    @staticmethod
    def forward(ctx, x, w, r, b, product, lam, errors):
        z0 = product.apply(w, x)
        ctx.save_for_backward(x, z0, w, r)
        ctx.product, ctx.lam, ctx.errors = product, lam, errors
        return z0 + (b if z0.ndim == 2 else b[:, None, None])

    @staticmethod
    def backward(ctx, dz):
        (x, z0, w, r), product = ctx.saved_tensors, ctx.product
        factor = -2 * ctx.lam / len(x)  # of the reconstruction gradient
        error = product.apply(r, z0) - x
        ctx.errors.append(error.square().sum() / len(x))
        delta_w = torch.add(factor * product.adjoint(r, error), dz, alpha=0.5)
        g_w = product.weight_grad(delta_w, x, product.flip(r), 0.5)
        dx = product.adjoint(w, dz)
        delta_r = torch.add(factor * error, dx, alpha=-0.5)
        g_r = product.weight_grad(delta_r, z0, product.flip(w), -0.5)
        g_b = dz.sum(0 if dz.ndim == 2 else (0, 2, 3))
        return dx, g_w, g_r, g_b, None, None, None


class _DenseMap:
    def apply(self, w, x):
        return x @ w.t()

    def adjoint(self, w, dz):
        return dz @ w

    def flip(self, w):
        return w.t()

    def weight_grad(self, delta, x, flipped, scale):
        return torch.addmm(flipped, delta.t(), x, beta=scale)


class _Conv:
    """Stride 1 and zero padding; flip(w) ⊙ m as in Eqs. 23-26."""

    def __init__(self, conv, shape, step: Step, device):
        self.padding = [size // 2 for size in conv.kernel]
        multiple = torch.from_numpy(conv.multiple(shape).copy())
        self.multiple = multiple.permute(_KERNEL).to(device, step.dtype)

    def apply(self, w, x):
        return F.conv2d(x, w, padding=self.padding)

    def adjoint(self, w, dz):
        return F.conv_transpose2d(dz, w, padding=self.padding)

    def flip(self, w):
        return w.flip(2, 3).transpose(0, 1)

    def weight_grad(self, delta, x, flipped, scale):
        product = torch.nn.grad.conv2d_weight(x, flipped.shape, delta, padding=self.padding)
        return torch.addcmul(product, flipped, self.multiple, value=scale)


# ---------------------------------------------------------------- layers: (z, ldj)


def _smooth_leaky_relu(layer: SmoothLeakyReLU, p, x):
    a = layer.alpha
    z = a * x + (1 - a) * F.softplus(x, threshold=40)
    return z, torch.log(a + (1 - a) * torch.sigmoid(x)).flatten(1).sum(1)


def _actnorm(layer: ActNorm, p, x):
    t, s = p["t"][:, None, None], p["s"][:, None, None]
    return (x - t) * torch.exp(-s), -math.prod(x.shape[2:]) * p["s"].sum()


def _coupling(layer: AffineCoupling, p, x):
    x1, x2 = x.chunk(2, 1)
    a = F.conv2d(x1, p["w1"], p["b1"], padding=1).relu_()
    a = F.conv2d(a, p["w2"], p["b2"]).relu_()
    h = F.conv2d(a, p["w3"], p["b3"], padding=1) * torch.exp(3 * p["logs"])[:, None, None]
    s = 2 * torch.tanh(h[:, 0::2] / 2)
    z = torch.cat([x1, x2 * torch.exp(s) + h[:, 1::2]], 1)
    return z, s.flatten(1).sum(1)


def _split(layer: SplitPrior, p, x):
    z, ldj = _coupling(layer.coupling, p, x)
    z, latent = z.chunk(2, 1)
    return z, ldj + _gaussian_log_density(latent)


def _spline(layer: RationalQuadraticSpline, p, x):
    """Evaluate splines as `snfnp.ops.spline` does: knots (3, C, H, W, K+1), looked up as pairs."""
    bound, bins, eps = layer.bound, layer.bins, layer.eps
    knots = [
        F.pad(sizes.cumsum(-1), (1, 0)) - bound
        for raw in (p["widths"], p["heights"])
        for sizes in [2 * bound * (eps + (1 - eps * bins) * torch.softmax(raw, -1))]
    ]
    slopes = eps + F.softplus(p["slopes"] + slope_shift(eps), threshold=40)
    pairs = torch.stack([*knots, F.pad(slopes, (1, 1), value=1.0)]).unfold(-1, 2, 1)
    index = (x[..., None] >= knots[0][..., 1:-1]).sum(-1)[..., None, None]
    index = index.expand(3, *x.shape, 1, 2)
    found = pairs[:, None].expand(3, *x.shape, bins, 2).gather(-2, index)[..., 0, :]
    (x0, x1), (y0, y1), (d0, d1) = (each.unbind(-1) for each in found)
    inside = (x > -bound) & (x < bound)
    w, h = x1 - x0, y1 - y0
    s = h / w
    t = torch.where(inside, (x - x0) / w, 0)
    u = t * (1 - t)
    denominator = s + (d0 + d1 - 2 * s) * u
    n = d1 * t * t + 2 * s * u + d0 * (1 - t) * (1 - t)
    z = torch.where(inside, y0 + h * ((s * t * t + d0 * u) / denominator), x)
    log_slope = torch.where(inside, torch.log(n) + 2 * torch.log(s / denominator), 0)
    return z, log_slope.flatten(1).sum(1)


_FORWARD = {
    ActNorm: _actnorm,
    AffineCoupling: _coupling,
    RationalQuadraticSpline: _spline,
    SmoothLeakyReLU: _smooth_leaky_relu,
    SplitPrior: _split,
}
