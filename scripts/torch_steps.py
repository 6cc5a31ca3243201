"""The self-normalizing training steps in PyTorch, for `benchmark.py` to put beside ours.

For comparison only: the package never imports PyTorch. What a person who has it would write: linear
layers with the paper's update by hand (the six products of `snfnp.rules`, since no automatic
gradient gives it), automatic gradients around them, and the fused Adam. Models, initial parameters
and batches are ours; images are (N, C, H, W) here and kernels (O, I, kH, kW).
"""

import math

import torch
import torch.nn.functional as F

from snfnp import layers
from snfnp.maps import Dense
from snfnp.ops.spline.definition import slope_shift

_KERNEL, _SPLINE = (3, 2, 0, 1), (2, 0, 1, 3)  # our axes in PyTorch's order


class Step:
    """step(): gather the next batch of host images (M, H, W, C) and ascend Eq. 3 once.

    how: "eager", or "recorded" (as a CUDA graph, all but images and noise, which are copied into
    it).
    """

    def __init__(self, trainer, images, tf32=False, device="cuda", how="eager"):
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = tf32, True
        self.flow, self.lam, config = trainer.flow, trainer.lam, trainer.config
        self.batch_size, self.dtype = config.batch_size, getattr(torch, config.dtype)
        self.params, self.products = {}, {}
        for name, layer, shape in self.flow.with_shapes():
            own = {
                key: to_torch(key, torch.tensor(trainer.ops.to_host(value), device=device))
                for key, value in trainer.params.get(name, {}).items()
            }
            self.params[name] = {k: v.contiguous().requires_grad_() for k, v in own.items()}
            if isinstance(layer, layers.Linear):
                dense, like = isinstance(layer.map, Dense), self.params[name]["W"]
                self.products[name] = _Dense if dense else _Conv(layer.map, shape, like)
        self.leaves = [leaf for own in self.params.values() for leaf in own.values()]
        adam, betas = trainer.optimiser, (trainer.optimiser.beta1, trainer.optimiser.beta2)
        options = {"lr": config.lr, "betas": betas, "eps": adam.eps, "maximize": True}
        options["capturable"] = how == "recorded"
        self.optimiser = torch.optim.Adam(self.leaves, fused=True, **options)
        self.images = torch.from_numpy(images).to(device)
        self.index = len(images)  # a new epoch comes first
        # its "gradient" is the sum of the layers' reconstruction errors
        self.reconstruction = torch.zeros((), dtype=self.dtype, device=device, requires_grad=True)
        if how == "recorded":
            self.ascend = _Recorded(self.ascend)

    def __call__(self) -> None:
        if self.index + self.batch_size > len(self.images):
            self.order = torch.randperm(len(self.images), device=self.images.device)
            self.index = 0
        batch = self.images[self.order[self.index : self.index + self.batch_size]]
        self.index += self.batch_size
        self.ascend(batch, torch.rand(batch.shape, dtype=torch.float64, device=batch.device))

    def ascend(self, images, noise) -> None:
        """One step on images (N, H, W, C), uint8, with dequantisation noise of their shape.

        Leaves in `log`: the surrogate, the reconstruction error and the gradient's norm.
        """
        self.optimiser.zero_grad(set_to_none=True)
        self.reconstruction.grad = None
        density = self.density(images, noise).mean()
        density.backward()
        self.optimiser.step()
        with torch.no_grad():
            reconstruction = self.reconstruction.grad
            norms = torch._foreach_norm([leaf.grad for leaf in self.leaves])
            norm = torch.linalg.vector_norm(torch.stack(norms))
            self.log = torch.stack([density - self.lam * reconstruction, reconstruction, norm])

    def density(self, images, noise):
        """log p_Z(z) + the data-dependent log-determinants (N,)."""
        x, ldj = _preprocess(self.flow.preprocess, images, noise, self.dtype)
        flat = len(self.flow.shape) == 1
        x = x.flatten(1) if flat else x.permute(0, 3, 1, 2).contiguous()
        for name, layer in self.flow.layers:
            p = self.params[name]
            if isinstance(layer, layers.Linear):
                own = (p["W"], p["R"], p["b"], self.reconstruction, self.products[name], self.lam)
                x = _SelfNormalizing.apply(x, *own)
            elif isinstance(layer, layers.Squeeze):
                x = F.pixel_unshuffle(x, 2)
            else:
                x, layer_ldj = _FORWARD[type(layer)](layer, p, x)
                ldj = ldj + layer_ldj
        return ldj + _gaussian_log_density(x)


class _Recorded:
    """A function of tensors, recorded at the first call, after three plain ones, and replayed."""

    def __init__(self, function):
        self.function, self.graph = function, None

    def __call__(self, *inputs) -> None:
        if self.graph is None:
            self.inputs, stream = [each.clone() for each in inputs], torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self.function(*self.inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.function(*self.inputs)
        for own, value in zip(self.inputs, inputs, strict=True):
            own.copy_(value)
        self.graph.replay()


def to_torch(name: str, value):
    """A parameter of ours in PyTorch's order of axes (a view)."""
    if name == "w2":  # a 1×1 convolution, inputs first
        return value.T[:, :, None, None]
    if value.ndim == 4:
        return value.permute(_SPLINE if name in ("widths", "heights", "slopes") else _KERNEL)
    return value


def _preprocess(preprocess, images, noise, dtype):
    """Preprocess images as `snfnp.layers.Preprocess` does, in double precision."""
    alpha, levels = preprocess.alpha, preprocess.levels
    noisy = images + noise
    log_s = torch.log(alpha + (1 - 2 * alpha) * (noisy / levels))
    log_rest = torch.log(alpha + (1 - 2 * alpha) * ((levels - noisy) / levels))
    constant = math.log1p(-2 * alpha) - math.log(levels)
    ldj = (constant - log_s - log_rest).flatten(1).sum(1)
    return (log_s - log_rest).to(dtype), ldj.to(dtype)


def _gaussian_log_density(z):
    return -0.5 * (z * z).flatten(1).sum(1) - 0.5 * math.log(2 * math.pi) * z[0].numel()


class _SelfNormalizing(torch.autograd.Function):
    """z = T(W) x + b, with the update of `snfnp.rules.SelfNormalizing` for its gradient."""

    @staticmethod
    def forward(ctx, x, w, r, b, reconstruction, product, lam):
        z0 = product.apply(x, w)
        ctx.save_for_backward(x, z0, w, r)
        ctx.product, ctx.lam = product, lam
        return z0 + (b if z0.ndim == 2 else b[:, None, None])

    @staticmethod
    def backward(ctx, dz):
        (x, z0, w, r), product = ctx.saved_tensors, ctx.product
        factor = -2 * ctx.lam / len(x)  # of the reconstruction gradient
        error = product.apply(z0, r) - x
        total = error.square().sum() / len(x)
        delta_w = torch.add(factor * product.adjoint(error, r), dz, alpha=0.5)
        dx = product.adjoint(dz, w)
        delta_r = torch.sub(factor * error, dx, alpha=0.5)  # compiled, `add` loses its alpha
        g_w = product.weight_grad(delta_w, x, r, 0.5)
        g_r = product.weight_grad(delta_r, z0, w, -0.5)
        return dx, g_w, g_r, dz.sum(0 if dz.ndim == 2 else (0, 2, 3)), total, None, None


class _Dense:
    """weight_grad: δᵀ x + scale · the transpose of the other matrix."""

    apply = staticmethod(F.linear)
    adjoint = staticmethod(torch.matmul)

    @staticmethod
    def weight_grad(delta, x, other, scale):
        return torch.addmm(other.t(), delta.t(), x, beta=scale)


class _Conv:
    """Stride 1 and zero padding; flip(w) ⊙ m as in Eqs. 23-26."""

    def __init__(self, conv, shape, like):
        self.padding = [size // 2 for size in conv.kernel]
        self.multiple = torch.from_numpy(conv.multiple(shape).copy()).permute(_KERNEL).to(like)

    def apply(self, x, w):
        return F.conv2d(x, w, padding=self.padding)

    def adjoint(self, dz, w):
        return F.conv_transpose2d(dz, w, padding=self.padding)

    def weight_grad(self, delta, x, other, scale):
        flipped = other.flip(2, 3).transpose(0, 1)
        product = torch.nn.grad.conv2d_weight(x, flipped.shape, delta, padding=self.padding)
        return torch.addcmul(product, flipped, self.multiple, value=scale)


def _smooth_leaky_relu(layer, p, x):
    a = layer.alpha
    z = a * x + (1 - a) * F.softplus(x, threshold=40)
    return z, torch.log(a + (1 - a) * torch.sigmoid(x)).flatten(1).sum(1)


def _actnorm(layer, p, x):
    t, s = p["t"][:, None, None], p["s"][:, None, None]
    return (x - t) * torch.exp(-s), -math.prod(x.shape[2:]) * p["s"].sum()


def _coupling(layer, p, x):
    x1, x2 = x.chunk(2, 1)
    a = F.conv2d(x1, p["w1"], p["b1"], padding=1).relu_()
    a = F.conv2d(a, p["w2"], p["b2"]).relu_()
    h = F.conv2d(a, p["w3"], p["b3"], padding=1) * torch.exp(3 * p["logs"])[:, None, None]
    s = 2 * torch.tanh(h[:, 0::2] / 2)
    return torch.cat([x1, x2 * torch.exp(s) + h[:, 1::2]], 1), s.flatten(1).sum(1)


def _split(layer, p, x):
    z, ldj = _coupling(layer.coupling, p, x)
    z, latent = z.chunk(2, 1)
    return z, ldj + _gaussian_log_density(latent)


def _spline(layer, p, x):
    """Evaluate splines as `snfnp.ops.spline` does: knots (3, C, H, W, K+1), looked up as pairs."""
    bound, bins, eps = layer.bound, layer.bins, layer.eps
    raw = (p["widths"], p["heights"])
    sizes = (2 * bound * (eps + (1 - eps * bins) * torch.softmax(own, -1)) for own in raw)
    knots = [F.pad(own.cumsum(-1), (1, 0)) - bound for own in sizes]
    slopes = eps + F.softplus(p["slopes"] + slope_shift(eps), threshold=40)
    pairs = torch.stack([*knots, F.pad(slopes, (1, 1), value=1.0)]).unfold(-1, 2, 1)
    index = (x[..., None] >= knots[0][..., 1:-1]).sum(-1)[..., None, None]
    index = index.expand(3, *x.shape, 1, 2)
    found = pairs[:, None].expand(3, *x.shape, bins, 2).gather(-2, index)[..., 0, :]
    (x0, x1), (y0, y1), (d0, d1) = (each.unbind(-1) for each in found)
    inside, w, h = (x > -bound) & (x < bound), x1 - x0, y1 - y0
    s = h / w
    t = torch.where(inside, (x - x0) / w, 0)
    u = t * (1 - t)
    denominator = s + (d0 + d1 - 2 * s) * u
    n = d1 * t * t + 2 * s * u + d0 * (1 - t) * (1 - t)
    z = torch.where(inside, y0 + h * ((s * t * t + d0 * u) / denominator), x)
    log_slope = torch.where(inside, torch.log(n) + 2 * torch.log(s / denominator), 0)
    return z, log_slope.flatten(1).sum(1)


_FORWARD = {layers.ActNorm: _actnorm, layers.AffineCoupling: _coupling, layers.SplitPrior: _split}
_FORWARD |= {layers.RationalQuadraticSpline: _spline, layers.SmoothLeakyReLU: _smooth_leaky_relu}
