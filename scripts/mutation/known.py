"""What a mutation run knows of the package: where its mathematics is, and which tests guard it."""

from __future__ import annotations

# File (or the start of its path) -> the tests that are to kill its mutants, the quickest first.
TESTS = {
    "snfnp/rules/least_squares.py": ("inverse_updates", "left_inverse", "gradcheck_linear"),
    "snfnp/rules/newton.py": ("inverse_updates",),
    "snfnp/rules/probes.py": ("probes", "gradcheck_linear"),
    "snfnp/rules/projection.py": ("inverse_updates",),
    "snfnp/rules/variational.py": ("variational",),
    "snfnp/rules/": ("rules", "gradcheck_linear", "layers", "whole_step"),
    "snfnp/context.py": ("rules", "flow", "whole_step"),
    "snfnp/flow.py": ("flow", "split", "recompute", "likelihood", "whole_step", "actnorm"),
    "snfnp/maps/dense.py": ("maps", "layers"),
    "snfnp/maps/base.py": ("rules", "gradcheck_linear", "layers", "whole_step"),
    "snfnp/maps/conv.py": ("maps", "conv", "rules"),
    "snfnp/maps/chain.py": ("chain", "maps", "chain_runs"),
    "snfnp/maps/contraction.py": ("contraction",),
    "snfnp/maps/left_inverse.py": ("left_inverse", "inverse_updates"),
    "snfnp/maps/explicit.py": ("maps", "block_tridiagonal", "conv"),
    "snfnp/maps/block_tridiagonal.py": ("maps", "block_tridiagonal"),
    "snfnp/ops/activation/": ("layers", "ops"),
    "snfnp/ops/causal/": ("emerging", "ops"),
    "snfnp/ops/channels/": ("actnorm", "layers", "flow", "likelihood", "ops"),
    "snfnp/ops/communication/": ("communication", "slices", "processes"),
    "snfnp/ops/conv/": ("maps", "conv", "rules", "emerging", "ops"),
    "snfnp/ops/coupling/": ("coupling", "layers", "ops"),
    "snfnp/ops/epilogue.py": ("maps", "chain", "ops"),
    "snfnp/ops/images/": ("preprocess", "steps", "ops"),
    "snfnp/ops/linalg/": ("rules", "maps", "layers", "block_tridiagonal", "ops"),
    "snfnp/ops/random/": ("ops", "likelihood"),
    "snfnp/ops/spline/": ("spline", "ops", "properties"),
    "snfnp/ops/step/": ("steps", "optim", "ops", "whole_step"),
}
FILES = (
    "snfnp/rules/[a-z]*.py",
    "snfnp/context.py",
    "snfnp/flow.py",
    "snfnp/maps/[a-z]*.py",
    "snfnp/ops/*/definition.py",
    "snfnp/ops/epilogue.py",
)

# Constants and functions that decide speed or memory alone, by file: not mutated.
PERFORMANCE = {
    "snfnp/ops/linalg/definition.py": {
        "_BLOCK": "rows of a product at once; their number does not change a sum",
        "_ONE_THREAD": "where BLAS is held to one thread",
        "chain_of_products": "holds BLAS to one thread",
        "_blas_libraries": "finds BLAS",
    },
    "snfnp/ops/conv/definition.py": {"_MANY": "which of two equal ways to take"},
    "snfnp/ops/coupling/definition.py": {"network_values": "how much of the hidden layers at once"},
}

# Mutants that compute the same: (file, line, mutated line) -> why.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "snfnp/flow.py",
        "latents, _, _ = self.forward(ops, params, x, recompute=True)",
        "latents, _, _ = self.forward(ops, params, x, recompute=False)",
    ): "caches take memory and change no number: they are not used here",
    (
        "snfnp/maps/block_tridiagonal.py",
        "if change <= STOP * norm:",
        "if (change < STOP * norm):",
    ): "at the threshold itself either side will do",
    (
        "snfnp/maps/block_tridiagonal.py",
        "steps = i - self.converged + 1",
        "steps = i - self.converged + 2",
    ): "a block beside the converged ones differs from them by less than its rounding",
    (
        "snfnp/maps/block_tridiagonal.py",
        "steps = i - self.converged + 1",
        "steps = i - self.converged + 0",
    ): "a block beside the converged ones differs from them by less than its rounding",
    (
        "snfnp/maps/block_tridiagonal.py",
        "norm, inverse_norm = ops.linalg.norms(matrix, inverse)",
        "norm, inverse_norm = ops.linalg.norms(inverse, matrix)",
    ): "the two norms are only multiplied",
    (
        "snfnp/maps/block_tridiagonal.py",
        "if not _EPS * norm * inverse_norm < 1:",
        "if not (_EPS * norm * inverse_norm <= 1):",
    ): "at the threshold itself either side will do",
    (
        "snfnp/maps/conv.py",
        "return ops.linalg.solve(w[0, 0].T, z.reshape(-1, z.shape[-1])).reshape(z.shape)",
        "return ops.linalg.solve(w[0, (-1)].T, z.reshape(-1, z.shape[-1])).reshape(z.shape)",
    ): "a 1×1 kernel has one column",
    (
        "snfnp/maps/explicit.py",
        "padded = ops.xp.zeros((rows + columns - 1, 2 * width - 1, inputs, outputs))",
        "padded = ops.xp.zeros(((rows + columns + 1), 2 * width - 1, inputs, outputs))",
    ): "more zeros around the array, which nothing reads",
    (
        "snfnp/maps/explicit.py",
        "above, across = (height - 1) // 2 - (columns - rows) // 2, (breadth - 1) // 2",
        "above, across = (height - 1) // 2 - (columns - rows) // 2, (breadth - 0) // 2",
    ): "breadth is odd",
    (
        "snfnp/maps/explicit.py",
        "before, after = max(above, 0), max(rows - 1 + height - 1 - above - (columns - 1), 0)",
        "before, after = max(above, 0), max((rows - 1 + height - 1 + above) - (columns - 1), 0)",
    ): "more zeros around the array, which nothing reads",
    (
        "snfnp/maps/explicit.py",
        "before, after = max(above, 0), max(rows - 1 + height - 1 - above - (columns - 1), 0)",
        "before, after = max(above, 0), max(rows - 1 + height - 1 - above - (columns - 1), 1)",
    ): "more zeros around the array, which nothing reads",
    (
        "snfnp/maps/explicit.py",
        "(rows, width, outputs, before + columns + after, width + breadth - 1, inputs)",
        "(rows, width, outputs, before + columns + after, (width + breadth + 1), inputs)",
    ): "more zeros around the array, which nothing reads",
    (
        "snfnp/maps/explicit.py",
        "(rows, width, outputs, before + columns + after, width + breadth - 1, inputs)",
        "(rows, width, outputs, before + columns + after, width + breadth - 0, inputs)",
    ): "more zeros around the array, which nothing reads",
    (
        "snfnp/ops/activation/definition.py",
        "left = leaky_inverse(y - (1 - alpha) * math.log(2))",
        "left = leaky_inverse(y - ((1 - alpha) / math.log(2)))",
    ): "a wider bracket: Newton's method stays to the right of the root",
    (
        "snfnp/ops/activation/definition.py",
        "tolerance = 2 * xp.finfo(y.dtype).eps * (xp.abs(y) + 1)",
        "tolerance = 1 * xp.finfo(y.dtype).eps * (xp.abs(y) + 1)",
    ): "both stop within the rounding that the tests allow",
    (
        "snfnp/ops/conv/definition.py",
        "padded = xp.zeros((n, height + kh - 1, width + kw - 1, channels), x.dtype)",
        "padded = xp.zeros((n, (height + kh + 1), width + kw - 1, channels), x.dtype)",
    ): "more zeros around the array, which nothing reads",
    (
        "snfnp/ops/conv/definition.py",
        "padded = xp.zeros((n, height + kh - 1, width + kw - 1, channels), x.dtype)",
        "padded = xp.zeros((n, height + kh - 0, width + kw - 1, channels), x.dtype)",
    ): "more zeros around the array, which nothing reads",
    (
        "snfnp/ops/conv/definition.py",
        "padded = xp.zeros((n, height + kh - 1, width + kw - 1, channels), x.dtype)",
        "padded = xp.zeros((n, height + kh - 1, (width + kw + 1), channels), x.dtype)",
    ): "more zeros around the array, which nothing reads",
    (
        "snfnp/ops/coupling/definition.py",
        "step = math.ceil(samples / max(1, math.ceil(samples / most)))",
        "step = math.ceil(samples / max(2, math.ceil(samples / most)))",
    ): "more blocks of samples: how many there are changes no number",
    (
        "snfnp/ops/spline/definition.py",
        "t = xp.where(b.outside, 0, (x - b.x0) / b.w)",
        "t = xp.where(b.outside, (-1), (x - b.x0) / b.w)",
    ): "t of values outside is replaced in the results",
    (
        "snfnp/maps/conv.py",
        "return self.kernel == (1, 1)",
        "return self.kernel == (1, 2)",
    ): "1×1 kernels are then factorised like others: slower, with the same result",
    (
        "snfnp/maps/explicit.py",
        "above, across = (height - 1) // 2 - (columns - rows) // 2, (breadth - 1) // 2",
        "above, across = (height - 0) // 2 - (columns - rows) // 2, (breadth - 1) // 2",
    ): "height is odd",
    (
        "snfnp/maps/explicit.py",
        "padded = ops.xp.zeros((rows + columns - 1, 2 * width - 1, inputs, outputs))",
        "padded = ops.xp.zeros((rows + columns - 1, (2 * width + 1), inputs, outputs))",
    ): "more zeros around the array, which nothing reads",
    (
        "snfnp/maps/explicit.py",
        "before, after = max(above, 0), max(rows - 1 + height - 1 - above - (columns - 1), 0)",
        "before, after = max(above, 0), max((rows - 1 + height - 1 - above + (columns - 1)), 0)",
    ): "more zeros around the array, which nothing reads",
    (
        "snfnp/ops/activation/definition.py",
        "tolerance = 2 * xp.finfo(y.dtype).eps * (xp.abs(y) + 1)",
        "tolerance = 4 * xp.finfo(y.dtype).eps * (xp.abs(y) + 1)",
    ): "both stop within the rounding that the tests allow",
    (
        "snfnp/ops/activation/definition.py",
        "moves = (residual > tolerance) & (lower < x)",
        "moves = (residual > tolerance) & ((lower <= x))",
    ): "a step too small to move x comes from a residual below the tolerance",
    (
        "snfnp/ops/causal/definition.py",
        "for diagonal in range(height + width - 1):",
        "for diagonal in range((height + width + 1)):",
    ): "diagonals beyond the image have no pixels",
    (
        "snfnp/ops/causal/definition.py",
        "for diagonal in range(height + width - 1):",
        "for diagonal in range(height + width - 0):",
    ): "diagonals beyond the image have no pixels",
    (
        "snfnp/ops/coupling/definition.py",
        "x = xp.ascontiguousarray(z).copy()",
        "x = z.copy()",
    ): "a copy is contiguous anyway",
    (
        "snfnp/ops/spline/definition.py",
        "raw = xp.moveaxis(raw, -1, 0) + poison",
        "raw = (xp.moveaxis(raw, -1, 0) - poison)",
    ): "poison is 0 or NaN",
    (
        "snfnp/ops/step/definition.py",
        "lr = lam = 0.0",
        "lr = lam = (-1.0)",
    ): "`set` comes before every step",
    (
        "snfnp/maps/block_tridiagonal.py",
        "if not _EPS * norm * inverse_norm < 1:",
        "if not _EPS * norm * inverse_norm < 2:",
    ): "a condition number of 1/eps or of 2/eps: rounding decides in both cases",
    (
        "snfnp/maps/conv.py",
        "return (shape[0] * shape[1] * ops.linalg.inverse(w[0, 0]).T)[None, None]",
        "return (shape[0] * shape[1] * ops.linalg.inverse(w[(-1), 0]).T)[None, None]",
    ): "a 1×1 kernel has one row",
    (
        "snfnp/maps/conv.py",
        "for taps, length in zip(kernel, size, strict=True)",
        "for taps, length in zip(kernel, size, strict=False)",
    ): "a kernel and an image have two sides",
    (
        "snfnp/maps/explicit.py",
        "padded = ops.xp.zeros((rows + columns - 1, 2 * width - 1, inputs, outputs))",
        "padded = ops.xp.zeros((rows + columns - 1, 3 * width - 1, inputs, outputs))",
    ): "more zeros around the array, which nothing reads",
    (
        "snfnp/ops/conv/definition.py",
        "k = self.xp.ascontiguousarray(k)  # a flipped kernel would be a slow factor",
        "k = k  # a flipped kernel would be a slow factor",
    ): "slower, with the same result",
    (
        "snfnp/ops/conv/definition.py",
        "z = xp.zeros((n, height + kh - 1, width + kw - 1, outputs), products.dtype)",
        "z = xp.zeros((n, height + kh - 0, width + kw - 1, outputs), products.dtype)",
    ): "more zeros around the array, which nothing reads",
    (
        "snfnp/ops/step/definition.py",
        "lr = lam = 0.0",
        "lr = lam = 1.0",
    ): "`set` comes before every step",
}
