"""The figures of the derivations, by the name of their file: functions that draw one."""

from drawings import basics, curves, diagrams, inverses, kernels, training, updates

FIGURES = {
    "method-plane": training.plane,
    "plane-training": training.plane_training,
    "rows": basics.rows,
    "stretching": basics.stretching,
    "framework": diagrams.framework,
    "six-products": basics.six_products,
    "newton": basics.newton,
    "adam-steps": basics.adam_steps,
    "inverse-entries": kernels.inverse_entries,
    "masks": kernels.masks,
    "exponential-terms": kernels.exponential_terms,
    "actnorm": training.actnorm,
    "planar-density": training.planar_density,
    "noise-bound": training.noise_bound,
    "controllers": training.controllers,
    "border-walk": kernels.border_walk,
    "processes": training.processes,
    "glow-step": diagrams.glow_step,
    "multi-scale": diagrams.multi_scale,
    "convolution-matrix": kernels.matrix,
    "block-elimination": kernels.block_elimination,
    "spline": basics.spline,
    "stability": inverses.stability,
    "refined-inverse": inverses.refined,
    "least-squares": updates.least_squares,
    "probe-variance": inverses.variance,
    "floors": diagrams.floors,
    "likelihoods": curves.likelihoods,
}
