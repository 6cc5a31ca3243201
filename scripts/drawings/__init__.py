"""The figures of the derivations, by the name of their file: functions that draw one."""

from drawings import convolutions, curves, diagrams, floors, inverses, probes, splines, updates

FIGURES = {
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
    "floors": floors.floors,
    "likelihoods": curves.likelihoods,
}
