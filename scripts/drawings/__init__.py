"""The figures of the derivations, by the name of their file: functions that draw one."""

from drawings import convolutions, curves, diagrams, inverses, method, probes, splines, updates

FIGURES = {
    "method-plane": method.plane,
    "framework": diagrams.framework,
    "glow-step": diagrams.glow_step,
    "multi-scale": diagrams.multi_scale,
    "convolution-matrix": convolutions.matrix,
    "block-elimination": convolutions.block_elimination,
    "spline": splines.spline,
    "stability": inverses.stability,
    "refined-inverse": inverses.refined,
    "least-squares": updates.least_squares,
    "probe-variance": probes.variance,
    "likelihoods": curves.likelihoods,
}
