"""Data that change, never end, are damaged or mislabelled: each is one line that names the file."""

import io
import os
import socket
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from support.data_files import COLOUR, GREY, ROWS, image_bytes, picture
from support.messages import one_line

import snfnp
from snfnp.cli import train
from snfnp.data import load_whole
from snfnp.errors import UsageError


def endless_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


NO_FILES = {
    "socket": endless_socket,
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.csv", "folder/a.png", "folder"])
def test_what_is_no_file_is_refused_before_it_is_opened(
    kind, name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    NO_FILES[kind](path)
    with one_line(UsageError, name):
        snfnp.load_dataset(name.partition("/")[0])


def archive(*members, method=zipfile.ZIP_DEFLATED):
    """The bytes of an archive of these (name, content)."""
    with (
        warnings.catch_warnings(action="ignore"),
        zipfile.ZipFile(buffer := io.BytesIO(), "w", method) as file,
    ):
        for name, content in members:
            file.writestr(name, content)  # with a warning if it is there
    return buffer.getvalue()


def written(write, *content, **options):
    """The bytes that a function writes to a file."""
    write(buffer := io.BytesIO(), *content, **options)
    return buffer.getvalue()


def header(shape):
    """A .npy file that says that it is larger than it is."""
    fields = {"descr": "<f8", "fortran_order": False, "shape": shape}
    return written(np.lib.format.write_array_header_1_0, fields) + b"\0" * 64


def flipped(content, index):
    return content[:index] + bytes([content[index] ^ 0xFF]) + content[index + 1 :]


def encrypted():
    content = archive(("train.npy", CONTENT))  # bit 0 of the flags, in both headers
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content = flipped(content, content.index(mark) + offset)
    return content


def with_value(value):
    rows = ROWS.copy()
    rows[7, 1] = value
    return rows


def png(width, height, depth, kind, rows):
    def chunk(name, content):
        check = zlib.crc32(name + content)
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)
        )

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + start + data + chunk(b"IEND", b"")


def deep(channels):
    """A PNG image of 16 bits; channels: the mode, in the words of PNG.

    Pillow writes no such colour images, and cuts the bits when it reads them.
    """
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[channels]
    rows = b"".join(b"\0" + bytes(range(2 * samples * 6)) for _ in range(4))
    return png(6, 4, 16, channels, rows)


CONTENT = written(np.save, ROWS)
LONG = b"\x93NUMPY\x02\x00" + (10**6).to_bytes(4, "little") + b"(" * 10**6
PICKLED = (
    "cannot be read (it is no array of numbers, and Python objects are never loaded)"
)
READ = "cannot be read ("
# {file: (its bytes, text or array, or a function that writes it; what is said)}
TOO_LONG = "(its header is too long for an array of numbers)"
MORE = "(more bytes follow than its header describes)"
NO_ROWS = "has no rows of numbers: check the file"
NO_TEXT = "it is not UTF-8 text: save it as UTF-8"
NO_IMAGE = "it is not a PNG or JPEG image"
TWICE = [("train.npy", CONTENT), ("train.npy", CONTENT), ("test.npy", CONTENT)]
MANY = [(f"{index}.npy", header((9,))) for index in range(999)]
FILES = {
    "nan.npy": (with_value(np.nan), "nan in row 7, column 1 (from 0); leave such rows"),
    "a row.npy": (ROWS[:1], "of the samples of "),
    "constant.npy": (
        ROWS * (1, 0),
        "column 1 (from 0) has the standard deviation 0: le",
    ),
    "large.npy": (
        ROWS * 1e300,
        "column 0 (from 0) has the standard deviation inf, and",
    ),
    "text.npy": (
        ROWS.astype(str),
        "instead of numbers; give a NumPy array of uint8, (",
    ),
    "an axis.npy": (ROWS[:, 0], "float64 of shape (200,) is not (N, H, W, C); give"),
    "pickled.npy": (ROWS.astype(object), PICKLED),
    "empty.npy": (b"", READ),
    "cut.npy": (CONTENT[:-40], READ),
    "huge.npy": (header((1 << 40, 9)), READ),
    "beyond numbers.npy": (header((1 << 62, 1 << 62)), READ),
    "negative.npy": (header((-5, 2)), READ),
    "format 3.npy": (np.zeros(9, [("é", "f8")]), "instead of numbers"),
    "long header.npy": (LONG, TOO_LONG),
    "odd header.npy": (flipped(CONTENT, 20) + b"\0", READ),  # in the header's text
    "two arrays.npy": (2 * CONTENT, MORE),
    "fewer rows.npy": (header((4, 1)), MORE),
    "an archive.npy": (archive(("train.npy", CONTENT)), READ),
    "an array.npz": (CONTENT, "cannot be read (File is not a zip file)"),
    "pickled.npz": (written(np.savez, ROWS.astype(object)), PICKLED),
    "no arrays.npz": (
        written(np.savez),
        "has the arrays none: name them train, valida",
    ),
    "other names.npz": (
        written(np.savez, train=ROWS, b=ROWS),
        "has the arrays train, b:",
    ),
    "twice.npz": (
        archive(*TWICE),
        "has several arrays of one name: name each split once",
    ),
    "no array in.npz": (archive(("train.npy", b"hello")), "train"),
    "encrypted.npz": (encrypted(), READ),
    "huge in.npz": (archive(("a.npy", header((1 << 40, 9)))), READ),
    "negative in.npz": (archive(("a.npy", header((-1, 9)))), READ),
    "many names.npz": (archive(*MANY), "has the arrays 0, 1, 2"),
    "infinite.csv": ("1,2\n3,-inf\n", "has '-inf': fill it in, or leave such rows out"),
    "a word.csv": (
        "a,b\n1,2\n3,x\n",
        "csv, line 3, column 'b' has 'x', which is not a",
    ),
    "short.csv": ("1,2\n3\n4\n5\n6\n", "csv, line 2: the number of cells is 1"),
    "names.csv": ("a,b\n", NO_ROWS),
    "empty.csv": ("", NO_ROWS),
    "binary.csv": (bytes(range(256)), NO_TEXT),
    "image.csv": (image_bytes(GREY[0]), NO_TEXT),
    "plain.csv.gz": ("a,b\n1,2\n", "cannot be read (Not a gzipped file"),
    "sheet.xls": (
        "1 2",
        "give a .npy, .npz, .csv, .tsv or .txt file, or a folder of im",
    ),
    "folder/notes.md": (
        "no picture",
        "has no images (.png, .jpg, .jpeg): check the path",
    ),
    "gif/a.png": (image_bytes(GREY[0], "GIF"), NO_IMAGE),
    "cut/a.png": (b"\x89PNG\r\n\x1a\n" + bytes(30), NO_IMAGE),
    "text/a.jpg": ("no picture", NO_IMAGE),
    "sizes/a.png": (image_bytes(COLOUR[:3]), "b.png is 6 x 4, and "),
    "large/a.png": (png(10_000, 10_000, 8, 0, b""), "decompression bomb"),
    "huge/a.png": (png(60_000, 60_000, 8, 0, b""), "decompression bomb"),
}
DEEP = "its pixels have more than 8 bits"
FILES |= {
    f"{channels} of 16 bits/a.png": (deep(channels), DEEP) for channels in (0, 2, 4, 6)
}
for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
    damaged = flipped(archive(("train.npy", CONTENT), method=method), 90)
    FILES[f"method {method}.npz"] = (damaged, READ)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_fits_nothing_is_one_short_line_and_leaves_nothing(
    name, tmp_path, recwarn
):
    content, problem = FILES[name]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if name.startswith("sizes"):
        picture(path.with_name("b.png"), GREY[0])
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(
        content if isinstance(content, bytes) else written(np.save, content)
    )
    data = path if path.parent == tmp_path else path.parent
    with one_line(UsageError, data.stem, problem) as caught:
        train.main([str(data), "--out", str(tmp_path / "run")])
    message = str(caught.value)
    assert message.isprintable() and "_io" not in message
    assert len(message) - len(str(path)) < 250, message
    assert not (tmp_path / "run").exists() and not recwarn.list


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
        content = flipped(
            contents[name], int(rng.integers(min(400, len(contents[name]))))
        )
        (tmp_path / name).write_bytes(content)
        try:
            load_whole(str(tmp_path / name.partition("/")[0]))
        except UsageError as error:
            assert str(error).isprintable()
        (tmp_path / name).write_bytes(contents[name])


def test_names_and_sizes_in_an_archive_are_checked_before_it_is_read(
    tmp_path, monkeypatch
):
    path = tmp_path / "a.npz"
    np.savez(path, train=ROWS, other=ROWS)
    monkeypatch.setattr(
        np.lib.format, "read_array", lambda *a, **b: pytest.fail("it is read")
    )
    with one_line(UsageError, "has the arrays train, other"):
        snfnp.load_dataset(path)
    np.savez(path, train=ROWS)
    monkeypatch.setattr(snfnp.data, "_memory", lambda: 1000)
    with one_line(
        UsageError, path, "its arrays take 3,328 bytes, and the memory has 1,000"
    ):
        snfnp.load_dataset(path)


def test_escapes_and_newlines_of_a_name_are_shown(tmp_path):
    path = tmp_path / "a\x1b[31m\n\u202eb.npy"
    path.write_bytes(b"no array")
    with pytest.raises(UsageError) as caught:
        snfnp.load_dataset(str(path))
    assert str(caught.value).isprintable()
    np.save(path, ROWS)
    assert snfnp.load_dataset(str(path)).source.isprintable()


def test_other_data_that_do_not_exist_are_no_advice_about_the_runs_own(tmp_path):
    with one_line(
        UsageError,
        "mnits does not exist (did you mean mnist?): check it, or give the path",
    ):
        load_whole("mnits")
    picture(tmp_path / "test" / "a.png", GREY[0])
    with one_line(UsageError, f"{tmp_path} has no folder train beside test: add one"):
        load_whole(str(tmp_path))


def test_a_path_is_taken_as_its_text_and_arrays_are_refused(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    assert snfnp.load_dataset(tmp_path / "rows.npy").name == "rows"
    for name in (ROWS, [1], None, 3):
        with one_line(
            UsageError, "load_dataset takes a name or a path", type(name).__name__
        ):
            snfnp.load_dataset(name)
