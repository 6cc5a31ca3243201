"""Pictures and curves: whole or not there, in their format, refused before the work; events."""

import json
import math
import sys
from pathlib import Path

import matplotlib.pyplot
import numpy as np
import pytest
from PIL import Image
from support.arrays import normal, pixels
from support.messages import one_line
from support.processes import files_limited
from support.runs import around, config_json

from snfnp.cli import main, sample, train
from snfnp.errors import SnfnpError
from snfnp.flow import Flow
from snfnp.training import curves, plots
from snfnp.training.curves import rows, save_curves
from snfnp.training.runs.load import load_run

pytestmark = pytest.mark.slow

MAGIC = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
MAGIC |= dict.fromkeys((".jpg", ".jpeg"), b"\xff\xd8\xff") | {".webp": b"RIFF"}
MAGIC |= dict.fromkeys((".tif", ".tiff"), b"II*\0")
ODD_NAMES = [
    "a$_$",
    "$x^$",
    "\udcff",
    "_hidden",
    "\u65e5\u672c",
    "a\x1b[31m\nb",
    "",
    "{x}_\\alpha",
]
RECORD = {
    "epoch": 1,
    "seconds": 2.0,
    "validation_nll_nats": 5.0,
    "reconstruction": 0.5,
    "lam": 1.0,
}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("suffix", (*plots.SUFFIXES, ".PNG"))
def test_a_picture_has_the_format_of_its_name(finished, tmp_path, suffix, capsys):
    out = tmp_path / f"a{suffix}"
    sample.main([str(finished), "--count", "4", "--out", str(out)])
    assert out.read_bytes().startswith(MAGIC[suffix.lower()])
    assert contents(tmp_path).keys() == {out.name}
    assert capsys.readouterr().out == f"{out}\n"


@pytest.mark.skipif(
    sys.platform == "win32", reason="has no limit for the size of a file"
)
def test_a_full_disk_leaves_the_old_picture(tmp_path):
    out = tmp_path / "a.png"
    out.write_bytes(b"the old one")
    for draw in (
        lambda: plots.save_samples(out, {"a": pixels(9, 5, 5, 1)}, ""),
        lambda: save_curves(out, [RECORD], ""),
    ):
        message = f"cannot write {out} (File too large)"
        with one_line(SnfnpError, message), files_limited(1000):
            draw()
        assert contents(tmp_path) == {"a.png": b"the old one"}


def grid_of(images, columns):
    """What a grid must be, the slow way."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    grid = np.full((rows * (height + 1), columns * (width + 1)), 255, np.uint8)
    for index, image in enumerate(images):
        y = index // columns * (height + 1)
        x = index % columns * (width + 1)
        grid[y : y + height, x : x + width] = image[..., 0]
    return grid[:-1, :-1]


def test_many_images_are_drawn_in_parts(finished, tmp_path, monkeypatch):
    """At most 256 at once; the array has every pixel of the samples as the likelihood draws."""
    likelihood = load_run(finished).likelihood
    drawn = likelihood.sample(1000, 3)
    counts = []
    note = lambda *of: counts.append(len(of[3][0]))  # noqa: E731, latents
    around(monkeypatch, Flow, "inverse", note)
    out = tmp_path / "many.npy"
    options = ["--count", "1000", "--seed", "3", "--out", str(out)]
    sample.main([str(finished), *options])
    assert sum(counts) == 1000 and max(counts) <= 256
    assert len(np.unique(drawn.reshape(1000, -1), axis=0)) == 1000
    assert np.array_equal(np.load(out), drawn)
    grid = plots.image_grid(drawn[:4])
    assert np.array_equal(grid[..., 0], grid_of(drawn[:4], 2))


@pytest.mark.parametrize("shape", [(8, 8, 2), (1, 8, 1), (8, 1, 3), (1, 1, 5)])
def test_images_of_any_channels_and_a_height_of_one_are_drawn(shape, tmp_path):
    shown = np.zeros((1, *shape), np.uint8)
    plots.save_samples(tmp_path / "a.png", {"a": shown}, "title")
    with Image.open(tmp_path / "a.png") as picture:
        assert np.asarray(picture.convert("L")).min() < 50


def test_the_default_picture_is_about_square_and_shows_every_pixel(tmp_path):
    for count in (1, 2, 64, 90_000):
        height, width = plots.grid_size(count, (28, 28, 1))
        assert height <= width <= height + 29 and (count != 64 or width == 8 * 29 - 1)
    out = tmp_path / "some.png"
    plots.save_samples(out, {"a": pixels(700, 28, 28, 1)}, "title")
    with Image.open(out) as picture:
        shown = np.asarray(picture.convert("L")).astype(int)
    assert (shown[-20:] < 255).any()  # no margin below
    # noise has an edge between nearly any two pixels: there are as many as the grid has
    row = shown[:, shown.shape[1] // 2]
    assert (np.diff(row) != 0).sum() > 0.95 * 27 * 28


def test_settings_of_the_users_own_change_no_picture_and_stay(tmp_path, monkeypatch):
    """Such as LaTeX for all text, which few machines have."""
    settings = {"text.usetex": True, "figure.dpi": 30, "axes.grid": True}
    train = "train rows.npy --depth 1 --bins 4 --backend numpy --epochs 1 --out run"
    drawn = []
    for name, more in (("usual", {}), ("others", settings)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        np.save("rows.npy", normal(60, 2))
        with matplotlib.rc_context(more):
            before = dict(matplotlib.rcParams)
            main(train.split())
            if more:
                main(["compare", "run", "--plot", "c.png"])
            assert dict(matplotlib.rcParams) == before
        names = ("run/training.gif", "run/samples.png")  # c.png shows seconds
        drawn.append([Path(name).read_bytes() for name in names])
    assert drawn[0] == drawn[1] and not matplotlib.pyplot.get_fignums()


def test_any_name_is_drawn_as_it_is_and_without_a_warning(tmp_path, recwarn):
    shown = dict.fromkeys(ODD_NAMES, pixels(4, 5, 5, 1))
    plots.save_samples(tmp_path / "a.svg", shown, "")
    figures = {key: [1.0, 2.0] for key in curves.COMPARED}
    curves.save_comparison(tmp_path / "d.svg", dict.fromkeys(ODD_NAMES, figures))
    for index, name in enumerate((ODD_NAMES[0], " ".join(ODD_NAMES))):
        save_curves(tmp_path / f"{index}.svg", [RECORD], name)
    assert len(list(tmp_path.iterdir())) == 4 and not recwarn.list


def test_samples_stand_beside_test_images_under_the_rule_and_the_best_epoch(
    tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(plots, "save_samples", lambda *given: drawn.append(given))
    np.save(tmp_path / "a.npy", pixels(40, 8, 8, 1))
    out = tmp_path / "run"
    options = f"--backend numpy --epochs 2 --batch-size 8 --out {out}".split()
    train.main([str(tmp_path / "a.npy"), *options])
    (_, panels, title) = drawn[0]
    assert [*panels] == ["learned inverse (one pass)", "exact inverse", "test images"]
    assert len(panels["test images"]) == config_json(out)["data"]["images"][2] == 4
    best = json.loads((out / "summary.json").read_text())["best_epoch"]
    rule = "self-normalizing gradient (mixture, λ = 1)"
    assert title == f"Samples, the same latents: a, fc, {rule}, epoch {best} of 2"


def labels(*records):
    return [curves.LABELS[figure] for figure in rows(list(records))]


def test_rows_are_drawn_where_there_is_something_to_draw():
    without = {**RECORD, "reconstruction": 0.0, "lam": 0.0}
    assert [label.partition(" (")[0] for label in labels(without)] == [
        "exact validation NLL"
    ]
    assert len(labels(RECORD, RECORD)) == 2  # λ stays where it is
    learns = labels(RECORD, {**RECORD, "lam": 2.0})
    assert len(learns) == 3 and learns[2].startswith("λ")
    controlled = {"constraint": 2.0, "constraint_min": 1.0, "constraint_max": 3.0}
    assert labels({**RECORD, **controlled})[2].startswith("constraint C")


def test_a_row_has_a_gap_where_a_record_lacks_it_and_a_band_where_one_has_one():
    without = {name: value for name, value in RECORD.items() if name != "lam"}
    banded = {**RECORD, "lam": 2.0, "lam_min": 1.5, "lam_max": 3.0}
    line, low, high = rows([RECORD, without, banded])["lam"]
    for drawn, ends in ((line, (1, 2)), (low, (1, 1.5)), (high, (1, 3))):
        assert (drawn[0], drawn[2]) == ends and math.isnan(drawn[1])


def test_the_picture_has_all_rows_once_and_whole_epochs(tmp_path, drawn):
    records = [RECORD, {**RECORD, "epoch": 2, "seconds": 3.0}]
    save_curves(tmp_path / "a.png", records, "title")
    axes = drawn[0].axes
    assert [axis.get_ylabel() for axis in axes] == labels(RECORD)
    assert axes[-1].get_xlabel() == "epoch (3.0 training seconds in all)"
    assert [list(axis.lines[0].get_xdata()) for axis in axes] == [[1, 2]] * len(axes)
    assert (axes[-1].get_xticks() % 1 == 0).all()


@pytest.mark.parametrize("last, scale", [(0.5, "linear"), (0.01, "log")])
def test_an_axis_is_logarithmic_where_values_differ_by_decades(
    tmp_path, drawn, last, scale
):
    """Within one it has hardly a label."""
    records = [{**RECORD, "reconstruction": value} for value in (1.0, last)]
    save_curves(tmp_path / "a.png", records, "title")
    assert [axis.get_yscale() for axis in drawn[0].axes] == ["linear", scale]


def test_the_row_of_rho_has_a_line_at_1_and_no_other_has_one(tmp_path, drawn):
    """Beyond it R is no approximate inverse."""
    save_curves(
        tmp_path / "a.png", [RECORD | {"layers": {"dense1": {"rho": 0.5}}}], "title"
    )
    for axis in drawn[0].axes:
        level = [
            line.get_ydata() for line in axis.lines if line.get_linestyle() == "--"
        ]
        assert [list(each) for each in level] == [
            [1, 1]
        ] * axis.get_ylabel().startswith("ρ")


def test_a_comparison_shows_all_but_the_first_evaluations(tmp_path, drawn):
    """A fifth of each run's, which are far above the others; not those of a run that overfits."""
    nll = [9e3, 250.0, 240.0, 200.0, 205.0, 253.0]
    line = {
        "epoch": [*range(1, 7)],
        "seconds": [*range(2, 8)],
        "validation_nll_nats": nll,
    }
    curves.save_comparison(tmp_path / "a.png", {"a": line, "b": line})
    for axis in drawn[0].axes:
        lowest, highest = axis.get_ylim()
        assert 190 < lowest < 200 and 253 < highest < 260


@pytest.mark.parametrize("length", [1, 130, 300])
def test_the_legend_of_a_comparison_leaves_its_panels_their_room(
    tmp_path, drawn, length
):
    """It is below them, so that long names cover no curve."""
    line = {key: [1.0, 2.0, 3.0] for key in curves.COMPARED}
    lines = {name * length: line for name in "abc"}
    curves.save_comparison(tmp_path / "a.png", lines)
    (figure,) = drawn
    figure.draw_without_rendering()
    panels = [axis.get_window_extent() for axis in figure.axes]
    (legend,) = figure.legends
    frame = legend.get_window_extent()
    assert all(panel.width > 0.4 * figure.bbox.width for panel in panels)
    assert frame.y1 < min(panel.y0 for panel in panels)
    assert 0 <= frame.x0 < frame.x1 <= figure.bbox.width
