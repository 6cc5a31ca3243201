"""Pictures of where W and R hold each other, and of what R is good for."""

import numpy as np

from drawings.style import BLUE, GREEN, INK, OPS, ORANGE, RED, laid_out, plt
from snfnp.context import BackwardContext
from snfnp.gradcheck import central_difference
from snfnp.layers import Linear
from snfnp.layers.whiten import inverse_root
from snfnp.maps import Dense
from snfnp.rules import SelfNormalizing
from snfnp.step.update import Adam


def _returns(variances, lam: float, rule: SelfNormalizing) -> bool:
    """Tell if W = Σ^(-1/2), R = Σ^(1/2) is stable for this diagonal Σ: the code's update, by
    central differences on a batch with these second moments. Rotations of z change nothing."""
    s = np.sqrt(variances)
    size = len(variances)
    x = np.vstack([np.diag(s), -np.diag(s)]) * np.sqrt(size)
    layer = Linear(Dense(size), rule, bias=False)

    def update(point):
        W, R = point.reshape(2, size, size)
        p = {"W": W, "R": R}
        grads = {"W": np.empty_like(W), "R": np.empty_like(R)}
        z, _, cache = layer.forward(OPS, p, x)
        ctx = BackwardContext.of(OPS, np.full(len(x), 1 / len(x)), lam)
        layer.backward(ctx, p, cache, -z / len(x), grads)
        return np.ravel([grads["W"], grads["R"]])

    at = np.ravel([np.diag(1 / s), np.diag(s)])
    columns = [central_difference(update, at, e, 1e-4) for e in np.eye(len(at))]
    eigenvalues = np.linalg.eigvals(np.transpose(columns))
    rotations = np.argsort(np.abs(eigenvalues))[: size * (size - 1) // 2]
    return bool(np.delete(eigenvalues, rotations).real.max() < 0)


def stability():
    """The plane of λ and σ²_min, for the mixture and for `forward`."""
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.9), sharey=True)
    lams = np.logspace(-1.5, 1.5, 9)
    variances = np.logspace(-2, 0, 7)
    line = np.logspace(-1.7, 1.7, 50)
    points = np.array([(lam, variance) for lam in lams for variance in variances])
    for axis, objective, least in (
        (axes[0], "mixture", 1 / (8 * line)),
        (axes[1], "forward", 5e-3),
    ):
        rule = SelfNormalizing(objective)
        stable = np.array(
            [_returns([variance, 1.0, 2.0], lam, rule) for lam, variance in points]
        )
        axis.loglog(*points[stable].T, "o", color=GREEN, label="returns")
        axis.loglog(*points[~stable].T, "x", color=RED, label="is driven away")
        axis.fill_between(line, least, 2, color=GREEN, alpha=0.1, linewidth=0)
        axis.set(xlim=(0.02, 50), ylim=(5e-3, 2), title=objective, xlabel=r"$\lambda$")
    axes[0].plot(line, 1 / (8 * line), label=r"$\lambda\,\sigma^2_{\min} = 1/8$")
    axes[0].set_ylabel(r"$\sigma^2_{\min}$ of the layer's input")
    named = axes[0].get_legend_handles_labels()
    figure.legend(*named, loc="upper center", ncol=3, bbox_to_anchor=(0.5, 0))
    return laid_out(figure)


def natural_coordinates():
    """Page 24: two correlated pixels. Adam's noisy path in their own and in white coordinates, over
    the level lines of a quadratic."""
    moments = np.array([[1.0, 0.9], [0.9, 1.0]])
    figure, axes = plt.subplots(1, 2, figsize=(7.0, 3.5))
    start = np.array([1.6, -0.4])
    side = np.linspace(-2.2, 2.2, 200)
    grid = np.stack(np.meshgrid(side, side), axis=-1)
    turns = (
        ("the pixels' coordinates", np.eye(2), ORANGE),
        ("white coordinates", inverse_root(moments, 0.0), BLUE),
    )
    for axis, (title, u, color) in zip(axes, turns, strict=True):
        rng = np.random.default_rng(29)
        at = np.linalg.solve(u, start)
        second = u @ moments @ u
        path = [at.copy()]
        state = np.zeros((2, 2))
        root = np.linalg.cholesky(second)
        for t in range(1, 301):
            gradient = -second @ at + 6 * root @ rng.standard_normal(2)
            Adam().update(OPS, gradient, 0.04, t, out=(at, *state))
            path.append(at.copy())
        height = np.einsum("...i,ij,...j", grid, second, grid)
        axis.contour(
            side, side, height, np.geomspace(0.02, 8, 9), colors=INK, linewidths=0.7
        )
        axis.plot(*np.array(path).T, color=color)
        axis.plot(*path[0], "o", color=color)
        axis.plot(0, 0, "*", color=RED, markersize=11)
        axis.set(title=title, xticks=[], yticks=[], aspect="equal")
    return laid_out(figure)


def probes():
    """Page 19: probes as the paper prints them and as signs, and the weight of every direction."""
    figure, axes = plt.subplots(1, 2, figsize=(6.6, 3.3), sharex=True, sharey=True)
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    signs = np.array([[1, 1], [1, -1]])
    uniform = np.random.default_rng(18).random((150, 2))
    second = np.eye(2) / 12 + 1 / 4
    for axis, title, drawn, q in (
        (axes[0], "uniform on [0, 1]", uniform, second),
        (axes[1], "signs", np.vstack([signs, -signs]), np.eye(2)),
    ):
        axis.plot(*drawn.T, ".", color=INK)
        axis.plot(*(circle * np.einsum("ia,ij,ja->a", circle, q, circle)), color=BLUE)
        axis.set(title=title, aspect="equal", xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
    return laid_out(figure)
