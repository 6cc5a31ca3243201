"""Training: on the plane, actnorm, a learned density, a bound, controllers."""

import doctest

import numpy as np

from drawings.style import (
    BLUE,
    GREEN,
    INK,
    OPS,
    ORANGE,
    PAGES,
    PURPLE,
    RED,
    laid_out,
    page_program,
    plt,
)
from snfnp.layers import ActNorm
from snfnp.ops.step.definition import Controller, ControllerRow


def actnorm():
    """The values of three channels before and after actnorm has seen its first batch (page 13)."""
    rng = np.random.default_rng(13)
    shape = (8, 8, 3)
    x = rng.standard_normal((50, *shape)) * [0.4, 1.5, 3.0] + [-4.0, 1.0, 6.0]
    layer = ActNorm()
    p = layer.init_from_data(OPS, layer.init(rng, shape), x)
    z, _, _ = layer.forward(OPS, p, x)
    figure, axes = plt.subplots(1, 2, figsize=(7.0, 2.8), sharey=True)
    bins = np.linspace(-12, 16, 113)
    for axis, values, title in zip(axes, (x, z), ("before", "after"), strict=True):
        for channel in range(3):
            axis.hist(
                values[..., channel].ravel(),
                bins,
                density=True,
                histtype="step",
                label=f"channel {channel}",
            )
        axis.set(title=title, xlim=(-7, 15), yticks=[])
    axes[1].legend()
    return laid_out(figure)


def planar_density():
    """The density that page 17's flow learns, by the page's own code."""
    text = (PAGES / "17-write-your-own-layer.md").read_text(encoding="utf-8")
    before = text.partition("![Points")[0]
    page = doctest.DocTestParser().get_doctest(before, {}, "page 17", None, 0)
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(page, clear_globs=False)
    first = np.linspace(-3.2, 3.2, 120)
    second = np.linspace(-2.4, 2.4, 120)
    grid = np.stack(np.meshgrid(first, second), axis=2)
    flow = page.globs["flow"]
    params = page.globs["params"]
    latents, ldj, _ = flow.forward(OPS, params, grid.reshape(-1, 2))
    log_dets = sum(flow.log_dets(OPS, params).values())
    density = np.exp(flow.log_density(OPS, latents) + ldj + log_dets)
    figure, axis = plt.subplots(figsize=(5.6, 3.8))
    axis.contour(first, second, density.reshape(120, 120), levels=8, colors=[BLUE])
    axis.plot(*page.globs["points"][::2].T, ".", color=INK)
    axis.set(xlabel="first coordinate", ylabel="second coordinate")
    return laid_out(figure)


def noise_bound():
    """The gap of the variational bound of one dense layer to its likelihood, by the noise, for R
    that is the inverse and for R that is not quite: page 20's terms, with exact averages."""
    size = 4
    rng = np.random.default_rng(0)
    W = np.eye(size) + 0.2 * rng.standard_normal((size, size))
    off = rng.standard_normal((size, size))
    x = rng.standard_normal(size)
    sigma = np.geomspace(0.003, 1.0, 40)
    figure, axis = plt.subplots(figsize=(6.2, 3.2))
    for distance, color in ((0.0, BLUE), (0.01, GREEN), (0.1, ORANGE)):
        round_trip = (np.linalg.inv(W) + distance * off) @ W
        error = np.sum((round_trip @ x - x) ** 2) / (2 * sigma**2)
        noise = sigma**2 / 2 * np.sum(W**2) + (np.sum(round_trip**2) - size) / 2
        label = "R = W⁻¹" if not distance else f"R = W⁻¹ + {distance} noise"
        axis.loglog(sigma, error + noise, color=color, label=label)
    axis.set(xlabel="σ", ylabel="log-likelihood − bound (nats)")
    return laid_out(figure, axis)


def controllers():
    """Paths of (θ, λ) on page 21's problem, by GECO at three rates."""
    a = 0.1
    b = 2.0
    kappa = 0.25
    theta_star = np.sqrt(kappa)
    lam_star = a * (b - theta_star) / (2 * theta_star)
    dt = 0.02
    figure, (plane, time) = plt.subplots(1, 2, figsize=(7.4, 3.2))
    for rate, color in ((0.3, BLUE), (2, GREEN), (8, INK)):
        controller = Controller(
            False, kappa, rate * dt, smoothing=0.9, lowest=1e-3, highest=9.0
        )
        lam = 0.3
        state = controller.new_state(1, lam)
        theta = 1.4
        path = []
        for _ in range(1500):
            error = np.array([[theta * theta, 1.0]])
            path.append((theta, lam))
            OPS.step.control(error, 1, controller, squares=1.0, failed=0.0, out=state)
            lam = float(state[ControllerRow.LAM, 0])
            theta -= dt * (a * (theta - b) + lam * 2 * theta)
        path = np.array(path)
        plane.plot(*path.T, color=color, label=f"η = {rate}")
        time.plot(dt * np.arange(len(path)), path[:, 0] ** 2 - kappa, color=color)
    plane.plot(theta_star, lam_star, "*", color=RED, markersize=11)
    plane.set(xlabel="θ", ylabel="λ", ylim=(-0.5, 3.2))
    time.axhline(0, color=PURPLE, linewidth=0.8, linestyle=":")
    time.set(xlabel="time", title="θ² − κ, the constraint")
    plane.legend()
    for axis in (plane, time):
        axis.grid()
    return laid_out(figure)


def _trained(
    program, draw, size: int, steps: int, rate: float, noise: float, samples: int
):
    """Page 00's flow after its training: samples, and a picture whose top panel is still empty."""
    rng = np.random.default_rng(0)
    flow = [
        program["Dense"](size, rng, noise),
        program["Bend"](),
        program["Dense"](size, rng, noise),
    ]
    seen = program["train"](flow, draw, steps, rate, rng)
    z = rng.standard_normal((samples, size))
    for layer in reversed(flow):
        z = layer.inverse(z)
    figure, axes = plt.subplot_mosaic(
        "aa;bc", figsize=(4.7, 5.2), height_ratios=[1.5, 1]
    )
    at = np.arange(1, len(seen) + 1) * steps / len(seen)
    for axis, column, title in (
        (axes["b"], 0, r"$\Vert R W - I\Vert$"),
        (axes["c"], 1, "degrees from the\nexact gradient"),
    ):
        axis.semilogy(at, seen[..., column], label=["first layer", "second layer"])
        axis.set(title=title, xlabel="step")
        axis.grid()
    axes["b"].legend()
    return z, figure, axes["a"]


def method_plane():
    """Page 00's flow of the plane: data and samples, ‖RW − I‖, the angle."""
    program = page_program()
    z, figure, top = _trained(program, program["cloud"], 2, 2000, 0.02, 0.4, 250)
    points = program["cloud"](np.random.default_rng(1), 250)
    top.plot(*points.T, ".", color=INK, label="data")
    top.plot(*z.T, ".", color=BLUE, label="samples")
    top.set(title="data, and samples through $R$", xticks=[], yticks=[])
    top.legend()
    return laid_out(figure)


def method_digits():
    """Page 00's flow of digits: samples, ‖RW − I‖, the angle."""
    program = page_program()
    images = program["small_digits"]()

    def draw(rng):
        return program["digits"](rng, images)

    z, figure, top = _trained(program, draw, 196, 1000, 3e-3, 0.02, 36)
    z = (z + images.mean(0)).reshape(6, 6, 14, 14).swapaxes(1, 2).reshape(84, 84)
    top.imshow(z, cmap="gray", vmin=0, vmax=10)
    top.set(title="samples through $R$", xticks=[], yticks=[])
    return laid_out(figure)
