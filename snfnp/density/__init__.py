"""Densities of tables: an estimator in the manner of scikit-learn, which this package does not
import."""

from snfnp.density.estimator import FlowDensity

__all__ = ["FlowDensity"]
