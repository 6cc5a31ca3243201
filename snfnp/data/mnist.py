"""MNIST and Fashion-MNIST, and the sample of MNIST that the package ships."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np

from snfnp.data.dataset import SPLITS, Dataset
from snfnp.data.published import Published
from snfnp.data.reading import idx_header, read_idx
from snfnp.errors import SnfnpError, UsageError

IMAGE_SIZE = (28, 28)
SAMPLE = "sample shipped with the package"  # its source, in words
TRAIN_STEM, TEST_STEM = "train-images", "t10k-images"
NAMES = {stem: f"{stem}-idx3-ubyte.gz" for stem in (TRAIN_STEM, TEST_STEM)}


@dataclass(frozen=True)
class MnistSpec(Published):
    """One of the data sets in MNIST's format: two IDX files, each with or without ".gz".

    Given files are checked for their format, size and number of images, and for not being another
    data set known here. MNIST that is found nowhere and
    cannot be downloaded gives the sample that the package ships, split 5,000 / 1,000 / 1,000.

    sha256: of the uncompressed IDX files, by stem. counts: the images for training, validation (the
    last of the training file) and test.
    """

    names: dict[str, str] = field(default_factory=NAMES.copy)
    sha256: dict[str, str] = field(default_factory=dict)
    # The split of Keller et al. 2021, "Self Normalizing Flows", appendix A.3.
    counts: tuple[int, int, int] = (50_000, 10_000, 10_000)

    def find(self, folder: Path) -> dict[str, Path]:
        """The files in a folder by stem (TRAIN_STEM, TEST_STEM), under any of their names."""
        ends = [f"{mark}idx3-ubyte{end}" for mark in ".-" for end in (".gz", "")]
        paths = {stem: [folder / f"{stem}{end}" for end in ends] for stem in self.names}
        return {key: path for key in paths for path in paths[key] if os.path.isfile(path)}

    def read(self, files: dict[str, Path], source: str, report: Callable) -> Dataset:
        images = {stem: read_idx(path, self._shape(stem)) for stem, path in files.items()}
        # Fashion-MNIST's files have the names of MNIST's.
        others = {digest: spec for spec in SPECS.values() for digest in spec.sha256.values()}
        for stem, path in files.items():
            other = others.get(_digest(images[stem]), self)
            if other.name != self.name:
                found = f"{path}: is a file of {other.title}, not of {self.title}"
                raise SnfnpError(f"{found}; choose the data set {other.name} or another folder")
        train, validation = np.split(images[TRAIN_STEM][..., None], [self.counts[0]])
        test = images[TEST_STEM][..., None]
        return Dataset(self.name, train, validation, test, source, is_sample=False)

    def _shape(self, stem: str) -> tuple[int, int, int]:
        train, validation, test = self.counts
        return (train + validation if stem == TRAIN_STEM else test, *IMAGE_SIZE)

    def without_download(self, error: SnfnpError, report: Callable) -> Dataset:
        if self.name != "mnist":
            return super().without_download(error, report)
        used = f"using the {SAMPLE} (5000 train, 1000 validation, 1000 test images)"
        given = "--data-dir or SNFNP_DATA_DIR may name a folder with the full data's files"
        report(f"WARNING: NOT THE FULL {self.title}: {used}, because {error}; {given}")
        return sample()


def sample(data_dir=None, report=None) -> Dataset:
    """The sample of MNIST that the package ships. Raises UsageError if a folder is given."""
    if data_dir is not None:
        raise UsageError(f"mnist-sample comes with the package: leave `data_dir={data_dir}` out")
    folder, splits = resources.files("snfnp.data").joinpath("sample"), []
    for split, count in zip(SPLITS, (5_000, 1_000, 1_000), strict=True):
        with resources.as_file(folder.joinpath(f"{split}-images.idx3-ubyte.gz")) as path:
            splits.append(read_idx(path, (count, *IMAGE_SIZE))[..., None])
    return Dataset("mnist", *splits, source=SAMPLE, is_sample=True)


SPECS = {
    "mnist": MnistSpec(
        name="mnist",
        title="MNIST",
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        md5={
            TRAIN_STEM: "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            TEST_STEM: "9fb629c4189551a2d022fa330f9573f3",
        },
        sha256={
            TRAIN_STEM: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            TEST_STEM: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        },
    ),
    "fashion-mnist": MnistSpec(
        name="fashion-mnist",
        title="Fashion-MNIST",
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        md5={
            TRAIN_STEM: "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            TEST_STEM: "bef4ecab320f06d8554ea6380940ec79",
        },
        sha256={
            TRAIN_STEM: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            TEST_STEM: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        },
    ),
}


def _digest(images: np.ndarray) -> str:
    """The SHA-256 of the uncompressed IDX file that holds `images` (N, rows, columns)."""
    return hashlib.sha256(idx_header(images.shape) + images.tobytes()).hexdigest()
