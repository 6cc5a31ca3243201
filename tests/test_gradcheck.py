"""The checks themselves: what is right passes, and each way of being wrong is caught and shown."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy import linalg
from numpy.random import default_rng
from numpy.testing import assert_allclose
from support.arrays import normal
from support.messages import cases, one_line

import snfnp.beyond.rules
from snfnp import gradcheck, layers, maps, rules
from snfnp.errors import UsageError
from snfnp.gradcheck import GradientError, check_layer
from snfnp.layers import Layer, Split
from snfnp.maps import Dense
from snfnp.ops import cpu_backends, get_ops

D = 4
NUMBERS = r", direction \d: analytic -?[\d.e+-]+, numeric -?[\d.e+-]+, relative error .* > 1e-08"
UNWRITTEN = "^t: backward left its gradient .*unwritten"


@dataclass(frozen=True)
class SinhLayer(Layer):
    """z = sinh(A x) + t, as a user would write it, with one line too many at some place."""

    position: str = ""
    line: str = ""

    def at(self, position, **values):
        """The values after that line, if it stands here."""
        if position == self.position:
            exec(self.line, {"np": np}, values)
        return values

    def parameter_shapes(self, shape):
        return self.at("shapes", shapes={"A": (D, D), "t": (D,)})["shapes"]

    def init(self, rng, shape):
        return {"A": np.eye(D), "t": np.zeros(D)}

    def output_shape(self, shape):
        return self.at("output", shape=shape)["shape"]

    def forward(self, ops, p, x):
        u = x @ p["A"].T
        of_a = linalg.slogdet(p["A"])[1]
        z = np.sinh(u) + p["t"]
        ldj = np.log(np.cosh(u)).sum(axis=1) + of_a
        values = self.at("forward", z=z, ldj=ldj, x=x, of_a=of_a)
        return values["z"], values["ldj"], {"x": x, "u": u}

    def inverse(self, ops, p, z):
        u = self.at("inverse", u=np.arcsinh(z - p["t"]), z=z)["u"]
        return linalg.solve(p["A"], u.T).T

    def backward(self, ctx, p, cache, dz, grads):
        x = cache["x"]
        u = cache["u"]
        dldj = ctx.dldj
        volume = dldj[:, None] * np.tanh(u)
        du = self.at("du", du=dz * np.cosh(u) + volume, volume=volume)["du"]
        grads["A"][...] = du.T @ x + dldj.sum() * linalg.inv(p["A"]).T
        grads["t"][...] = dz.sum(axis=0)
        of = {"A": grads["A"], "t": grads["t"], "of_A": du.T @ x, "p": p}
        return self.at("end", dx=du @ p["A"], dz=dz, dldj=dldj, u=u, grads=grads, **of)[
            "dx"
        ]


def test_a_correct_layer_passes():
    report = check_layer(SinhLayer(), (D,))
    assert list(report.errors) == [
        "inverse(forward(x))",
        "log-determinant",
        "x",
        "A",
        "t",
    ]
    assert max(report.errors.values()) < 1e-8
    assert str(report).count("\n") == 4


@pytest.mark.parametrize(
    "position, line, message",
    [
        ("du", "du = du - 2 * volume", "x, direction "),
        ("du", "du = du - volume", "x, direction "),
        ("end", "dx = -dx", "x, direction "),
        ("end", "A *= 1.01", "A, direction "),
        ("end", "A[...] = A.T.copy()", "A, direction "),
        ("end", "A[...] = of_A", "A, direction "),  # without its log-determinant
        ("end", "t *= 0", "t, direction "),
        ("end", "t /= len(dz)", "t, direction "),
        ("end", "t *= np.nan", UNWRITTEN),
        ("end", "t[2:] = np.nan", UNWRITTEN),
        ("end", "t *= np.nan; grads['t'] = dz.sum(axis=0)", UNWRITTEN),  # another array
        (
            "forward",
            "ldj = np.full(len(x), of_a)",
            r"log\|det J\| is .* by differences of forward, .* by ldj and log_det",
        ),
        ("forward", "ldj = ldj[::-1].copy()", r"log\|det J\| is "),  # of other samples
        ("forward", "ldj = ldj.sum(keepdims=True).repeat(2)", r"ldj has shape \(2,\)"),
        ("inverse", "u = np.arcsinh(z)", r"inverse\(forward\(x\)\) differs from x by"),
        ("output", "shape = (5,)", r"z has shape \(3, 4\), not the declared \(3, 5\)"),
        (
            "forward",
            "z = z.astype('f4')",
            "^z is float32, but all arguments are float64",
        ),
        (
            "shapes",
            "shapes['t'] = (5,)",
            r"parameter_shapes says .*\(5,\).*, init makes .*\(4,\)",
        ),
        (
            "shapes",
            "shapes['A'] = shapes.pop('A')",
            "parameter_shapes says .*, init makes",
        ),
        (
            "forward",
            "z = z + np.zeros(4)",
            "^z is float64, but all arguments are float32",
        ),
        (
            "forward",
            "ldj = ldj + np.zeros(1)",
            "^ldj is float64, but all arguments are float32",
        ),
        (
            "end",
            "dx = dx + np.zeros(4)",
            "^dx is float64, but all arguments are float32",
        ),
        ("forward", "x *= 0.5", "^the layer changed its argument x$"),
        ("end", "dz *= 2", "^the layer changed its argument dz$"),
        ("end", "dldj *= 2", "^the layer changed its argument dldj$"),
        ("end", "p['A'] *= 2", "^the layer changed its argument A$"),
        ("end", "u *= 2", "^backward changed the cache"),
        ("end", "grads['t'] = 1 * grads['t']", UNWRITTEN),
        ("forward", "ldj = None", "^forward must return ldj, and returns None"),
        ("inverse", "u = u[:1]", "^inverse returns shape .1, 4., expected"),
    ],
)
def test_a_wrong_layer_fails(position, line, message):
    with pytest.raises(GradientError, match=message.replace(", direction ", NUMBERS)):
        check_layer(SinhLayer(position, line), (D,))


@dataclass(frozen=True)
class Shifted(Layer):
    """z = x + b, by an operation that is given a row for rows; wrong: a backend that gets 2 z."""

    wrong: str = ""

    def parameter_shapes(self, shape):
        return {"b": shape}

    def forward(self, ops, p, x):
        z = ops.linalg.axpby(1.0, p["b"], 1.0, x.copy())
        return z * (1 + (ops.name == self.wrong)), 0, {}

    def inverse(self, ops, p, z):
        return z - p["b"]

    def backward(self, ctx, p, cache, dz, grads):
        ctx.ops.channels.sum(dz, out=grads["b"])
        return dz


def test_layers_are_checked_on_every_backend_of_the_cpu(alone):
    assert [ops.name for ops in cpu_backends()] == ["numpy", "numba"]
    check_layer(Shifted(), (D,))
    check_layer(Shifted("numba"), (D,), ops=get_ops("numpy"))
    where = "on the backend numba, and not on numpy: 4 of 4 checks failed"
    with pytest.raises(GradientError, match=where):
        check_layer(Shifted("numba"), (D,))


def failures(line):
    """The lines of what check_layer finds wrong."""
    with pytest.raises(GradientError) as caught:
        check_layer(SinhLayer("end", line), (D,))
    return str(caught.value).splitlines()


class FlatR(SinhLayer):
    """With R for A, whose gradient is written through a `reshape`: a copy of what is kept as Rᵀ."""

    def parameter_shapes(self, shape):
        return {"R": (D, D), "t": (D,)}

    def init(self, rng, shape):
        return {"R": np.eye(D), "t": np.zeros(D)}

    def forward(self, ops, p, x):
        return super().forward(ops, {"A": p["R"], **p}, x)

    def inverse(self, ops, p, z):
        return super().inverse(ops, {"A": p["R"], **p}, z)

    def backward(self, ctx, p, cache, dz, grads):
        buffers = {"A": np.empty((D, D)), "t": grads["t"]}
        dx = super().backward(ctx, {"A": p["R"], **p}, cache, dz, buffers)
        grads["R"].reshape(-1)[...] = buffers["A"].reshape(-1)
        return dx


def test_an_r_is_checked_in_the_order_in_which_it_is_kept():
    with one_line(GradientError, "R: backward left its gradient"):
        check_layer(FlatR(), (D,))


def test_every_failed_check_is_listed():
    head, *lines = failures("A[1, 2] += 1; t[3] *= 1.01; dx = 1.02 * dx")
    assert head == "3 of 5 checks failed:"
    assert [line.split(",")[0] for line in lines] == ["x", "A", "t"]
    assert (
        "furthest off at A[1, 2]: " in lines[1] and "furthest off at t[3]: " in lines[2]
    )


def test_a_multiple_of_the_correct_gradient_is_reported():
    """Where it is one throughout: one wrong element is none."""
    assert "-1 times the right one (its sign)" in failures("A *= -1")[0]
    assert " 3 times the right one" in failures("A *= 3")[0]
    assert "times" not in failures("A[0, 1] *= -1")[0]


class Returns(SinhLayer):
    """A layer of which one method returns something else."""

    def __getattribute__(self, name):
        if name == super().__getattribute__("position"):
            return lambda *arguments: eval(
                super(Returns, self).__getattribute__("line")
            )
        return super().__getattribute__(name)


def test_a_failure_shows_both_derivatives():
    """Analytic is what the layer said: 1.01 times what the differences found."""
    message = "\n".join(failures("A *= 1.01"))
    words = message.replace(",", "").split()
    analytic, numeric = (
        float(words[words.index(w) + 1]) for w in ("analytic", "numeric")
    )
    assert_allclose(analytic / numeric, 1.01, rtol=1e-8)
    assert message.count("h=") == 3  # the same quotient at other steps


class TwoInverses(SinhLayer):
    """A layer whose exact inverse is right, and whose other one is what `line` says."""

    def inverse(self, ops, p, z):
        return eval(
            self.line, {"np": np, "z": z, "exact": self.exact_inverse(ops, p, z)}
        )

    def exact_inverse(self, ops, p, z):
        return SinhLayer().inverse(ops, p, z)


def test_both_inverses_are_checked_and_change_nothing():
    check_layer(TwoInverses("", "exact"), (D,))
    with pytest.raises(
        GradientError, match=r"^inverse\(forward\(x\)\) differs from x by"
    ):
        check_layer(TwoInverses("", "z"), (D,))
    with pytest.raises(GradientError, match="^the layer changed its argument z$"):
        check_layer(TwoInverses("", "np.subtract(z, 1, out=z) * 0 + exact"), (D,))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_given_points_and_parameters_are_used():
    params = {"A": np.zeros((D, D)), "t": np.zeros(D)}
    with pytest.raises(linalg.LinAlgError):
        check_layer(SinhLayer(), (D,), params=params)
    x = np.full((2, D), np.nan)
    with pytest.raises(GradientError):
        check_layer(SinhLayer(), (D,), x=x)


class ForgetfulSplit(Split):
    """A split without the gradient that comes from the latent."""

    def backward(self, ctx, p, cache, dz, grads, dlatent):
        return super().backward(ctx, p, cache, dz, grads, 0 * dlatent)


class DenseSplit(Split):
    """A split with the latent's density in ldj; the flow counts it again."""

    def forward(self, ops, p, x):
        z, ldj, cache = super().forward(ops, p, x)
        return z, ldj + ops.channels.gaussian_log_density(cache["latent"]), cache


class WideSplit(Split):
    """A split with a latent that is always in double precision."""

    def forward(self, ops, p, x):
        z, ldj, cache = super().forward(ops, p, x)
        return z, ldj, {**cache, "latent": cache["latent"] * np.ones(1)}


@pytest.mark.parametrize(
    "split, message",
    [
        (ForgetfulSplit, "^x, direction 0"),
        (DenseSplit, r"det J\| is "),
        (WideSplit, "^latent is float64"),
    ],
)
def test_a_wrong_split_fails(split, message):
    check_layer(Split(), (2, 3, 4))
    with pytest.raises(GradientError, match=message):
        check_layer(split(), (2, 3, 4))


class PlainLayer:
    """As one writes a layer in NumPy alone."""

    def forward(self, x):
        return np.sinh(x)


class WithoutInverse(Layer):
    def forward(self, ops, p, x):
        return x, 0, {}

    def backward(self, ctx, p, cache, dz, grads):
        return dz


class OtherSignature(WithoutInverse):
    def inverse(self, z):
        return z


class OtherMap(Dense):
    def solve(self, w, z):
        return z


class WithoutAdd(Dense):
    def weight_grad(self, ops, delta, x, out):
        return out


RNG = default_rng(0)
X = normal(3, 4)
NAMES = {}
for module in (gradcheck, layers, maps, rules, snfnp.beyond.rules):
    NAMES |= vars(module)
NAMES |= globals()
# An expression, and what is said of it.
MISUSES = cases("""
check_layer(PlainLayer(), (D,)) | give an instance of a snfnp Layer (check_gr
check_layer(SinhLayer, (D,)) | SinhLayer'> is no layer: give an instance
check_layer(np.sinh, (D,)) | is no layer
check_layer(SinhLayer(), D) | shape is 4: give one sample's, as
check_layer(SinhLayer(), (D,), batch=0) | batch is 0: give a whole number from 1 to
check_layer(WithoutInverse(), (D,)) | WithoutInverse has no inverse: write it, as snfnp's Layer
  describes
check_layer(OtherSignature(), (D,)) | OtherSignature.inverse takes (z): let it take (ops, p, z,
  *latent)
check_layer(Returns('forward', 'None'), (D,)) | forward must return z, ldj, cache, and
check_layer(Returns('forward', '(1, 2)'), (D,)) | and returns 2 of them
check_layer(Returns('backward', 'None'), (D,)) | backward must return δ_x, and returns
check_layer(Returns('inverse', 'None'), (D,)) | inverse must return x, and returns No
check_layer(Linear(Dense(D), JacobianPenalty()), (D,)) | has a gradient of its own: give its
  `scalar`
check_rule('exact', Dense(D), (D,)) | exact is no rule: give an instance of a
check_rule(Exact(), Exact(), (D,)) | Exact() is no map: give an instan
snfnp.fit(normal(60, 2), report=True) | report is True: give a function of a line, or None
snfnp.fit(normal(60, 2), optimiser=dict) | optimiser is a class: give dict()
check_map(Linear(Dense(D)), (D,)) | is no map: give an instance of a snfnp Map
check_map(OtherMap(D), (D,)) | OtherMap.solve takes (w, z): let it take (ops, w, z)
check_map(WithoutAdd(D), (D,)) | WithoutAdd.weight_grad takes (ops, delta, x, out): let it take
  (ops, delta, x, out, add=F
check_map(Conv2d(3, 2), (3, 3, 2)) | kernel
check_gradient(np.sinh, X, np.cosh(X), rng=RNG) | f returned ndarray of shape (3, 4): let it
  return a number, as the sum
check_gradient(lambda x: None, X, X, rng=RNG) | f returned NoneType of shape (): let it
check_gradient(X, X, X, rng=RNG) | is no function: give f, and then x
check_rule(SelfNormalizing(), Conv2d((3, 3), 2), (3, 3, 2)) | is no such map: give a dense
""")


@pytest.mark.parametrize("expression", MISUSES)
def test_a_misuse_is_one_line(expression):
    with one_line((UsageError, GradientError), MISUSES[expression]):
        eval(expression, NAMES)
