"""The figures of the derivations: {name of the file: the function of that name, which draws it}."""

from inspect import getmembers, isfunction

from drawings import basics, diagrams, ideas, inverses, kernels, plane, training

FIGURES = {
    name.replace("_", "-"): draw
    for module in (basics, diagrams, ideas, inverses, kernels, plane, training)
    for name, draw in getmembers(module, isfunction)
    if draw.__module__ == module.__name__ and not name.startswith("_")
}
