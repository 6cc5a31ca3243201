"""The figures of the derivations, by the name of their file: functions of that name draw one."""

from drawings import basics, diagrams, inverses, kernels, plane, training

_DRAWN = {
    basics: "rows stretching six-products newton adam-steps spline",
    diagrams: "framework glow-step multi-scale floors",
    inverses: "stability refined-inverse natural-coordinates probes newton-inverse",
    kernels: "inverse-entries masks exponential-terms convolution-matrix block-elimination",
    plane: "plane-training plane-matrices plane-layers",
    training: "method-plane actnorm planar-density noise-bound controllers processes",
}
FIGURES = {
    name: getattr(module, name.replace("-", "_"))
    for module, names in _DRAWN.items()
    for name in names.split()
}
