"""How good the learned inverses of a flow are, at parameters that are given."""

from snfnp.diagnostics.angles import LayerGradients, gradient_angles
from snfnp.diagnostics.certificates import Certificate, certificates, certify
from snfnp.diagnostics.ratios import gradient_ratios
from snfnp.diagnostics.variance import SmallestVariance

__all__ = [
    "Certificate",
    "LayerGradients",
    "SmallestVariance",
    "certificates",
    "certify",
    "gradient_angles",
    "gradient_ratios",
]
