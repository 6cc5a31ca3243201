"""The figures of the derivations, by the name of their file: functions of that name draw one."""

from drawings import basics, curves, diagrams, inverses, kernels, plane, training, updates

_DRAWN = {
    basics: "rows stretching six-products newton adam-steps spline",
    curves: "likelihoods",
    diagrams: "framework glow-step multi-scale floors",
    inverses: "stability refined-inverse probe-variance",
    kernels: "inverse-entries masks exponential-terms border-walk convolution-matrix "
    "block-elimination",
    plane: "plane-training plane-matrices plane-layers",
    training: "method-plane actnorm planar-density noise-bound controllers processes",
    updates: "least-squares",
}
FIGURES = {
    name: getattr(module, name.replace("-", "_"))
    for module, names in _DRAWN.items()
    for name in names.split()
}
