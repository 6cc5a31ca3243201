"""Data that change, never end, are damaged or mislabelled: each is one line that names the file."""

import io
import os
import socket
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from support.messages import one_line

import snfnp
from snfnp import images
from snfnp.cli import train
from snfnp.data import load_whole, own_data, pictures
from snfnp.errors import SnfnpError, UsageError
from snfnp.images import StoredArray

RNG = np.random.default_rng(0)
LARGE = pytest.mark.usefixtures("large")
ROWS = RNG.normal((5.0, -3e4), (0.1, 4e3), (200, 2))
GREY = RNG.integers(0, 256, (60, 4, 6)).astype(np.uint8)
COLOUR = np.stack([GREY[0], GREY[1], GREY[2]], axis=-1)


@pytest.fixture
def large(monkeypatch):
    """Every file is one that is not read at once."""
    monkeypatch.setattr(images, "_SMALL", 0)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def rewrite(path):
    with open(path, "r+b") as file:  # of the same size
        file.seek(-8 * 9, os.SEEK_END)
        file.write(b"\0" * 8 * 9)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # as a clock does that goes on


@LARGE
@pytest.mark.parametrize("change", [cut, rewrite])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_that_changes_while_it_is_trained_on_stops_the_run(change, mapped, tmp_path):
    path, run = tmp_path / "rows.npy", tmp_path / "run"
    np.save(path, ROWS)
    data = snfnp.load_dataset(str(path))
    if mapped:
        data = own_data(np.load(path, mmap_mode="r"))
    steps = []

    def callback(record):
        if record.nll is not None:
            steps.append(record.step)
            change(path)

    how = {"backend": "numpy", "batch_size": 20, "epochs": 9, "warmup_epochs": 1, "eval_every": 1}
    with one_line(
        SnfnpError, "rows.npy has changed since it was opened", "restore it and continue"
    ):
        snfnp.fit(data, model="fc", out=run, report=None, callbacks=[callback], **how)
    assert len(steps) == 1, "it is noticed at the next step"
    np.save(path, ROWS)
    again = own_data(np.load(path, mmap_mode="r")) if mapped else snfnp.load_dataset(str(path))
    snfnp.resume(run, dataset=again, report=None)
    assert snfnp.load_run(run, "last").checkpoint.step == 9 * steps[0]


@LARGE
def test_a_file_that_is_replaced_is_read_to_its_end(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, ROWS)
    data = snfnp.load_dataset(str(path)).train
    before = data[:]
    np.save(tmp_path / "new.npy", 2 * ROWS)
    os.replace(tmp_path / "new.npy", path)
    np.testing.assert_array_equal(data[:], before)


@LARGE
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f4", ">f8", "u1", "i8"])
def test_samples_are_read_as_numpy_reads_them(dtype, order, tmp_path):
    array = np.asarray(RNG.integers(0, 200, (50, 3, 2)).astype(dtype), order=order)
    np.save(tmp_path / "a.npy", array)
    found = images.open_array(tmp_path / "a.npy")
    assert isinstance(found, StoredArray) == (order == "C") and found.dtype == array.dtype
    assert found.nbytes == array.nbytes  # by which a GPU holds it or streams it
    for places in (slice(None), slice(3, 9), np.array([7, 8, 3, 4, 5, 49, 0]), np.arange(0), 4):
        np.testing.assert_array_equal(found[places], array[places])
    if order == "C":
        some = found.select(np.array([9, 2, 3]))
        np.testing.assert_array_equal(some[1:], array[[2, 3]])
        np.testing.assert_array_equal(found.with_channels()[5:7], array[5:7, ..., np.newaxis])


def endless_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


NO_FILES = {"socket": endless_socket, "pipe": os.mkfifo}
NO_FILES |= {"device": lambda path: path.symlink_to("/dev/zero")}
NO_FILES |= {"loop": lambda path: path.symlink_to(path)}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.csv", "folder/a.png", "folder"])
def test_what_is_no_file_is_refused_before_it_is_opened(kind, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    NO_FILES[kind](path)
    with one_line(UsageError, name):
        snfnp.load_dataset(name.partition("/")[0])


def test_a_folder_without_end_and_of_other_disks_is_refused(tmp_path, monkeypatch):
    for place in range(9):
        (tmp_path / f"{place}").mkdir()
    monkeypatch.setattr(pictures, "_MOST", 8)
    with one_line(UsageError, tmp_path, "more than 8 entries: give a folder of images"):
        snfnp.load_dataset(str(tmp_path))
    monkeypatch.setattr(pictures, "_MOST", 9)
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with one_line(UsageError, tmp_path, "has no images"):
        snfnp.load_dataset(str(tmp_path))


def archive(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)


def content_of(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(shape, dtype="<f8"):
    """A .npy file that says that it is larger than it is."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + b"\0" * 64


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def damaged_archive(path, method):
    archive(path, {"train.npy": content_of(ROWS)}, method)
    path.write_bytes(flipped(path.read_bytes(), 90))


def encrypted(path):
    archive(path, {"train.npy": content_of(ROWS)})
    content = path.read_bytes()  # bit 0 of the flags, in both headers
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content = flipped(content, content.index(mark) + offset)
    path.write_bytes(content)


DAMAGED = {
    "an array.npz": lambda path: path.write_bytes(content_of(ROWS)),
    "an archive.npy": lambda path: archive(path, {"train.npy": content_of(ROWS)}),
    "no array in.npz": lambda path: archive(path, {"train.npy": b"hello"}),
    "encrypted.npz": encrypted,
    "deflated.npz": lambda path: damaged_archive(path, zipfile.ZIP_DEFLATED),
    "lzma.npz": lambda path: damaged_archive(path, zipfile.ZIP_LZMA),
    "bzip2.npz": lambda path: damaged_archive(path, zipfile.ZIP_BZIP2),
    "huge in.npz": lambda path: archive(path, {"a.npy": header((1 << 40, 9))}),
    "negative in.npz": lambda path: archive(path, {"a.npy": header((-1, 9))}),
    "many names.npz": lambda path: archive(path, {f"{i}.npy": header((9,)) for i in range(999)}),
    "huge.npy": lambda path: path.write_bytes(header((1 << 40, 9))),
    "beyond numbers.npy": lambda path: path.write_bytes(header((1 << 62, 1 << 62))),
    "negative.npy": lambda path: path.write_bytes(header((-5, 2))),
    "zero-dimensional.npy": lambda path: np.save(path, np.float64(3)),
    "fields.npy": lambda path: np.save(path, np.zeros(9, "f8,f8")),
    "format 3.npy": lambda path: np.save(path, np.zeros(9, [("é", "f8")])),
    "long header.npy": lambda path: path.write_bytes(
        b"\x93NUMPY\x02\x00" + (10**6).to_bytes(4, "little") + b"(" * 10**6
    ),
    "odd header.npy": lambda path: path.write_bytes(
        flipped(content_of(ROWS), 20) + b"\0"  # in the header's text
    ),
    "two arrays.npy": lambda path: path.write_bytes(2 * content_of(ROWS)),
    "a byte more.npy": lambda path: path.write_bytes(content_of(ROWS) + b"\n"),
    "fewer rows.npy": lambda path: path.write_bytes(header((4, 1))),
    "many fields.npy": lambda path: np.save(
        path, np.zeros(3, [(f"x{k}", "f8") for k in range(999)])
    ),
    "binary.csv": lambda path: path.write_bytes(bytes(range(256))),
    "images.csv": lambda path: Image.fromarray(GREY[0]).save(path, "PNG"),
    "gif/a.png": lambda path: Image.fromarray(GREY[0]).save(path, "GIF"),
    "cut/a.png": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30)),
    "text/a.jpg": lambda path: path.write_text("no picture"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_or_mislabelled_file_is_one_short_line(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    DAMAGED[name](path)
    given = path if path.parent == tmp_path else path.parent
    with pytest.raises(UsageError) as caught:
        train.main([str(given), "--out", str(tmp_path / "run")])
    message = str(caught.value)
    assert str(given) in message and message.isprintable() and "_io" not in message
    assert len(message) - len(str(path)) < 250, message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_byte_is_one_line_or_harmless(seed, tmp_path):
    """No checksum covers the bytes: the image is read, or the error is one line."""
    rng = np.random.default_rng(seed)
    (tmp_path / "images").mkdir()
    np.savez_compressed(tmp_path / "a.npz", train=ROWS, test=ROWS)
    np.save(tmp_path / "a.npy", ROWS)
    Image.fromarray(GREY[0]).save(tmp_path / "images" / "a.png")
    Image.fromarray(GREY[1]).save(tmp_path / "images" / "b.jpg")
    files = ["a.npz", "a.npy", "images/a.png", "images/b.jpg"]
    contents = {name: (tmp_path / name).read_bytes() for name in files}
    for name in files * 25:
        content = flipped(contents[name], int(rng.integers(min(400, len(contents[name])))))
        (tmp_path / name).write_bytes(content)
        try:
            load_whole(str(tmp_path / name.partition("/")[0]))
        except UsageError as error:
            assert str(error).isprintable()
        (tmp_path / name).write_bytes(contents[name])


@pytest.mark.parametrize(
    "name, problem",
    [
        ("two arrays.npy", "(3,328 bytes follow the array that its header describes)"),
        ("fewer rows.npy", "(32 bytes follow the array that its header describes)"),
        ("many fields.npy", "(its header is too long for an array of numbers)"),
    ],
)
def test_what_is_no_single_array_is_said(name, problem, tmp_path):
    DAMAGED[name](tmp_path / name)
    with one_line(UsageError, name, problem):
        snfnp.load_dataset(str(tmp_path / name))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for name in ("train.npy", "train.npy", "test.npy"):
            file.writestr(name, content_of(ROWS))
    with one_line(UsageError, "a.npz has several arrays of one name: name each split once"):
        snfnp.load_dataset(str(tmp_path / "a.npz"))


def test_names_and_sizes_in_an_archive_are_checked_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez(path, train=ROWS, other=ROWS)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *a, **b: pytest.fail("it is read"))
    with one_line(UsageError, "has the arrays train, other: name them train, validation and test"):
        snfnp.load_dataset(str(path))
    np.savez(path, train=ROWS)
    monkeypatch.setattr(snfnp.data, "_memory", lambda: 1000)
    with one_line(UsageError, path, "its arrays take 3,328 bytes, and this machine has 1,000"):
        snfnp.load_dataset(str(path))


def test_escapes_and_newlines_of_a_name_are_shown(tmp_path):
    path = tmp_path / "a\x1b[31m\n\u202eb.npy"
    path.write_bytes(b"no array")
    with pytest.raises(UsageError) as caught:
        snfnp.load_dataset(str(path))
    assert str(caught.value).isprintable()
    np.save(path, ROWS)
    assert snfnp.load_dataset(str(path)).source.isprintable()


def picture(path, array=GREY[0], **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **how)


NAMES = [("Train", "VAL", "test"), ("training", "valid", "testing"), ("train", "dev", "Test")]


@pytest.mark.parametrize("names", NAMES)
def test_splits_are_found_in_capitals_and_by_their_other_names(names, tmp_path):
    for count, name in enumerate(names, start=2):
        for place in range(count):
            picture(tmp_path / name / f"{place}.png", GREY[10 * count + place])
    found = snfnp.load_dataset(str(tmp_path))
    assert [len(each) for each in (found.train, found.validation, found.test)] == [2, 3, 4]
    np.testing.assert_array_equal(found.validation[..., 0], GREY[30:33])
    (tmp_path / "validation").mkdir()
    with one_line(UsageError, "has two folders of validation images: leave one of them out"):
        snfnp.load_dataset(str(tmp_path))


@pytest.mark.parametrize("place", ["a.png", "more/a.png"])
def test_images_beside_splits_are_an_error(place, tmp_path):
    picture(tmp_path / "train" / "a.png")
    picture(tmp_path / place)
    with one_line(UsageError, "has images beside its train, such as", place, "move them into"):
        snfnp.load_dataset(str(tmp_path))


LEFT_OUT = "hidden folders, links to folders, and folders on other disks"


def test_a_folder_without_images_is_not_walked_to_its_end(tmp_path, monkeypatch):
    """A stranger's run may name any folder as its data."""
    monkeypatch.setattr(pictures, "_MOST_OTHERS", 20)
    for number in range(30):
        (tmp_path / f"{number:02}" / "below").mkdir(parents=True)
    with one_line(UsageError, tmp_path, "has no images (.png, .jpg, .jpeg) among its first 30 ent"):
        own_data(str(tmp_path))
    (tmp_path / "dev").mkdir()
    monkeypatch.setattr(os, "walk", lambda folder: pytest.fail("it was walked"))
    with one_line(UsageError, f"{tmp_path} has no folder train beside dev: add one"):
        own_data(str(tmp_path))


def test_images_in_hidden_folders_are_left_out_and_said(tmp_path):
    for place in range(9):
        picture(tmp_path / f"{place}.png", GREY[place])
    picture(tmp_path / ".thumbs" / "small" / "a.png", GREY[0, :2, :2])
    picture(tmp_path / ".b.png", GREY[0, :2, :2])
    said = []
    found = snfnp.load_dataset(str(tmp_path), report=said.append)
    assert said == [f"{tmp_path}: {LEFT_OUT} are left out"]
    assert len(found.train) + len(found.validation) + len(found.test) == 9


def test_linked_folders_are_left_out_and_said(tmp_path):
    for place in range(9):
        picture(tmp_path / "train" / f"{place}.png", GREY[place])
    (tmp_path / "train" / "again").symlink_to(tmp_path / "train")
    said = []
    assert len(snfnp.load_dataset(str(tmp_path), report=said.append).train) == 7
    assert said == [f"{tmp_path}: {LEFT_OUT} are left out"]


def test_what_is_left_out_of_a_folder_is_counted(tmp_path):
    for place in range(9):
        picture(tmp_path / f"{place}.png", GREY[place])
    for name in ("a.webp", "b.WEBP", "a.gif", "a.bmp", "a.tiff", "a.ppm", ".a.gif", "README"):
        picture(tmp_path / name, format="PPM")
    said = []
    assert len(snfnp.load_dataset(str(tmp_path), report=said.append).train) == 7
    kinds = "2 .webp, 1 without a suffix, 1 .bmp, 1 .gif, 1 .ppm, 1 .tiff"
    assert said == [f"{tmp_path}: other files are left out ({kinds})"]


def test_frames_and_profiles_that_are_left_out_are_said(tmp_path):
    frames = [Image.fromarray(image) for image in GREY[:3]]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / "b.jpg")
    said = []
    found = pictures.read_folder(tmp_path, said.append)["train"]
    np.testing.assert_array_equal(found[0, ..., 0], GREY[0])
    assert [line.partition(": ")[2] for line in said] == [
        "of animations the first frame is taken (1)",
        "CMYK images become RGB without their colour profiles (1)",
    ]


def test_other_data_that_do_not_exist_are_no_advice_about_the_runs_own(tmp_path):
    with one_line(UsageError, "mnits does not exist (did you mean mnist?): check the path"):
        load_whole("mnits")
    picture(tmp_path / "test" / "a.png")
    with one_line(UsageError, f"{tmp_path} has no folder train beside test: add one"):
        load_whole(str(tmp_path))


def test_a_path_is_taken_as_its_text_and_arrays_are_refused(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    assert snfnp.load_dataset(tmp_path / "rows.npy").name == "rows"
    for name in (ROWS, [1], None, 3):
        with one_line(UsageError, "load_dataset takes a name or a path", type(name).__name__):
            snfnp.load_dataset(name)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # NumPy's, of np.matrix
def test_a_matrix_is_refused():
    """For np.matrix, ** is a power of matrices."""
    with one_line(UsageError, "matrix instead of numbers; give an array of floats"):
        own_data(np.matrix(ROWS))


@pytest.mark.parametrize("mode", ["I;16", "RGB", "LA", "RGBA"])
def test_more_than_eight_bits_are_refused(mode, tmp_path):
    """Pillow writes no such colour images, and cuts the bits when it reads them."""
    channels = {"I;16": 0, "RGB": 2, "LA": 4, "RGBA": 6}[mode]  # in the words of PNG
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[channels]
    rows = b"".join(b"\0" + RNG.bytes(2 * samples * 6) for _ in range(4))
    path = tmp_path / "images" / "a.png"
    path.parent.mkdir()
    path.write_bytes(png(6, 4, 16, channels, rows))
    with one_line(UsageError, path, "its pixels have more than 8 bits"):
        snfnp.load_dataset(str(path.parent))


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_an_image_that_says_it_is_huge_is_one_line(side, tmp_path, recwarn):
    path = tmp_path / "images" / "a.png"
    path.parent.mkdir()
    path.write_bytes(png(side, side, 8, 0, b""))
    with one_line(UsageError, path, "decompression bomb"):
        snfnp.load_dataset(str(path.parent))
    assert not recwarn.list


def test_transparent_colours_of_a_palette_are_read_without_a_warning(tmp_path, recwarn):
    (tmp_path / "images").mkdir()
    image = Image.fromarray(GREY[0]).convert("P")
    image.save(tmp_path / "images" / "a.png", transparency=bytes(range(256)))
    assert load_whole(str(tmp_path / "images")).shape == (1, 4, 6, 3)
    assert not recwarn.list


def png(width, height, depth, kind, rows):
    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + start + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_data_say(orientation, tmp_path):
    """Orientation 6: the first row becomes the right-hand column."""
    inverse = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Image.Transpose
    smooth = np.add.outer(np.arange(16) * 9, np.arange(24) * 3).astype(np.uint8)
    shown = Image.fromarray(smooth)
    stored = shown if inverse is None else shown.transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "images").mkdir(exist_ok=True)
        stored.save(tmp_path / "images" / name, exif=exif, quality=95)
    picture(tmp_path / "images" / "c.png", smooth)
    found = load_whole(str(tmp_path / "images"))
    assert found.shape == (3, 16, 24, 1)
    assert np.abs(found[0].astype(int) - found[2]).max() < 8
