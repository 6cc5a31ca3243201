"""How good the learned inverses of a flow are, at parameters that are given."""

from snfnp.diagnostics.angles import LayerGradients, gradient_angles

__all__ = ["LayerGradients", "gradient_angles"]
