"""The figures of the pages: each is drawn by a script, shown on a page, and has words beside it."""

import re
from xml.etree import ElementTree

import pytest
from drawings import FIGURES, diagrams
from drawings.style import save
from pages import DERIVATIONS, ROOT

FOLDER = DERIVATIONS / "figures"
MOVING = "plane-training"
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
PAGES = [ROOT / "README.md", ROOT / "snfnp/architecture.md", *sorted(DERIVATIONS.glob("*.md"))]


def test_the_folder_has_what_the_scripts_draw_and_no_other_vector_graphics():
    """But for those of reproduce.py, which tests/test_reproduce_page.py looks after."""
    found = {path.stem for path in FOLDER.glob("*.svg") if not path.stem.startswith("reproduced-")}
    assert found == set(FIGURES)


def test_every_figure_is_on_a_page():
    shown = set()
    for page in PAGES:
        for _, target in IMAGE.findall(page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
            shown.add((page.parent / target).resolve())
    assert shown == {path.resolve() for path in FOLDER.iterdir()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_figure_has_a_text_in_its_place_and_a_caption(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    for index, line in enumerate(lines):
        for words, target in IMAGE.findall(line):
            assert len(words) > 10, target
            assert lines[index + 2].startswith("*"), f"{target}: no caption"


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_and_has_no_background(name, tmp_path):
    path = save(FIGURES[name](), tmp_path / f"{name}.svg")
    root = ElementTree.parse(path).getroot()
    assert root.tag.endswith("svg")
    first = next(e for e in root.iter() if e.get("id") == "patch_1")
    assert "fill: none" in "".join(e.get("style", "") for e in first.iter())
    assert path.stat().st_size < (210_000 if name == MOVING else 150_000)
    assert "#000000" not in path.read_text(encoding="utf-8"), "black is not seen on a dark page"


def test_what_moves_does_so_with_the_same_strokes_and_ends_as_what_stands_still():
    """A browser moves a path only from one list of the same strokes to another."""
    root = ElementTree.parse(FOLDER / f"{MOVING}.svg").getroot()
    moving = [e for e in root.iter() if e.find("{*}animate") is not None]
    assert len(moving) == 3
    for path in moving:
        about = path.find("{*}animate")
        frames, times = (about.get(name).split(";") for name in ("values", "keyTimes"))
        assert frames[0] == frames[-1] == frames[-2] == path.get("d") != frames[1]
        assert len({re.sub(r"[\d.-]+", "", frame) for frame in frames}) == 1
        at = [float(time) for time in times]
        assert len(at) == len(frames) and (at[0], at[-1]) == (0, 1) and at == sorted(set(at))
        assert about.get("repeatCount").isdigit(), "it has to come to rest"


def test_the_picture_of_the_floors_is_up_to_date():
    """With what `FLOORS` of tests/test_architecture.py says now."""
    svg = (FOLDER / "floors.svg").read_text(encoding="utf-8")
    names = [name for floor in diagrams._floor_names() for name in floor]
    assert re.findall("<!-- (.*?) -->", svg) == [*names, "imports"]
    assert {"training", "rules", "ops"} <= set(names)
