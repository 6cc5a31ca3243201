"""Mutants that `mutate.py` makes and that compute the same, by the reason: their lines as they are
mutated, wherever they stand."""

_ZEROS = "more zeros around the array, which nothing reads"
_THRESHOLD = "at the threshold itself either side will do"
_ROUNDING = "a block beside the converged ones differs from them by less than its rounding"
_TOLERANCE = "both stop within the rounding that the tests allow"
_DIAGONALS = "diagonals beyond the image have no pixels"
_SET = "`set` comes before every step"
_COLUMN, _ROW = "a 1×1 kernel has one column", "a 1×1 kernel has one row"
_BRACKET = "a wider bracket: Newton's method stays to the right of the root"
_SMALL = "a step too small to move x comes from a residual below the tolerance"
_BLOCKS = "more blocks of samples: how many there are changes no number"
_BEFORE = "before, after = max(above, 0), max"
_ABOVE = "above, across = (height - {}) // 2 - (columns - rows) // 2, (breadth - {}) // 2"

EQUIVALENT: dict[str, str] = {
    "if (change < STOP * norm):": _THRESHOLD,
    "flipped = (u[:, 0, np.newaxis] <= 0.5)": _THRESHOLD,
    "if not (_EPS * norm * inverse_norm <= 1):": _THRESHOLD,
    "if not _EPS * norm * inverse_norm < 2:": "rounding decides in both cases",
    "steps = i - self.converged + 2": _ROUNDING,
    "steps = i - self.converged + 0": _ROUNDING,
    "norm, inverse_norm = ops.linalg.norms(inverse, matrix)": "the norms are only multiplied",
    "return ops.linalg.solve(w[0, (-1)].T, z.reshape(-1, z.shape[-1])).reshape(z.shape)": _COLUMN,
    "return (shape[0] * shape[1] * ops.linalg.inverse(w[(-1), 0]).T)[None, None]": _ROW,
    "return self.kernel == (1, 2)": "1×1 kernels are factorised like others, with the same result",
    "for taps, length in zip(kernel, size, strict=False)": "a kernel and an image have two sides",
    _ABOVE.format(1, 0): "breadth is odd",
    _ABOVE.format(0, 1): "height is odd",
    f"{_BEFORE}((rows - 1 + height - 1 + above) - (columns - 1), 0)": _ZEROS,
    f"{_BEFORE}(rows - 1 + height - 1 - above - (columns - 1), 1)": _ZEROS,
    f"{_BEFORE}((rows - 1 + height - 1 - above + (columns - 1)), 0)": _ZEROS,
    "padded = ops.xp.zeros(((rows + columns + 1), 2 * width - 1, inputs, outputs))": _ZEROS,
    "padded = ops.xp.zeros((rows + columns - 1, (2 * width + 1), inputs, outputs))": _ZEROS,
    "padded = ops.xp.zeros((rows + columns - 1, 3 * width - 1, inputs, outputs))": _ZEROS,
    "sides = before + columns + after, (width + breadth + 1)": _ZEROS,
    "sides = before + columns + after, width + breadth - 0": _ZEROS,
    "padded = xp.zeros((n, (height + kh + 1), width + kw - 1, channels), x.dtype)": _ZEROS,
    "padded = xp.zeros((n, height + kh - 0, width + kw - 1, channels), x.dtype)": _ZEROS,
    "padded = xp.zeros((n, height + kh - 1, (width + kw + 1), channels), x.dtype)": _ZEROS,
    "z = xp.zeros((n, height + kh - 0, width + kw - 1, outputs), products.dtype)": _ZEROS,
    "left = leaky_inverse(y - ((1 - alpha) / math.log(2)))": _BRACKET,
    "tolerance = 1 * xp.finfo(y.dtype).eps * (xp.abs(y) + 1)": _TOLERANCE,
    "tolerance = 4 * xp.finfo(y.dtype).eps * (xp.abs(y) + 1)": _TOLERANCE,
    "moves = (residual > tolerance) & ((lower <= x))": _SMALL,
    "step = math.ceil(samples / max(2, math.ceil(samples / most)))": _BLOCKS,
    "x = z.copy()": "a copy is contiguous anyway",
    "t = self.xp.where(b.outside, (-1), (x - b.x0) / b.w)": "outside, t is replaced in the results",
    "raw = (xp.moveaxis(raw, -1, 0) - poison)": "poison is 0 or NaN",
    "for diagonal in range((height + width + 1)):": _DIAGONALS,
    "for diagonal in range(height + width - 0):": _DIAGONALS,
    "lr = lam = (-1.0)": _SET,
    "lr = lam = 1.0": _SET,
}
