"""Sums and products with a number on the CPU; see derivations/07-convolutions.md."""

from snfnp.ops.jit import alike, parallel
from snfnp.ops.linalg.definition import LinearAlgebra

_BLOCK = 4096  # values per task of an array as large as a batch's: many even shares


class CpuLinearAlgebra(LinearAlgebra):
    def axpby(self, a, x, b, out):
        if not out.flags.c_contiguous or x.shape != out.shape or not alike(x, out):
            return super().axpby(a, x, b, out)
        cast = out.dtype.type
        _axpby(-(-out.size // _BLOCK), x.ravel(), cast(a), cast(b), out.reshape(-1))
        return out

    def scale_into(self, out, scale, a, multiple):
        agree = a.shape == out.shape and a.strides == out.strides and alike(a, out)
        if not (agree and out.flags.forc and isinstance(multiple, int)):
            return super().scale_into(out, scale, a, multiple)
        factor = out.dtype.type(scale * multiple)
        _scaled(-(-out.size // _BLOCK), a.ravel("K"), factor, out.ravel("K"))  # views
        return out


@parallel
def _axpby(task, x, a, b, out):
    """out (count,) = a · x + b · out."""
    target = out[task * _BLOCK :][:_BLOCK]
    source = x[task * _BLOCK :][:_BLOCK]
    for i in range(target.size):
        target[i] = b * target[i] + a * source[i]


@parallel
def _scaled(task, x, scale, out):
    """out (count,) = scale · x."""
    target = out[task * _BLOCK :][:_BLOCK]
    source = x[task * _BLOCK :][:_BLOCK]
    for i in range(target.size):
        target[i] = scale * source[i]
