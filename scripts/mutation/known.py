"""What a mutation run knows of the package: where its mathematics is, and which tests guard it."""

from __future__ import annotations

# File (or the start of its path) -> the tests that are to kill its mutants, the quickest first.
TESTS = {
    "snfnp/rules.py": ("rules", "gradcheck_linear", "layers", "whole_step"),
    "snfnp/context.py": ("rules", "flow", "whole_step"),
    "snfnp/flow.py": ("flow", "split", "recompute", "likelihood", "whole_step", "actnorm"),
    "snfnp/maps/dense.py": ("maps", "layers"),
    "snfnp/maps/base.py": ("rules", "gradcheck_linear", "layers", "whole_step"),
    "snfnp/maps/conv.py": ("maps", "conv", "rules"),
    "snfnp/maps/explicit.py": ("maps", "block_tridiagonal", "conv"),
    "snfnp/maps/block_tridiagonal.py": ("maps", "block_tridiagonal"),
    "snfnp/ops/activation/": ("layers", "ops"),
    "snfnp/ops/causal/": ("emerging", "ops"),
    "snfnp/ops/channels/": ("actnorm", "layers", "ops"),
    "snfnp/ops/conv/": ("maps", "conv", "rules", "emerging", "ops"),
    "snfnp/ops/coupling/": ("coupling", "layers", "ops"),
    "snfnp/ops/density/": ("flow", "likelihood", "ops"),
    "snfnp/ops/images/": ("preprocess", "steps", "ops"),
    "snfnp/ops/linalg/": ("rules", "maps", "layers", "block_tridiagonal", "ops"),
    "snfnp/ops/random/": ("ops", "likelihood"),
    "snfnp/ops/spline/": ("spline", "ops", "properties"),
    "snfnp/ops/step/": ("steps", "optim", "ops", "whole_step"),
}
FILES = (
    "snfnp/rules.py",
    "snfnp/context.py",
    "snfnp/flow.py",
    "snfnp/maps/[a-z]*.py",
    "snfnp/ops/*/definition.py",
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
    "snfnp/ops/coupling/definition.py": {"network_rows": "rows of the hidden layers at once"},
}

# Mutants that compute the same: (file, line, mutated line) -> why.
EQUIVALENT: dict[tuple[str, str, str], str] = {}
