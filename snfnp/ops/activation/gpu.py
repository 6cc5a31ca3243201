"""The smooth leaky ReLU on the GPU: one launch; see derivations/06-smooth-leaky-relu.md."""

import math

from snfnp.ops.activation.definition import Activation


class GpuActivation(Activation):
    """Arrays may be strided, all of a call have one dtype."""

    def smooth_leaky_relu(self, x, alpha):
        y = self.device.like(x)
        ldj = self.device.empty(len(x), x.dtype)
        sigma = self.device.like(x)
        self.device.launch(
            "smooth_leaky_relu",
            x.dtype,
            len(x),
            x=x,
            y=y,
            ldj=ldj,
            sigma=sigma,
            alpha=alpha,
            dimension=math.prod(x.shape[1:]),
        )
        return y, ldj, sigma

    def smooth_leaky_relu_backward(self, sigma, dy, dldj, alpha):
        dx = self.device.like(sigma)
        self.device.launch(
            "smooth_leaky_relu_backward",
            sigma.dtype,
            len(sigma),
            sigma=sigma,
            dy=dy,
            dldj=dldj,
            dx=dx,
            alpha=alpha,
            dimension=math.prod(sigma.shape[1:]),
        )
        return dx
