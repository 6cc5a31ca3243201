"""The smooth leaky ReLU on the CPU; see derivations/05-smooth-leaky-relu.md."""

import math

import numpy as np

from snfnp.ops.activation.definition import Activation
from snfnp.ops.jit import FLAT_BLOCK, GROUP, parallel, rows


class CpuActivation(Activation):
    def smooth_leaky_relu(self, x, alpha):
        values = rows(x)
        y, sigma = np.empty_like(values), np.empty_like(values)
        ldj = np.empty(len(x), x.dtype)
        e = np.abs(values)
        np.exp(np.negative(e, out=e), out=e)
        # log1p would save digits of a softplus that is about to be added to αx: none is lost
        log_1_e = e + 1
        np.log(log_1_e, out=log_1_e)
        _smooth_leaky_relu(len(x), values, e, log_1_e, x.dtype.type(alpha), y, ldj, sigma)
        return y.reshape(x.shape), ldj, sigma.reshape(x.shape)

    def smooth_leaky_relu_inverse(self, y, alpha):
        flat = np.ascontiguousarray(y).reshape(-1)
        x = np.empty_like(flat)
        dtype = flat.dtype.type
        blocks = -(-flat.size // FLAT_BLOCK)
        _smooth_leaky_relu_inverse(blocks, flat, dtype(alpha), np.finfo(dtype).eps, x)
        return x.reshape(y.shape)

    def smooth_leaky_relu_backward(self, sigma, dy, dldj, alpha):
        values = rows(sigma)
        dx = np.empty_like(values)
        alpha = sigma.dtype.type(alpha)
        _smooth_leaky_relu_backward(len(values), values, rows(dy), dldj, alpha, dx)
        return dx.reshape(sigma.shape)


@parallel
def _smooth_leaky_relu(n, x, e, log_1_e, alpha, y, ldj, sigma):
    """x, y, sigma (N, D), ldj (N,); e = exp(-|x|) and log_1_e = log(1 + e) are NumPy's: vectorised.
    GROUP slopes, each in [α, 1], share one logarithm: in double their product loses no digits."""
    one = x.dtype.type(1)
    zero = one - one
    xn, en, log_n, yn, sn = x[n], e[n], log_1_e[n], y[n], sigma[n]
    for d in range(xn.size):
        inverse = one / (one + en[d])
        sn[d] = inverse if xn[d] >= 0 else en[d] * inverse
        yn[d] = alpha * xn[d] + (one - alpha) * (max(xn[d], zero) + log_n[d])
    total = 0.0
    for start in range(0, sn.size, GROUP):
        product = 1.0
        for s in sn[start : start + GROUP]:
            product *= alpha + (one - alpha) * s
        total += math.log(product)
    ldj[n] = total


@parallel
def _smooth_leaky_relu_inverse(block, y, alpha, eps, x):
    """Bracketed Newton per element of y, x (count,); see the definition for the bracket."""
    one = y.dtype.type(1)
    zero = one - one
    gap = (one - alpha) * y.dtype.type(math.log(2.0))
    two = one + one
    for i in range(block * FLAT_BLOCK, min(y.size, (block + 1) * FLAT_BLOCK)):
        target = y[i]
        left = min(target - gap, (target - gap) / alpha)
        root = min(target, target / alpha)
        tolerance = two * eps * (abs(target) + one)
        while True:
            e = math.exp(-abs(root))
            s = (one if root >= 0 else e) / (one + e)
            softplus = max(root, zero) + math.log1p(e)
            residual = alpha * root + (one - alpha) * softplus - target
            if not residual > tolerance:  # also if it is NaN
                break
            lower = max(root - residual / (alpha + (one - alpha) * s), left)
            if not lower < root:  # rounding lets it decrease no further
                break
            root = lower
        x[i] = root if not math.isnan(target) else target


@parallel
def _smooth_leaky_relu_backward(n, sigma, dy, dldj, alpha, dx):
    """sigma, dy, dx (N, D), dldj (N,)."""
    one = sigma.dtype.type(1)
    volume = dldj[n] * (one - alpha)
    for d in range(sigma.shape[1]):
        s = sigma[n, d]
        slope = alpha + (one - alpha) * s
        dx[n, d] = dy[n, d] * slope + volume * s * (one - s) / slope
