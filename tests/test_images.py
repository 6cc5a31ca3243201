"""Images where they enter: what is taken, bit for bit, and one line for everything else."""

import copy
import pickle
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support.messages import assert_one_line, one_line
from support.trainers import make_trainer, small_config, small_dataset

import snfnp
from snfnp.data import SPLITS, Dataset
from snfnp.errors import UsageError
from snfnp.layers import Preprocess, SmoothLeakyReLU
from snfnp.likelihood import EVALUATION_NOISE
from snfnp.models import PRESETS
from snfnp.ops import RandomKey, get_ops
from snfnp.ops.host import HostDevice
from snfnp.training.batches import Repeated

COUNT = 4
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 1)).astype(np.uint8)


@cache
def trained(model="fc", backend="numpy"):
    """A trainer that has seen one batch, and its likelihood."""
    trainer = make_trainer(get_ops(backend), model)
    batch = np.concatenate([IMAGES] * 2)[:6].reshape(6, *trainer.flow.shape)
    trainer.begin(Repeated(trainer.ops.asarray(batch)))
    return trainer, trainer.likelihood()


def encode(trainer, likelihood, images):
    return trainer.flow.encode(trainer.ops, images, RandomKey(0, EVALUATION_NOISE), np.float64)


ENTRIES = {
    "log_prob": lambda trainer, likelihood, images: likelihood.log_prob(images, seed=0),
    "evaluate": lambda trainer, likelihood, images: likelihood.evaluate(images, seed=0),
    "latents": lambda trainer, likelihood, images: likelihood.latents(images, seed=0),
    "encode": encode,
}
NOT = "instead of numbers; give a NumPy array of uint8, ({shape})"
INTO_RANGE = "bring them to 0 to 255"
WRONG = {
    "floats up to 1": (IMAGES / 255, "float64 from 0.0 to 1.0; multiply by 255 and cast to uint8"),
    "single precision": (IMAGES.astype("f4"), "float32 from 0.0 to 255.0; round and cast to uint8"),
    "truth values": (IMAGES > 9, "bool from False to True; multiply by 255 and cast to uint8"),
    "too large": (IMAGES + np.uint16(1), f"values from 1 to 256; {INTO_RANGE}"),
    "negative": (IMAGES.astype(int) - 1, f"values from -1 to 254; {INTO_RANGE}"),
    "NaN": (np.where(IMAGES > 9, IMAGES, np.nan), f"values from nan to nan; {INTO_RANGE} and cast"),
    "infinity": (np.where(IMAGES > 9, np.inf, 0), f"values from 0.0 to inf; {INTO_RANGE} and cast"),
    "hidden values": (np.ma.masked_greater(2 * IMAGES.astype(int), 255), f"MaskedArray {NOT}"),
    "objects": (IMAGES.astype(object), f"object {NOT}"),
    "complex": (IMAGES + 0j, f"complex128 {NOT}"),
    "a list": (IMAGES.tolist(), f"list {NOT}"),
    "None": (None, f"NoneType {NOT}"),
    "a picture": (Image.fromarray(IMAGES[0, :, :, 0]), f"Image {NOT}"),
    "other rows": (IMAGES.reshape(8, 32), "(8, 32) is not ({shape}); give images of that shape"),
    "a number": (np.array(3, np.uint8), "() is not ({shape}); give images of that shape"),
    "no images": (IMAGES[:0], "(0, 8, 8, 1) has no pixels; give at least one image"),
}
OF_MODELS = {  # what a data set has as well, or says otherwise
    "another size": (IMAGES.reshape(8, 4, 8), "(8, 4, 8) is not (N, 8, 8, 1); give images of that"),
    "larger ones": (np.zeros((4, 28, 28, 1), np.uint8), "(4, 28, 28, 1) is not (N, 8, 8, 1)"),
    "a single one": (IMAGES[0], "(8, 8, 1) is not (N, 8, 8, 1); give images of that shape"),
}
OF_DATA = {
    "whole numbers": (IMAGES.astype(int), "int64 from 0 to 255; round and cast to uint8"),
    "zeros and ones": (IMAGES.astype(int) // 200, "int64 from 0 to 1; round and cast to uint8"),
    "one image": (
        np.zeros((9, 8, 3), np.uint8),
        "is one image (H, W, C) without an axis of",
    ),
    "channels first": (
        np.zeros((4, 3, 8, 8), np.uint8),
        "(4, 3, 8, 8) has the channels on axis 1;",
    ),
    "no array": (SimpleNamespace(shape=IMAGES.shape, dtype=IMAGES.dtype), f"SimpleNamespace {NOT}"),
}


@pytest.mark.parametrize("model", ["fc", "conv"])
@pytest.mark.parametrize("wrong", WRONG | OF_MODELS)
def test_what_is_no_image_is_one_line_before_a_device_gets_it(wrong, model, monkeypatch):
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
    for entry in ("log_prob", "evaluate", "latents"):
        found, expected = (
            ENTRIES[entry](trainer, likelihood, images) for images in (IMAGES[..., 0], IMAGES)
        )
        np.testing.assert_equal(found, expected)
    dataset = Dataset("mine", *[IMAGES[..., 0]] * 3)
    assert dataset.train.shape == IMAGES.shape
    with one_line(UsageError, "(4, 8, 8) lacks the channel axis; give images[..., np.newaxis]"):
        encode(trainer, likelihood, IMAGES[..., 0])


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
        found = ENTRIES[entry](trainer, likelihood, images)
        if entry == "evaluate":
            assert found == expected
        else:
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)


def test_levels_of_the_preprocessing_are_the_limit(ops):
    flow = snfnp.Flow((8, 8, 1), (("a", SmoothLeakyReLU(0.3)),), Preprocess(levels=32))
    key = RandomKey(0, 0)
    assert np.isfinite(flow.encode(ops, IMAGES // 8, key, np.float64)[0]).all()
    with pytest.raises(UsageError, match="values from 0 to 255; bring them to 0 to 31"):
        flow.encode(ops, IMAGES, key, np.float64)


@pytest.mark.parametrize("sizes", [{}, {"batch_size": 3}, {"batch_size": 3, "at_once": 2}])
@pytest.mark.parametrize("model", ["fc", "glow"])
def test_log_prob_has_the_terms_of_evaluate_bit_for_bit(model, sizes, monkeypatch):
    trainer, likelihood = trained(model)
    terms_of, seen = type(likelihood)._terms, []

    def terms(*arguments, **how):
        seen.append(terms_of(*arguments, **how))
        return seen[-1]

    monkeypatch.setattr(type(likelihood), "_terms", terms)
    evaluation = likelihood.evaluate(IMAGES, 7, **sizes)
    monkeypatch.undo()
    expensive = sum(likelihood.log_dets.values())
    expected = np.concatenate([sum(each.values()) + expensive for each in seen])
    found = likelihood.log_prob(IMAGES, seed=7, **sizes)
    assert type(found) is np.ndarray and found.dtype == np.float64
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(evaluation.nll, -found.mean(), rtol=1e-13)
    again = likelihood.log_prob(IMAGES, 7, **sizes)
    assert (found == again).all() and (found != likelihood.log_prob(IMAGES, 8, **sizes)).all()
    assert (likelihood.log_prob(IMAGES) == likelihood.log_prob(IMAGES, 0)).all()


def test_noise_is_of_the_seed_the_batch_and_the_place_in_it():
    trainer, likelihood = trained()
    (found,) = likelihood.latents(IMAGES, 7, batch_size=3, at_once=2)
    for first, batch, place in ((0, 0, 0), (2, 0, 2), (3, 1, 0)):
        key = RandomKey(7, EVALUATION_NOISE, batch, place)
        x, _ = trainer.flow.encode(trainer.ops, IMAGES[first : first + 1], key, np.float64)
        (expected,), *_ = trainer.flow.forward(trainer.ops, likelihood.params, x)
        np.testing.assert_allclose(found[first], expected[0], rtol=1e-12)


@pytest.mark.parametrize("entry", ["log_prob", "evaluate", "latents", "sample"])
def test_a_seed_is_a_whole_number(entry):
    given = COUNT if entry == "sample" else IMAGES
    for seed in (-1, 2**63, 0.0, "0", None, True, RandomKey(0, 1)):
        with one_line(UsageError, f"seed is {seed!r}: give a whole number from 0 to 2**63 - 1"):
            getattr(trained()[1], entry)(given, seed)


@pytest.mark.parametrize(
    "entry, given, problem",
    [
        ("sample", {"count": 0}, "count is 0: give a whole number from 1 to"),
        ("sample", {"count": 2.0}, "count is 2.0: give a whole number from 1 to"),
        ("sample", {"count": 1, "part": -1}, "part is -1: give a whole number from 0 to"),
        ("sample", {"count": 1, "temperature": -1}, "temperature is -1: it must be 0 or more, and"),
        ("sample", {"count": 1, "temperature": np.nan}, "temperature is nan: it must be 0 or more"),
        ("evaluate", {"images": IMAGES, "batch_size": 0}, "batch_size is 0: give a whole number"),
        ("log_prob", {"images": IMAGES, "at_once": 0}, "at_once is 0: give a whole number from 1"),
    ],
)
def test_other_numbers_are_checked_as_on_the_command_line(entry, given, problem):
    with one_line(UsageError, problem):
        getattr(trained()[1], entry)(**given)


@pytest.mark.parametrize("model", [name for name in PRESETS if "glow-3l" not in name])
def test_samples_have_the_shape_of_images(model):
    trainer, likelihood = trained(model)
    found = likelihood.sample(3, seed=0, exact=True)
    assert found.shape == (3, 8, 8, 1) and found.dtype == np.uint8
    again = likelihood.sample(3, 1, exact=True, latents=likelihood.latents(found))
    assert np.mean(again != found) < 0.01  # a value on the edge of two integers may fall either way


def test_a_run_and_what_it_holds_are_shown_in_a_line(finished):
    loaded = snfnp.load_run(finished)
    said = f"<run {finished}: fc, self-normalizing gradient, numpy, mnist (5, 5, 1), at step 15>"
    assert repr(loaded) == said
    for name in ("ops", "flow", "layout", "checkpoint", "likelihood", "folder"):
        assert len(repr(getattr(loaded, name))) < 200, name


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("again", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_run_can_be_copied_and_pickled(finished, again, backend):
    loaded, images = snfnp.load_run(finished, backend=backend), small_dataset().test
    expected = loaded.likelihood.log_prob(images)
    for found in (again(loaded), again(snfnp.load_run(finished, backend=backend))):
        assert found.ops.name == backend and type(found.ops.conv) is type(loaded.ops.conv)
        np.testing.assert_array_equal(found.likelihood.log_prob(images), expected)
    np.testing.assert_array_equal(again(loaded.likelihood).log_prob(images), expected)
    again(loaded.flow).encode(again(loaded.ops), images, RandomKey(0, 1), np.float64)


@pytest.mark.parametrize("how", ["train", "resume"])
@pytest.mark.parametrize("dataset", [IMAGES, {"train": IMAGES}], ids=["array", "dict"])
def test_only_a_data_set_is_trained_on(dataset, how, finished):
    with pytest.raises(UsageError) as caught:
        if how == "train":
            config = small_config(backend="numpy")
            snfnp.train(config, dataset, get_ops("numpy"), snfnp.RunFolder(finished))
        snfnp.resume(finished, dataset=dataset)
    kind = type(dataset).__name__
    assert_one_line(caught.value, f"the data is of type {kind}: make a snfnp.Dataset(name, train,")
