"""Settings that mean nothing, or have no effect: each is refused in one line."""

import pytest
from support.messages import one_line

from snfnp.errors import UsageError
from snfnp.training.options import TrainConfig

GECO, NOISY = {"lambda_control": "geco"}, {"objective": "variational"}
RELATIVE = {"gradient": "relative"}
# Settings, and parts of the message: " … " stands between them.
REFUSED = [
    ({"lam": -1.0}, "`lam` is -1.0: it must be 0 or more"),
    ({"lam": float("nan")}, "`lam` is nan"),
    ({"lr": 0.0}, "`lr` is 0.0: it must be positive"),
    ({"lr": float("inf")}, "`lr` is inf"),
    ({"clip_norm": 1e300}, "`clip_norm` is 1e+300: it must be positive and finite"),
    ({"epochs": 2.5}, "`epochs` is 2.5: it must be a whole number"),
    ({"data": ""}, "`data` is : it must be a name or a path"),
    ({"model": "cnn"}, "`model=cnn` is unknown: choose one of fc, "),
    ({"dtype": "float16"}, "`dtype` is float16: it must be one of float32, float64"),
    ({"backend": "cuda"}, "`backend` is cuda: it must be one of numba, numpy, cupy"),
    ({"batch_size": 101}, "`batch_size` is 101, but there are only 100 training images"),
    ({"batch_size": 0}, "`batch_size` is 0"),
    ({"seed": -1}, "`seed` is -1"),
    ({"model": "glow", "depth": 10**9}, "`depth` is 1000000000: it must be from 1 to 1000"),
    ({"model": "glow", "levels": 10**9}, "`levels` is 1000000000: it must be from 1 to 1000"),
    ({"gradient": "exact", "lam": 2.0}, "`lam` only has an effect with"),
    ({"gradient": "exact", "objective": "forward"}, "`objective` only has an effect with"),
    ({"relative_bias": "full"}, "`relative_bias` only has an effect with `gradient=relative`"),
    ({"inverse_kernel": 7}, "`inverse_kernel` only has an effect with `model=conv`"),
    ({"model": "conv", "inverse_kernel": 4}, "`inverse_kernel` is 4: it must be odd"),
    ({"model": "conv", "gradient": "exact", "inverse_kernel": 5}, "`gradient=self-normalizing`"),
    ({"model": "conv", "init": "authors"}, "`init` only has an effect with `model=fc` or a"),
    ({"model": "glow", "init": "authors"}, "elsewhere authors is the same as paper"),
    ({"graph": False}, "`graph=False` only has an effect with `backend=cupy`: leave it out"),
    ({"tf32": True}, "`tf32` only has an effect with `backend=cupy`: leave it out"),
    ({"overlap": True}, "`overlap` only has an effect with `backend=cupy`"),
    ({"backend": "cupy", "gradient": "exact", "overlap": True}, "`overlap` only has an effect"),
    ({"backend": "cupy", "tf32": True, "dtype": "float64"}, "effect with `dtype=float32`"),
    ({"gradient": "exact", "track_angle": 2}, "`track_angle` only has an effect with"),
    ({"track_angle": 0}, "`track_angle` is 0: it must be at least 1"),
    ({"model": "glow", "bias_init": "data"}, "`bias_init` only has an effect with `model=fc or c"),
    ({"width": 3}, "`width` only has an effect with `model=glow"),
    ({"model": "glow", "kernel": 4}, "`kernel` is 4: it must be odd"),
    ({"model": "conv", "gradient": "relative"}, "`model=conv` cannot be trained with"),
    ({"shuffle": False, "graph": False, "jvp_probes": 2}, "with a positive `jvp_weight`: leave"),
    ({"gradient": "exact", **GECO}, "`gradient=self-normalizing`: leave it out"),
    ({"gradient": "relative", **GECO}, "`gradient=self-normalizing`"),
    ({"tolerance": 0.1}, "`tolerance` only has an effect … `lambda_control=geco`: leave"),
    ({"lambda_smoothing": 0.5}, "with `lambda_control=geco`: leave"),
    ({**GECO, "tolerance": -1.0}, "`tolerance` is -1.0: it must be 0 or more"),
    ({**GECO, "lambda_rate": 0.0}, "`lambda_rate` is 0.0: it must be positive"),
    ({**GECO, "lambda_smoothing": 1.0}, "it must be at least 0 and less than 1"),
    ({**GECO, "constraint": "absolute"}, "absolute` needs `tolerance`"),
    ({**GECO, "lambda_min": 0.0}, "geco multiplies λ: give a positive one"),
    ({**GECO, "lam": 1e5}, "`lam` is 100000, where λ starts"),
    ({**GECO, "lambda_min": 2.0}, "`lam` is 1, where λ starts"),
    ({"lr_schedule": "cosine", "epochs": 3}, "(10), and `epochs` is 3: give more epochs, or"),
    ({"final_lr_fraction": 0.1}, "`final_lr_fraction` only has an effect with `lr_schedule="),
    ({"coordinates": "white", **RELATIVE}, "`coordinates` only has an effect with a `gradient`"),
    ({"recipe": "white", **RELATIVE}, "`recipe` only has an effect with a `gradient` other"),
    ({**NOISY, "sigma": 0.0}, "`sigma` is 0.0: it must be positive"),
    ({**NOISY, "sigma": -1.0}, "`sigma` is -1.0: it must be positive"),
    ({**NOISY, "sigma": float("nan")}, "`sigma` is nan: it must be positive"),
    ({**NOISY, "sigma": 1e-9}, "`sigma` is 1e-09: it must be positive, from 1e-06 to 1e"),
    ({**NOISY, "noise_vectors": 0}, "`noise_vectors` is 0: it must be at least 1"),
    ({**NOISY, "lam": 3.0}, "`lam` only has an effect with `objective=mixture or forward"),
    (
        {**NOISY, "lambda_control": "geco"},
        "`lambda_control` only has an effect with `objective=mixt",
    ),
    ({**NOISY, "gradient": "exact"}, "`objective` only has an effect with `gradient=self-norm"),
    ({"objective": "forward", "sigma": 0.5}, "`sigma` only has an effect with `objective=va"),
    ({"objective": "mixture", "noise_vectors": 4}, "`noise_vectors` only has an effect with"),
    ({"jvp_weight": -1.0}, "`jvp_weight` is -1.0: it must be 0 or more"),
    ({"jvp_weight": float("nan")}, "`jvp_weight` is nan: it must be 0 or more"),
    ({"jvp_weight": float("inf")}, "`jvp_weight` is inf: it must be 0 or more and finite"),
    ({"jvp_weight": 0.2, "jvp_probes": 0}, "`jvp_probes` is 0: it must be at least 1"),
    ({"jvp_probes": 2}, "`jvp_probes` only has an effect with a positive `jvp_weight`"),
    ({"jvp_weight": 0.2, "gradient": "exact"}, "only has an effect with `gradient=self-norm"),
    ({"jvp_weight": 0.2, "objective": "variational"}, "`jvp_weight` … mixture or forward"),
    ({"model": "fc", "recompute": True}, "`recompute` only has an effect with"),
]


@pytest.mark.parametrize("changes, message", REFUSED, ids=str)
def test_settings_without_effect_are_refused_in_one_line(changes, message):
    with one_line(UsageError, *message.split(" … ")):
        TrainConfig(**changes).resolve(100)
