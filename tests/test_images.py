"""Images where they enter, bit for bit or one line; preprocessing and augmentation."""

import copy
import pickle
from dataclasses import replace
from functools import cache
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.testing import assert_allclose, assert_array_equal, assert_equal
from PIL import Image
from scipy.special import logit
from support.arrays import pixels
from support.messages import one_line
from support.trainers import make_trainer, small_config, small_dataset

import snfnp
from snfnp.data import SPLITS, Dataset
from snfnp.errors import UsageError
from snfnp.layers import Preprocess, SmoothLeakyReLU
from snfnp.layers.preprocess import Standardise
from snfnp.likelihood import EVALUATION_NOISE
from snfnp.models import PRESETS
from snfnp.ops import RandomKey, get_ops
from snfnp.ops.host import HostDevice
from snfnp.ops.images.definition import augment
from snfnp.ops.random.definition import uniform
from snfnp.step.batches import Repeated
from snfnp.training.session import started

COUNT = 4
IMAGES = pixels(COUNT, 8, 8, 1)
PREPROCESSORS = [
    Preprocess(),
    Preprocess(alpha=0.05),
    Preprocess(alpha=0.01, levels=32),
]
KEY = RandomKey(4, 1, 2)


@cache
def trained(model="fc", backend="numpy"):
    """A trainer that has seen one batch, and its likelihood."""
    trainer = make_trainer(get_ops(backend), model)
    batch = np.concatenate([IMAGES] * 2)[:6].reshape(6, *trainer.flow.shape)
    trainer.begin(Repeated(trainer.ops.asarray(batch)))
    return trainer, trainer.likelihood()


def encode(trainer, likelihood, images):
    return trainer.flow.encode(
        trainer.ops, images, RandomKey(0, EVALUATION_NOISE), np.float64
    )


ENTRIES = {
    "log_prob": lambda trainer, likelihood, images: likelihood.log_prob(images, seed=0),
    "evaluate": lambda trainer, likelihood, images: likelihood.evaluate(images, seed=0),
    "latents": lambda trainer, likelihood, images: likelihood.latents(images, seed=0),
    "encode": encode,
}
NOT = "instead of numbers; give a NumPy array of uint8, ({shape})"
INTO_RANGE = "bring them to 0 to 255"
WRONG = {
    "floats up to 1": (
        IMAGES / 255,
        "float64 from 0 to 1; multiply by 255 and cast to uint8",
    ),
    "single precision": (
        IMAGES.astype("f4"),
        "float32 from 0 to 255; round and cast to uint8",
    ),
    "truth values": (
        IMAGES > 9,
        "bool from False to True; multiply by 255 and cast to uint8",
    ),
    "too large": (IMAGES + np.uint16(1), f"values from 1 to 256; {INTO_RANGE}"),
    "negative": (IMAGES.astype(int) - 1, f"values from -1 to 254; {INTO_RANGE}"),
    "NaN": (
        np.where(IMAGES > 9, IMAGES, np.nan),
        f"values from nan to nan; {INTO_RANGE} and cast",
    ),
    "infinity": (
        np.where(IMAGES > 9, np.inf, 0),
        f"values from 0 to inf; {INTO_RANGE} and cast",
    ),
    "hidden values": (
        np.ma.masked_greater(2 * IMAGES.astype(int), 255),
        f"MaskedArray {NOT}",
    ),
    "objects": (IMAGES.astype(object), f"object {NOT}"),
    "complex": (IMAGES + 0j, f"complex128 {NOT}"),
    "a list": (IMAGES.tolist(), f"list {NOT}"),
    "None": (None, f"NoneType {NOT}"),
    "a picture": (Image.fromarray(IMAGES[0, :, :, 0]), f"Image {NOT}"),
    "other rows": (
        IMAGES.reshape(8, 32),
        "(8, 32) is not ({shape}); give images of that shape",
    ),
    "a number": (
        np.array(3, np.uint8),
        "() is not ({shape}); give images of that shape",
    ),
    "no images": (IMAGES[:0], "(0, 8, 8, 1) has no pixels; give at least one image"),
}
OF_MODELS = {  # what a data set has as well, or says otherwise
    "another size": (
        IMAGES.reshape(8, 4, 8),
        "(8, 4, 8) is not (N, 8, 8, 1); give images of that",
    ),
    "a single one": (
        IMAGES[0],
        "(8, 8, 1) is not (N, 8, 8, 1); give images of that shape",
    ),
}
OF_DATA = {
    "whole numbers": (
        IMAGES.astype(int),
        "int64 from 0 to 255; round and cast to uint8",
    ),
    "zeros and ones": (
        IMAGES.astype(int) // 200,
        "int64 from 0 to 1; round and cast to uint8",
    ),
    "one image": (
        np.zeros((9, 8, 3), np.uint8),
        "is one image (H, W, C) without an axis of",
    ),
    "channels first": (
        np.zeros((4, 3, 8, 8), np.uint8),
        "(4, 3, 8, 8) has the channels on axis 1;",
    ),
    "no array": (
        SimpleNamespace(shape=IMAGES.shape, dtype=IMAGES.dtype),
        f"SimpleNamespace {NOT}",
    ),
}


@pytest.mark.parametrize("model", ["fc", "conv"])
@pytest.mark.parametrize("wrong", WRONG | OF_MODELS)
def test_what_is_no_image_is_one_line_before_a_device_gets_it(
    wrong, model, monkeypatch
):
    trainer, likelihood = trained(model)
    images, problem = (WRONG | OF_MODELS)[wrong]

    def asarray(*arguments):
        raise AssertionError("it went to the device")

    monkeypatch.setattr(HostDevice, "asarray", asarray)
    for entry in ENTRIES.values():
        with one_line(UsageError, "the images: ", problem.format(shape="N, 8, 8, 1")):
            entry(trainer, likelihood, images)


@pytest.mark.parametrize("wrong", WRONG | OF_DATA)
def test_what_is_no_image_is_in_no_data_set(wrong):
    images, problem = (WRONG | OF_DATA)[wrong]
    problem = problem.format(shape="N, H, W, C")
    for split in SPLITS:
        splits = dict.fromkeys(SPLITS, IMAGES) | {split: images}
        with one_line(UsageError, f"the {split} images of mine: ", problem):
            Dataset("mine", **splits, source="made here", is_sample=False)


@pytest.mark.parametrize("model", ["fc", "conv"])
def test_grey_images_need_no_channel_axis(model):
    trainer, likelihood = trained(model)
    grey = IMAGES[..., 0]
    for entry in ("log_prob", "evaluate", "latents"):
        results = [ENTRIES[entry](trainer, likelihood, each) for each in (grey, IMAGES)]
        assert_equal(*results)
    assert Dataset("mine", *[grey] * 3).train.shape == IMAGES.shape
    problem = "(4, 8, 8) lacks the channel axis; give images[..., np.newaxis]"
    with one_line(UsageError, problem):
        encode(trainer, likelihood, grey)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int64", ">i4"])
@pytest.mark.parametrize("model", ["fc", "conv"])
def test_all_integers_are_the_same_images_to_the_last_bit(model, dtype, entry):
    trainer, likelihood = trained(model)
    expected = ENTRIES[entry](trainer, likelihood, IMAGES)
    rows = IMAGES.reshape(COUNT, *trainer.flow.shape)
    spread = np.zeros((2 * COUNT, 8, 8, 1), np.uint8)
    spread[::2] = IMAGES
    for images in (IMAGES.astype(dtype), rows.astype(dtype), spread[::2]):
        assert_equal(ENTRIES[entry](trainer, likelihood, images), expected)


def test_levels_of_the_preprocessing_are_the_limit(ops):
    flow = snfnp.Flow((8, 8, 1), (("a", SmoothLeakyReLU(0.3)),), Preprocess(levels=32))
    key = RandomKey(0, 0)
    assert np.isfinite(flow.encode(ops, IMAGES // 8, key, np.float64)[0]).all()
    with pytest.raises(UsageError, match="values from 0 to 255; bring them to 0 to 31"):
        flow.encode(ops, IMAGES, key, np.float64)
    few = IMAGES // 8
    few[-1] = 32  # behind the first batch
    data = snfnp.Dataset("mine", few, few, few)
    config = snfnp.TrainConfig(model=flow, batch_size=1, shuffle=False)
    with pytest.raises(UsageError, match="images: values from 0 to 32"):
        started(config, data).__enter__()


@pytest.mark.parametrize("sizes", [{}, {"at_once": 3}])
@pytest.mark.parametrize("model", ["fc", "glow"])
def test_log_prob_is_that_of_evaluate_and_of_a_seed(model, sizes):
    _, likelihood = trained(model)
    log_prob = likelihood.log_prob(IMAGES, seed=7, **sizes)
    assert type(log_prob) is np.ndarray and log_prob.dtype == np.float64
    nll = likelihood.evaluate(IMAGES, 7, **sizes).nll
    assert_allclose(nll, -log_prob.mean(), rtol=1e-13)
    assert (log_prob == likelihood.log_prob(IMAGES, 7, **sizes)).all()
    assert (log_prob != likelihood.log_prob(IMAGES, 8, **sizes)).all()
    assert (likelihood.log_prob(IMAGES) == likelihood.log_prob(IMAGES, 0)).all()


def test_noise_depends_on_the_seed_the_batch_and_the_index_in_it(monkeypatch):
    monkeypatch.setattr("snfnp.likelihood._BATCH", 3)
    trainer, likelihood = trained()
    (latents,) = likelihood.latents(IMAGES, 7, at_once=2)
    for first, batch, index in ((0, 0, 0), (2, 0, 2), (3, 1, 0)):
        key = RandomKey(7, EVALUATION_NOISE, batch, index)
        x, _ = trainer.flow.encode(
            trainer.ops, IMAGES[first : first + 1], key, np.float64
        )
        (expected,), *_ = trainer.flow.forward(trainer.ops, likelihood.params, x)
        assert_allclose(latents[first], expected[0], rtol=1e-12)


@pytest.mark.parametrize("entry", ["log_prob", "evaluate", "latents", "sample"])
def test_a_seed_is_a_whole_number(entry):
    argument = COUNT if entry == "sample" else IMAGES
    for seed in (-1, 2**63, 0.0, "0", None, True, RandomKey(0, 1)):
        with one_line(
            UsageError, f"seed is {seed!r}: give a whole number from 0 to 2**63 - 1"
        ):
            getattr(trained()[1], entry)(argument, seed)


WHOLE = "give a whole number from 1 to"
NUMBERS = {
    "count": (0, 2.0, f"count is {{}}: {WHOLE}"),
    "at_once": (0, 1.5, f"at_once is {{}}: {WHOLE}"),
    "temperature": (-1, np.nan, None, "temperature is {}: it must be in (0, inf) or 0"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_other_numbers_are_checked_as_on_the_command_line(name):
    *values, problem = NUMBERS[name]
    likelihood = trained()[1]
    for value in values:
        with one_line(UsageError, problem.format(value)):
            likelihood.sample(**{"count": 1, name: value})
    with one_line(UsageError, f"at_once is 0: {WHOLE}"):
        likelihood.log_prob(IMAGES, at_once=0)


@pytest.mark.parametrize("model", [name for name in PRESETS if "glow-3l" not in name])
def test_samples_have_the_shape_of_images(model):
    _, likelihood = trained(model)
    samples = likelihood.sample(3, seed=0, exact=True)
    assert samples.shape == (3, 8, 8, 1) and samples.dtype == np.uint8
    again = likelihood.sample(3, 1, exact=True, latents=likelihood.latents(samples))
    # a value on the edge of two integers may fall either way
    assert np.mean(again != samples) < 0.01


def test_a_run_and_what_it_holds_are_shown_in_a_line(finished):
    loaded = snfnp.load_run(finished)
    said = f"<run {finished}: fc, self-normalizing gradient, numpy, mnist (5, 5, 1), at step 15>"
    assert repr(loaded) == said
    for name in ("ops", "flow", "layout", "checkpoint", "likelihood", "folder"):
        assert len(repr(getattr(loaded, name))) < 200, name


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))]
)
def test_a_run_can_be_copied_and_pickled(finished, again, ops):
    images = small_dataset().test
    loaded = snfnp.load_run(finished, backend=ops.name)
    expected = loaded.likelihood.log_prob(images)
    for run in (again(loaded), again(snfnp.load_run(finished, backend=ops.name))):
        assert run.ops.name == ops.name and type(run.ops.conv) is type(loaded.ops.conv)
        assert_array_equal(run.likelihood.log_prob(images), expected)
    assert_array_equal(again(loaded.likelihood).log_prob(images), expected)
    again(loaded.flow).encode(again(loaded.ops), images, RandomKey(0, 1), np.float64)


@pytest.mark.parametrize("function", ["train", "resume"])
@pytest.mark.parametrize("dataset", [IMAGES, {"train": IMAGES}], ids=["array", "dict"])
def test_only_a_data_set_is_trained_on(dataset, function, finished):
    kind = type(dataset).__name__
    with one_line(
        UsageError, f"the data is of type {kind}: make a snfnp.Dataset(name, train,"
    ):
        if function == "train":
            snfnp.train(small_config(backend="numpy", out=finished), dataset)
        snfnp.resume(finished, dataset=dataset)


@pytest.fixture(params=PREPROCESSORS, ids=str)
def preprocess(request):
    return request.param


def some_images(preprocess, shape=(5, 3, 2, 1)):
    images = default_rng(0).integers(0, preprocess.levels, shape).astype(np.uint8)
    images.flat[0] = 0
    images.flat[-1] = preprocess.levels - 1
    return images


def test_preprocess_is_dequantise_scale_logit(preprocess, ops):
    images = some_images(preprocess)
    x, ldj = preprocess.forward(ops, images, KEY, np.float64)
    u = get_ops("numpy").random.uniform(KEY, images.shape, np.float64)
    s = preprocess.alpha + (1 - 2 * preprocess.alpha) * (images + u) / preprocess.levels
    assert_allclose(x, logit(s), rtol=1e-9, atol=1e-12)  # 1 - s cancels in this form
    per_pixel = (
        np.log((1 - 2 * preprocess.alpha) / preprocess.levels)
        - np.log(s)
        - np.log1p(-s)
    )
    assert_allclose(ldj, per_pixel.reshape(5, -1).sum(axis=1), rtol=1e-9)


def test_preprocess_inverse_gives_the_images_back(preprocess, ops):
    images = some_images(preprocess, (40, 28))
    for dtype in (np.float64, np.float32):
        x, _ = preprocess.forward(ops, images, KEY, dtype)
        back = preprocess.inverse(ops, x)
        assert back.dtype == np.uint8
        # in single precision a rounding can cross into the next level
        if dtype == np.float64:
            assert_array_equal(back, images)
        # the way back rounds nothing that single precision would
        assert_array_equal(back, preprocess.inverse(ops, x.astype(np.float64)))


def test_preprocess_inverse_clips_what_lies_outside(preprocess, ops):
    x = np.array([[-100.0, 100.0]])
    assert_array_equal(preprocess.inverse(ops, x), [[0, preprocess.levels - 1]])


def test_preprocess_in_single_precision(preprocess, ops):
    """Computed in double precision and rounded once."""
    images = some_images(preprocess)
    double = preprocess.forward(ops, images, KEY, np.float64)
    single = preprocess.forward(ops, images, KEY, np.float32)
    for rounded, expected in zip(single, double, strict=True):
        assert rounded.dtype == np.float32
        assert_allclose(rounded, expected, rtol=np.finfo(np.float32).eps)


def test_rows_on_a_lattice_get_noise_of_a_step_and_come_back(ops):
    """The column without a step gets none; u is centred, and one step wide."""
    rng = default_rng(0)
    rows = np.stack([rng.integers(40, 80, 3000) / 10, rng.normal(size=3000)], axis=1)
    plain = Standardise((6.0, 0.5), (2.0, 4.0))
    tied = replace(plain, step=(0.1, 0.0), origin=(5.0, 0.0), unit=(10.0, 0.0))
    x, ldj = plain.forward(ops, ops.asarray(rows), KEY, np.float64)
    noisy, tied_ldj = tied.forward(ops, ops.asarray(rows), KEY, np.float64)
    assert_array_equal(ops.to_host(ldj), ops.to_host(tied_ldj))
    noise = ops.to_host(noisy - x) * [2.0, 4.0]
    assert np.abs(noise[:, 1]).max() == 0 and np.abs(noise[:, 0]).max() <= 0.05 + 1e-12
    assert abs(noise[:, 0].mean()) < 0.003
    assert abs(noise[:, 0].std() - 0.1 / 12**0.5) < 1e-3
    back = ops.to_host(tied.inverse(ops, noisy))
    assert_array_equal(back[:, 0], rows[:, 0])  # 5.1, not 5.1000000000000005
    assert_allclose(back[:, 1], rows[:, 1], rtol=1e-12, atol=1e-12)
    assert tied.terms(-2.0, 2) == {"dequantisation": 0.0, "scale": -2.0}
    gaussian = np.log2(2 * np.pi * np.e) / 2  # bits of a standard Gaussian
    assert_allclose(plain.baseline_bits, np.log2([2.0, 4.0]).mean() + gaussian)


def shifted(image, down, right, flip):
    """The definition, on one image: pad by its border, cut, flip."""
    height, width, _ = image.shape
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    cut = padded[1 - down : 1 - down + height, 1 - right : 1 - right + width]
    return cut[:, ::-1] if flip else cut


def test_augment():
    """Every result is one of the 18 possible ones, as the key's numbers say, each as often as it
    should be."""
    key = RandomKey(1, 2, 3)
    images = pixels(360, 5, 6, 3)
    before = images.copy()
    result = augment(images, key)
    u = uniform(np, key, (360, 3))
    assert result.shape == images.shape and result.dtype == np.uint8
    assert augment(images[:0], key).shape == images[:0].shape
    assert_array_equal(images, before)
    kinds = [*product((-1, 0, 1), (-1, 0, 1), (False, True))]
    tally = dict.fromkeys(kinds, 0)
    for image, changed, (f, *shift) in zip(images, result, u, strict=True):
        (same,) = (kind for kind in kinds if (shifted(image, *kind) == changed).all())
        down, right = (int(3 * each) - 1 for each in shift)
        # the flip comes first
        assert same == (down, -right if f < 0.5 else right, f < 0.5)
        tally[same] += 1
    # Chi squared with 17 degrees of freedom is above 51 once in 30,000 draws; the draw is fixed.
    assert sum((n - 20) ** 2 / 20 for n in tally.values()) < 51
