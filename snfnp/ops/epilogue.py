"""Elementwise work on a product T(w) x, and a sum of squares, in one pass if a backend can."""

from typing import NamedTuple


class Finished(NamedTuple):
    """Results of a product with an epilogue: z (None unless it was kept), out, and the total
    (None unless there was a `before`)."""

    z: object
    out: object
    total: object


class Epilogue(NamedTuple):
    """out = a z + b y + bias for z = T(w) x, and total = before + ‖out‖²/N in double precision.

    a, b, before: numbers, or arrays of shape (); y: like z; bias: one number for each channel or
    each value of a sample. None leaves a term out.
    out: y's own array, which the result then overwrites; None: the result takes z's place.
    keep: z is wanted as well; with an `out` it is kept in any case.
    """

    a: object = 1.0
    y: object = None
    b: object = 1.0
    bias: object = None
    before: object = None
    out: object = None
    keep: bool = False

    def finish(self, z, linalg, channels) -> Finished:
        """The definition, in operations of `linalg` and `channels`. O(N D)."""
        a, y, b, bias, before, out, keep = self
        total = None
        if out is not None:
            result, keep = linalg.axpby(a, z, b, out), True
        elif y is None:
            result = z if isinstance(a, float) and a == 1.0 else a * z
        else:
            result = z.copy() if keep else z
            known = isinstance(a, float) and isinstance(b, float)
            if before is not None and bias is None and known and (a, b) == (1.0, -1.0):
                total = linalg.residual(result, y, before)  # z −= y and the total in one pass
            else:
                linalg.axpby(b, y, a, result)
        if bias is not None:
            result = channels.shift(result, bias)
        if before is not None and total is None:
            total = before + linalg.sum_squares(result) / len(result)
        return Finished(z if keep else None, result, total)


class WeightGradient(NamedTuple):
    """out ← δ ⋆ x + scale · v · term ⊙ multiple, with v the weight of the log-determinant.

    delta, x (N, ...); term and out: like the weight; multiple: a host array that broadcasts to it
    and depends on shapes alone, or 1.
    """

    delta: object
    x: object
    scale: float
    term: object
    multiple: object
    out: object
