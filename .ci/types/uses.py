"""Right and wrong uses, as an editor beside an installed package sees them; see .ci/run.

Pyright must find every line that is marked, and no other: to ignore nothing is an error here.
"""

import numpy as np

import snfnp
from snfnp import FlowDensity, TrainConfig, fit

x = np.zeros((100, 3))
density = FlowDensity(layers=3, random_state=0).fit(x)
scores: np.ndarray = density.score_samples(x)
FlowDensity(layrs=3)  # pyright: ignore[reportCallIssue]
FlowDensity(layers="3")  # pyright: ignore[reportArgumentType]
density.score_sample(x)  # pyright: ignore[reportAttributeAccessIssue]

config = TrainConfig(epochs=5, model="conv")
TrainConfig(epocs=5)  # pyright: ignore[reportCallIssue]

run = fit(x, epochs=3, report=None)
likelihood: snfnp.Likelihood = run.likelihood
fit(x, epoch=3)  # pyright: ignore[reportCallIssue]
fit(x, epochs="3")  # pyright: ignore[reportArgumentType]
snfnp.resume("runs/mine", epochs=10, lr=1e-4)
snfnp.resume("runs/mine", rolback=True)  # pyright: ignore[reportCallIssue]
