"""MNIST and Fashion-MNIST: where the images are looked for, and how they are split."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from snfnp.data.files import (
    Dataset,
    NoDownloadError,
    cache_folder,
    download,
    given_folder,
    is_offline,
)
from snfnp.data.idx import parse_idx, read_content, read_idx
from snfnp.errors import SnfnpError, UsageError

IMAGE_SIZE = (28, 28)
TRAIN_STEM = "train-images"
TEST_STEM = "t10k-images"


@dataclass(frozen=True)
class DatasetSpec:
    """What is published under a name: where to get it, and what it must contain.

    Attributes:
        title: what messages call it.
        mirrors: base addresses, each ending in "/", in the order in which they are tried.
        sha256: the SHA-256 of the uncompressed IDX file, by stem (TRAIN_STEM, TEST_STEM).
        train_count: images that the training file gives to the train split (the first ones).
        validation_count: images that it gives to the validation split (the ones after those).
        test_count: images in the test file.
        has_sample: whether a sample of it is shipped with the package.
    """

    title: str
    mirrors: tuple[str, ...]
    sha256: dict[str, str]
    train_count: int = 50_000
    validation_count: int = 10_000
    test_count: int = 10_000
    has_sample: bool = False


# The split is that of Keller et al. 2021, "Self Normalizing Flows", appendix A.3.
SPECS = {
    "mnist": DatasetSpec(
        title="MNIST",
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "http://yann.lecun.com/exdb/mnist/",
        ),
        sha256={
            TRAIN_STEM: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            TEST_STEM: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        },
        has_sample=True,
    ),
    "fashion-mnist": DatasetSpec(
        title="Fashion-MNIST",
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        sha256={
            TRAIN_STEM: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            TEST_STEM: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        },
    ),
}


def find_images(folder: Path) -> dict[str, Path]:
    """Return the image files in `folder` by stem (TRAIN_STEM, TEST_STEM); absent ones left out."""
    found = {}
    for stem in (TRAIN_STEM, TEST_STEM):
        names = (f"{stem}{mark}idx3-ubyte{end}" for mark in "-." for end in ("", ".gz"))
        # os.path.isfile, unlike Path.is_file, also answers for folders that may not be entered.
        path = next((folder / name for name in names if os.path.isfile(folder / name)), None)
        if path is not None:
            found[stem] = path
    return found


def load(
    name: str, data_dir: str | os.PathLike[str] | None, report: Callable[[str], None]
) -> Dataset:
    """Load MNIST or Fashion-MNIST: what `snfnp.data.load_dataset` says, for a name in SPECS.

    Files: train-images-idx3-ubyte and t10k-images-idx3-ubyte, each with or without ".gz" (the
    names with ".idx3" are known too). If MNIST is found nowhere and cannot be downloaded, the
    sample that is shipped with the package stands in.

    Downloads are checked against the published SHA-256; given files only for their format, size
    and number of images, and for not being another data set known here.

    Returns:
        The full set, split 50,000 / 10,000 / 10,000 (Keller et al. 2021, appendix A.3), or the
        sample, split 5,000 / 1,000 / 1,000.
    """
    given = given_folder(data_dir, SPECS[name].title)
    if given is not None:
        return _load_given(name, *given)
    try:
        mirrors = _fill_cache(name)
    except NoDownloadError as error:
        return _load_stand_in(name, str(error), report)
    return _load_cache(name, mirrors)


def _load_given(name: str, root: Path, origin: str) -> Dataset:
    for place in (root / name, root):
        files = find_images(place)
        if len(files) == 2:
            return _load_full(name, files, f"folder {place}")
        if files:
            # Half a set is the folder that was meant: looking on would hide what it lacks.
            break
    missing = " and ".join(
        f"{stem}-idx3-ubyte[.gz]" for stem in (TRAIN_STEM, TEST_STEM) if stem not in files
    )
    raise UsageError(
        f"{place}: {origin} lacks {missing}; put the {SPECS[name].title} files there "
        "or give another folder"
    )


def _load_cache(name: str, mirrors: list[str]) -> Dataset:
    folder = cache_folder(name)
    source = f"cache folder {folder}"
    if mirrors:
        source = f"{', '.join(mirrors)} (downloaded to {folder})"
    try:
        return _load_full(name, find_images(folder), source)
    except SnfnpError as error:
        raise SnfnpError(
            f"{error} (in the cache: delete it to have it downloaded again)"
        ) from error


def _load_full(name: str, files: dict[str, Path], source: str) -> Dataset:
    spec = SPECS[name]
    images = {}
    for stem, count in (
        (TRAIN_STEM, spec.train_count + spec.validation_count),
        (TEST_STEM, spec.test_count),
    ):
        content = read_content(files[stem])
        images[stem] = _as_images(parse_idx(content, files[stem]), files[stem], count, spec.title)
        _refuse_other_dataset(name, content, files[stem])
    return Dataset(
        name=name,
        train=images[TRAIN_STEM][: spec.train_count],
        validation=images[TRAIN_STEM][spec.train_count :],
        test=images[TEST_STEM],
        source=source,
        is_sample=False,
    )


def _as_images(array: np.ndarray, path: Path, count: int, title: str) -> np.ndarray:
    expected = (count, *IMAGE_SIZE)
    if array.shape != expected:
        found, wanted = (" x ".join(map(str, shape)) for shape in (array.shape, expected))
        raise SnfnpError(
            f"{path}: holds an array of {found}, not {wanted}; give the full {title} files"
        )
    return array[..., np.newaxis]


def _refuse_other_dataset(name: str, content: bytes, path: Path) -> None:
    """Refuse MNIST's files where Fashion-MNIST is wanted, and so on: they bear the same names."""
    digest = hashlib.sha256(content).hexdigest()
    for other, spec in SPECS.items():
        if other != name and digest in spec.sha256.values():
            raise SnfnpError(
                f"{path}: is a file of {spec.title}, not of {SPECS[name].title}; "
                f"choose the data set {other} or give another folder"
            )


def _load_stand_in(name: str, reason: str, report: Callable[[str], None]) -> Dataset:
    spec = SPECS[name]
    if not spec.has_sample:
        raise SnfnpError(
            f"no {spec.title} images in {cache_folder(name)} and no download ({reason}); get "
            f"{TRAIN_STEM}-idx3-ubyte.gz and {TEST_STEM}-idx3-ubyte.gz from "
            f"{' or '.join(spec.mirrors)} and give their folder with --data-dir"
        )
    dataset = _load_sample(name)
    report(
        f"WARNING: NOT THE FULL {spec.title}: using the sample shipped with the package "
        f"({len(dataset.train)} train, {len(dataset.validation)} validation, "
        f"{len(dataset.test)} test images), because {reason}; for the full data give a folder "
        f"with {TRAIN_STEM}-idx3-ubyte.gz and {TEST_STEM}-idx3-ubyte.gz by --data-dir or "
        "SNFNP_DATA_DIR, or run again where the download works"
    )
    return dataset


def _load_sample(name: str) -> Dataset:
    spec = SPECS[name]
    splits = {}
    folder = resources.files("snfnp.data").joinpath("sample")
    for split, count in (("train", 5_000), ("validation", 1_000), ("test", 1_000)):
        file_name = f"{split}-images.idx3-ubyte.gz"
        with resources.as_file(folder.joinpath(file_name)) as path:
            splits[split] = _as_images(read_idx(path), path, count, f"{spec.title} sample")
    return Dataset(name=name, **splits, source="sample shipped with the package", is_sample=True)


def _fill_cache(name: str) -> list[str]:
    """Download what the cache lacks; return the hosts that gave it (none: nothing was lacking).

    Raises:
        NoDownloadError: a file is lacking and could not be had.
    """
    folder = cache_folder(name)
    present = find_images(folder)
    missing = [stem for stem in (TRAIN_STEM, TEST_STEM) if stem not in present]
    if missing and is_offline():
        raise NoDownloadError("SNFNP_OFFLINE is set and the cache does not hold it")
    spec = SPECS[name]
    hosts = [
        download(
            spec.mirrors,
            f"{stem}-idx3-ubyte.gz",
            folder,
            lambda path, stem=stem: _find_problem(path, spec.sha256[stem]),
        )
        for stem in missing
    ]
    return list(dict.fromkeys(hosts))


def _find_problem(path: Path, sha256: str) -> str | None:
    try:
        content = read_content(path)
    except SnfnpError:
        return "damaged file"
    # The content is what is published: mirrors compress it differently, or not at all.
    if hashlib.sha256(content).hexdigest() != sha256:
        return "wrong checksum"
    return None
