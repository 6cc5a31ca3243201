"""Self normalizing flows in one file: `python derivations/00-the-method.py` (00-the-method.md)."""

import argparse
import gzip
import os
import sys
from pathlib import Path

if "numpy" not in sys.modules:  # the matrices are small: more threads would only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")
import matplotlib.pyplot as plt
import numpy as np


class Dense:
    """z = W x + b, and a second matrix R that learns the way back: x = R (z − b)."""

    def __init__(self, size, rng, noise):
        self.W = np.eye(size) + noise * rng.standard_normal((size, size))
        self.R = self.W.T.copy()  # a poor inverse, but a start
        self.b = np.zeros(size)

    def forward(self, x):
        self.x, self.Wx = x, x @ self.W.T
        return self.Wx + self.b

    def inverse(self, z):
        return (z - self.b) @ self.R.T

    def log_det(self):
        return np.linalg.slogdet(self.W)[1]  # to see what is climbed: training never asks for it

    def backward(self, delta, lam):
        e, pull = self.Wx @ self.R.T - self.x, 2 * lam / len(delta)  # R W x − x; a mean over rows
        self.delta, delta_x = delta, delta @ self.W
        G_W = (delta.T @ self.x + self.R.T) / 2 - pull * (e @ self.R).T @ self.x
        G_R = (-delta_x.T @ self.Wx - self.W.T) / 2 - pull * e.T @ self.Wx
        self.gradients = {"W": G_W, "R": G_R, "b": delta.sum(axis=0)}
        return delta_x

    def watch(self):  # ‖R W − I‖, and the degrees from the exact gradient, with W⁻¹ for R
        data = self.delta.T @ self.x
        ours, exact = data + self.R.T, data + np.linalg.inv(self.W).T
        return np.linalg.norm(self.R @ self.W - np.eye(len(data))), degrees(ours, exact)


def degrees(a, b):
    return np.degrees(np.arccos(min(1, np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))))


class Bend:
    """y = 0.3 x + 0.7 log(1 + eˣ): slope 0.3 far to the left, slope 1 far to the right."""

    def forward(self, x):
        self.slope = 0.3 + 0.7 / (1 + np.exp(-x))
        return 0.3 * x + 0.7 * np.logaddexp(0, x)

    def inverse(self, y):
        x = y
        for _ in range(50):  # Newton's method
            x = x - (self.forward(x) - y) / self.slope
        return x

    def log_det(self):
        return np.log(self.slope).sum(axis=1)

    def backward(self, delta, lam):
        stretch = (self.slope - 0.3) * (1 - self.slope) / 0.7 / self.slope  # d log(slope) / dx
        return delta * self.slope + stretch / len(delta)


def train(flow, draw, steps, rate, rng, lam=1.0, say=lambda line: None):
    """draw(rng): a batch of data. Returns what `watch` saw of the Dense layers, 50 times."""
    dense, state, seen = flow[::2], {}, []
    for step in range(1, steps + 1):
        z = x = draw(rng)
        for layer in flow:
            z = layer.forward(z)
        delta = -z / len(z)  # the gradient of the mean of log N(z; 0, I)
        for layer in reversed(flow):
            delta = layer.backward(delta, lam)
        if step % (steps // 50) == 0:
            seen.append([layer.watch() for layer in dense])  # training does not use it
        if step % (steps // 5) == 0:
            gap, climbed = seen[-1][0][0], log_p(flow, x)
            say(f"step {step} of {steps}: log p(x) {climbed:.2f}, ‖R W − I‖ {gap:.3f} in layer 1")
        adam(dense, state, step, rate * (1 - step / steps))
    return np.array(seen)


def log_p(flow, x):
    """The mean of log p(x) over the rows, exactly."""
    stretch, size = 0, x.shape[1]
    for layer in flow:
        x = layer.forward(x)
        stretch = stretch + layer.log_det()
    return np.mean(stretch - np.sum(x**2, axis=1) / 2) - size / 2 * np.log(2 * np.pi)


def adam(layers, state, step, rate):
    """A step uphill; state keeps running averages of the gradients and of their squares."""
    for number, layer in enumerate(layers):
        for name, gradient in layer.gradients.items():
            m, v = state.setdefault((number, name), np.zeros((2, *gradient.shape)))
            m += 0.1 * (gradient - m)
            v += 0.001 * (gradient**2 - v)
            size = np.sqrt(v / (1 - 0.999**step)) + 1e-8
            getattr(layer, name)[...] += rate * m / (1 - 0.9**step) / size


def cloud(rng, count=1000):
    angle, radius = 0.75 * rng.standard_normal(count), 1 + 0.12 * rng.standard_normal(count)
    return np.stack([2 * radius * np.sin(angle), 2.5 * radius * np.cos(angle) - 1.7], axis=1)


def small_digits():
    top = Path(globals().get("__file__", "derivations/00")).resolve().parents[1]
    packed = (top / "snfnp/data/sample/train-images.idx3-ubyte.gz").read_bytes()
    pixels = np.frombuffer(gzip.decompress(packed), np.uint8, offset=16)
    return pixels.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196) / 25.5


def digits(rng, images):
    return rng.uniform(-1, 1, (100, 196)) + images[rng.integers(5000, size=100)] - images.mean(0)


def show(name, flow, seen, z, data):
    for layer in reversed(flow):
        z = layer.inverse(z)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    if z.shape == (36, 196):
        z = (z + data.mean(0)).reshape(6, 6, 14, 14).swapaxes(1, 2).reshape(84, 84)
        left.imshow(z, cmap="gray", vmin=0, vmax=10)
    else:
        left.plot(*data.T, ".", color="0.6", label="data")
        left.plot(*z.T, ".", label="samples")
        left.legend()
    trained = np.linspace(0.02, 1, len(seen))
    middle.semilogy(trained, seen[:, :, 0], label=["first layer", "second layer"])
    middle.set(title="‖R W − I‖", xlabel="share of the training")
    right.semilogy(trained, seen[:, :, 1])
    right.set(title="degrees from the exact gradient", xlabel="share of the training")
    left.set_title("samples")
    middle.legend()
    figure.savefig(f"method-{name}.png")
    print(f"wrote method-{name}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train two self normalizing flows.")
    parser.add_argument("--lam", type=float, default=1.0, help="weight of the reconstruction error")
    lam = parser.parse_known_args()[0].lam  # a notebook has arguments of its own
    rng = np.random.default_rng(0)
    flow = [Dense(2, rng, 0.4), Bend(), Dense(2, rng, 0.4)]
    seen = train(flow, cloud, 2000, 0.02, rng, lam, say=print)
    show("plane", flow, seen, rng.standard_normal((500, 2)), cloud(rng, 500))
    images = small_digits()
    flow = [Dense(196, rng, 0.02), Bend(), Dense(196, rng, 0.02)]
    seen = train(flow, lambda rng: digits(rng, images), 1000, 3e-3, rng, lam, say=print)
    show("digits", flow, seen, rng.standard_normal((36, 196)), images)
