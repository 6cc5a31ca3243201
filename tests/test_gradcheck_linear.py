"""`check_map` and `check_rule` on every CPU backend: right ones pass, wrong ones are caught."""

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
from support.beyond_checks import ALL_CHECKS, penalised_scalar

import snfnp.layers
import snfnp.maps
from snfnp.beyond.rules import JacobianPenalty, Variational
from snfnp.gradcheck import GradientError, check_layer, check_map, check_rule
from snfnp.gradcheck import stop_gradient_objective as paper_scalar
from snfnp.layers import Layer, Linear, Preprocess, Whiten
from snfnp.maps import Conv2d, Dense
from snfnp.rules import Exact, Relative, SelfNormalizing

D = 4

POINTWISE = Conv2d((1, 1), 3), (2, 3, 3)
each_map = pytest.mark.parametrize(
    "linear_map, shape", [(Dense(D), (D,)), POINTWISE], ids=str
)

# ---------------------------------------------------------------- the catalogue
MIXTURE = SelfNormalizing()
FORWARD = SelfNormalizing("forward")
RELATIVE = Relative()


def test_the_catalogue_is_complete():
    checked = {type(check.run.args[0]) for check in ALL_CHECKS}
    exported = {
        member
        for module in (snfnp.layers, snfnp.maps, snfnp.rules)
        for member in (getattr(module, name) for name in module.__all__)
        if inspect.isclass(member)
    }
    expected = exported - {Layer, Preprocess, snfnp.maps.Map, snfnp.rules.Rule}
    assert checked == expected | {JacobianPenalty, Variational}
    names = [(check.kind, check.name) for check in ALL_CHECKS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "check",
    ALL_CHECKS,
    ids=lambda check: f"{check.kind} {check.name}".replace("⁻¹", "^-1"),
)
def test_everything_in_the_catalogue_passes(ops, check):
    for dtype, most in ((np.float64, 1e-8), (np.float32, 2e-5)):
        report = check.run(ops=ops, dtype=dtype)
        assert max(report.errors.values()) < most
        assert (
            min(value for value in report.controls.values() if not math.isnan(value))
            > 1e-4
        )
        assert set(report.errors) == set(reported(check))


def reported(check) -> list[str]:
    """The names of all that a check compares."""
    subject, *arguments = check.run.args
    if check.kind == "layer":
        fixed = isinstance(subject, Whiten)
        parameters = () if fixed else subject.parameter_shapes(*arguments)
        return ["inverse(forward(x))", "log-determinant", "x", *parameters]
    if check.kind == "map":
        square = subject.output_shape(*arguments) == arguments[0]
        exact = ["identity", "log_det", "solve", "log_det_grad"]
        return [
            "apply",
            "adjoint",
            "weight_grad",
            "flip",
            "multiplicity",
            "pad_or_crop",
            *exact * square,
        ]
    if isinstance(subject, Variational):
        return ["z", "x", "W", "R", "b"]
    if isinstance(subject, SelfNormalizing):
        return ["x", "W", "b"] + ["R"] * (subject.objective == "mixture")
    return ["x", "W", "b"]


# ---------------------------------------------------------------- maps


def doubled(f, ops, delta, x, out, add=False):
    Dense.weight_grad(f, ops, delta, x, out, add)
    out *= 2
    return out


def partly_nan(f, ops, w, dz):
    dx = Dense.adjoint(f, ops, w, dz)
    dx[-1, -1] = np.nan
    return dx


def one_mistake(kind, **members):
    """A map of that kind with other members."""
    return type("Mistaken", (kind,), members)


MIRRORED = one_mistake(  # Eq. 26 without its swap of the channels
    Conv2d,
    flip=lambda f, w: w[::-1, ::-1],
    adjoint=lambda f, ops, w, dz: ops.conv.correlate(dz, Conv2d.flip(w)),
)
# without its mirrors
SWAPPED = one_mistake(MIRRORED, flip=lambda f, w: w.swapaxes(2, 3))
ONE = one_mistake(Conv2d, multiplicity=lambda f, shape: np.ones((1, 1, 1, 1)))
# ∂ log|det T|/∂w of the flipped kernel: T⁻¹ gathered in place of T⁻ᵀ
ONE_ROW = one_mistake(
    Conv2d,
    log_det_grad=lambda f, ops, w, shape: f.flip(Conv2d.log_det_grad(f, ops, w, shape)),
)
MISTAKES = [
    ("apply", lambda f, ops, w, x: Dense.apply(f, ops, w, x) + 1),
    ("adjoint", lambda f, ops, w, dz: f.apply(ops, w, dz)),
    ("adjoint", partly_nan),
    ("weight_grad", doubled),
    (
        "weight_grad",
        lambda f, ops, dz, x, out, add=False: Dense.weight_grad(f, ops, dz, x, out),
    ),
    ("flip", lambda f, w: w),
    ("pad_or_crop", lambda f, w: 2 * w),
    ("identity", lambda f: 2 * np.eye(D)),
    ("log_det_grad", lambda f, ops, w, shape: ops.linalg.inverse(w)),
    ("log_det", lambda f, ops, w, shape: -Dense.log_det(f, ops, w, shape)),
    ("solve", lambda f, ops, w, z: f.adjoint(ops, w, z)),
]


@pytest.mark.parametrize(
    "kind, settings, name",
    [
        *(
            (one_mistake(Dense, **{name: mistake}), (D,), name)
            for name, mistake in MISTAKES
        ),
        (MIRRORED, ((3, 3), 2), "flip"),
        (SWAPPED, ((3, 3), 2), "flip"),
        (SWAPPED, ((3, 3), 2, 3), "flip"),
        (ONE, ((3, 3), 2), "multiplicity"),
        (ONE, ((3, 3), 1, 2), "multiplicity"),
        (ONE_ROW, ((3, 3), 2), "log_det_grad"),
        (ONE_ROW, ((1, 1), 2), "log_det_grad"),
    ],
)
def test_a_wrong_map_fails(ops, kind, settings, name):
    wrong = kind(*settings)
    right = (Dense if isinstance(wrong, Dense) else Conv2d)(*settings)
    shape = (D,) if isinstance(right, Dense) else (3, 4, right.channels)
    check_map(right, shape, ops=ops)
    with pytest.raises(GradientError, match=f"^{name}( is off|, direction)"):
        check_map(wrong, shape, ops=ops)


def test_the_negative_controls_of_a_map_are_needed():
    """At a tolerance at which they pass, so would a wrong map."""
    with pytest.raises(GradientError, match="negative control"):
        check_map(Dense(D), (D,), rtol=0.05)


# ---------------------------------------------------------------- rules


def posing(rule, backward):
    """A rule that passes for `rule` and computes backward(ctx, maps, p, cache, dz, grads)."""
    members = {"backward": lambda self, *arguments: backward(*arguments)}
    return type("Posing", (type(rule),), members)(**vars(rule))


def mistaken(rule, line):
    """A rule that passes for `rule`, with one line too many: before its backward pass, where it
    changes the context or the cache, or after it."""
    early = line.startswith(("ctx", "cache"))

    def backward(ctx, maps, p, cache, dz, grads):
        values = {"replace": replace, "np": np, "f": maps[0], "p": p}
        values |= {"ctx": ctx, "cache": cache, "shape": dz.shape[1:]}
        if early:
            exec(line, values)
        result = rule.backward(values["ctx"], maps, p, values["cache"], dz, grads)
        dx, *measured = result if rule.learns_inverse else (result,)
        values |= {**grads, "dx": dx}
        if not early:
            exec(line, values)
        return (values["dx"], *measured) if measured else values["dx"]

    return posing(rule, backward)


def mixed_forward(ctx, maps, p, cache, dz, grads):
    """The forward objective, but R ascends ½ log p^g too."""
    mixed = {name: gradient.copy() for name, gradient in grads.items()}
    MIXTURE.backward(ctx, maps, p, cache, dz, mixed)
    result = FORWARD.backward(ctx, maps, p, cache, dz, grads)
    grads["R"][...] = mixed["R"]
    return result


def right_factor_first(ctx, maps, p, cache, dz, grads):
    """WᵀW times the exact gradient, instead of the exact gradient times WᵀW."""
    dx = Exact().backward(ctx, maps, p, cache, dz, grads)
    grads["W"][...] = p["W"].T @ p["W"] @ grads["W"]
    return dx


BIAS_IN_Z = 'cache = {**cache, "z0": cache["z0"] + p["b"]}'  # z = W x + b in Eq. 20
# where −½ belongs (Eqs. 11 and 16)
SIGN_OF_ITS_TERM = 'R += ctx.log_det_weight * f.flip(p["W"]) * f.multiplicity(shape)'


@pytest.mark.parametrize(
    "rule, line, message",
    [
        (MIXTURE, "W *= 2", "^W, direction"),  # no ½
        (FORWARD, "W *= 0.5", "^W, direction"),
        (MIXTURE, "R *= 2", "^R, direction"),
        (MIXTURE, "R *= -1", "^R, direction"),
        (MIXTURE, SIGN_OF_ITS_TERM, "^R, direction"),
        (MIXTURE, "b *= 0.5", "^b, direction"),
        (MIXTURE, "dx = 0.5 * dx", "^x, direction"),
        (MIXTURE, "R *= np.nan", "^R: backward left its gradient"),
        (FORWARD, "R *= np.nan", "^R: backward left its gradient"),
        (MIXTURE, BIAS_IN_Z, "^W, direction"),
        (FORWARD, BIAS_IN_Z, "^W, direction"),
        (Exact(), "ctx = replace(ctx, log_det_weight=0.0)", "^W, direction"),
        (Exact(), "W *= 0.5", "^W, direction"),
        (Exact(), "dx = -dx", "^x, direction"),
    ],
)
@each_map
def test_a_wrong_rule_fails(ops, rule, line, message, linear_map, shape):
    with pytest.raises(GradientError, match=message):
        check_rule(mistaken(rule, line), linear_map, shape, ops=ops)


@pytest.mark.parametrize(
    "wrong, name",
    [
        (
            mistaken(MIXTURE, "ctx = replace(ctx, error_factor=2 * ctx.error_factor)"),
            "W",
        ),
        (mistaken(FORWARD, "ctx = replace(ctx, error_factor=0.0)"), "W"),
        (posing(FORWARD, mixed_forward), "R"),
    ],
)
@each_map
def test_a_wrong_reconstruction_error_fails(ops, wrong, name, linear_map, shape):
    with pytest.raises(GradientError, match=f"(?m)^{name}, direction"):
        check_layer(Linear(linear_map, wrong), shape, scalar=paper_scalar, ops=ops)


@pytest.mark.parametrize(
    "wrong",
    [
        mistaken(RELATIVE, "b *= 2"),
        mistaken(RELATIVE, "W *= 1.01"),
        posing(RELATIVE, Exact().backward),
        posing(RELATIVE, right_factor_first),
    ],
)
def test_a_wrong_relative_rule_fails(ops, wrong):
    with pytest.raises(GradientError, match="^[Wb] is off"):
        check_rule(wrong, Dense(D), (D,), ops=ops)


@pytest.mark.parametrize("other", [JacobianPenalty(weight=0.41, probes=2), MIXTURE])
def test_another_rule_than_the_scalars_fails(ops, other):
    """The scalar belongs to the right rule, the layer's gradients to another."""
    right = JacobianPenalty(weight=0.4, probes=2)
    settings = {"ops": ops, "scalar": penalised_scalar}
    check_layer(Linear(Dense(D), right), (D,), **settings)
    with pytest.raises(GradientError, match="(?m)^W, direction"):
        check_layer(Linear(Dense(D), posing(right, other.backward)), (D,), **settings)
