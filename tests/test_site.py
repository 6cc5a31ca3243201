"""The site of the derivations: code beside prose, links, formulas, and what checks it."""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import sources
from check_site import formula_problems, link_problems
from pages import (
    CODE,
    ROOT,
    equation_pages,
    formulas,
    lines_of,
    reading_order,
    source_of,
)

pytestmark = pytest.mark.slow

SITE = ROOT / "derivations" / "site"
RULE = "snfnp/rules/self_normalizing.py"

MODULE = '''"""A module."""


class Kind:
    """Eq. 3, and Eqs. 8-11, 15; derivations/04-dense.md."""

    @property
    def name(self):
        return 1

    def other(self):
        return 2
'''


@pytest.fixture
def module(tmp_path) -> Path:
    path = tmp_path / "module.py"
    path.write_text(MODULE, "utf-8")
    return path


def test_a_name_is_cut_out_with_its_decorators_and_nothing_of_its_neighbours(module):
    assert lines_of(module, "Kind.name") == (7, 9)
    assert source_of(module, "Kind.name") == "\n".join(MODULE.splitlines()[6:9])
    assert lines_of(module, "Kind") == (4, 12)


@pytest.mark.parametrize("name", ["Gone", "Kind.gone", "name", "Kind.name.deeper"])
def test_a_missing_name_is_not_found(module, name):
    assert lines_of(module, name) is None
    assert lines_of(module.with_name("gone.py"), name) is None


def plain(code: str) -> str:
    """The text of a block of HTML, without the line numbers."""
    code = re.sub(r'<a class="ln".*?</a>', "", code)
    text = re.sub(r"<[^>]*>", "", code)
    for name, sign in (
        ("lt", "<"),
        ("gt", ">"),
        ("quot", '"'),
        ("#39", "'"),
        ("amp", "&"),
    ):
        text = text.replace(f"&{name};", sign)
    return text


def shown():
    """The first and the last line of a method, and what the site has of it."""
    first, last = lines_of(ROOT / RULE, "SelfNormalizing.backward")
    return first, last, sources.code_html(RULE, first, last, top="../", ids="L")


def test_the_code_on_the_site_is_the_source_as_it_stands():
    first, last, code = shown()
    source = source_of(ROOT / RULE, "SelfNormalizing.backward").splitlines()
    assert plain(code).splitlines() == [line.removeprefix("    ") for line in source]
    numbers = [int(n) for n in re.findall(r'class="line" id="L(\d+)"', code)]
    assert numbers == list(range(first, last + 1))
    assert code.count("<span") == code.count("</span>")


def test_equations_and_pages_in_code_are_links():
    first, last, code = shown()
    assert (
        'href="../04-dense.html#eqs-17-19-and-20-the-reconstruction-error">20</a>'
        in code
    )
    assert 'href="../04-dense.html">04-dense.md</a>' in sources.code_html(
        RULE, top="../", ids=""
    )
    assert (
        20 in sources.citing_lines(RULE)
        and first < sources.citing_lines(RULE)[20][0] <= last
    )


def test_every_equation_of_the_index_has_a_place_on_the_site():
    text = "| 3 | what | [03](03-x.md#eq-3) | `code` | `test` |\n| 31 | later | later: x | | |\n"
    assert equation_pages(text) == {3: "03-x.md#eq-3"}
    assert (
        len(equation_pages((ROOT / "derivations/equations.md").read_text("utf-8")))
        >= 30
    )


CORE = [0, *range(2, 11), 13, 14, *range(16, 19), 22]


@pytest.mark.parametrize("number", CORE)
def test_a_core_page_ends_with_exercises_whose_answers_are_folded_and_run(number):
    page = next((ROOT / "derivations").glob(f"{number:02}-*.md")).read_text(
        encoding="utf-8"
    )
    _, *exercises = re.split(
        r"(?m)^\*\*\d+\.\*\* ", page.partition("\n## Exercises\n")[2]
    )
    assert len(exercises) >= 3
    for text in exercises:
        question, answer = text.rstrip().split("<details><summary>Answer</summary>\n\n")
        assert (
            "?" in question and "\n>>> " in answer and answer.endswith("\n</details>")
        )


def test_every_page_is_in_the_reading_order():
    """test_derivations.py has the titles, and what a page builds on."""
    index = (ROOT / "derivations" / "README.md").read_text("utf-8")
    order = [name for pages in reading_order(index).values() for name in pages]
    pages = (ROOT / "derivations").glob("[0-9]*.md")
    assert sorted(order) == sorted(page.name for page in pages)


def test_the_old_names_of_pages_lead_to_the_new_ones(tmp_path):
    conf = runpy.run_path(str(ROOT / "derivations/site/conf.py"))
    names = [page.stem for page in (ROOT / "derivations").glob("[0-9]*.md")]
    assert conf["FORMER_NUMBERS"].keys() <= {name[3:] for name in names}
    for name in names:
        (tmp_path / f"{name}.html").write_text("new", "utf-8")
    app = SimpleNamespace(outdir=tmp_path, builder=SimpleNamespace(format="html"))
    conf["old_names"](app, None)
    old = (tmp_path / "03-self-normalizing.html").read_text("utf-8")
    assert "location.replace('05-self-normalizing.html' + location.hash)" in old
    found = len(list(tmp_path.glob("*.html")))
    assert found == len(names) + len(conf["FORMER_NUMBERS"]), "a name is new and old"


def test_formulas_are_found_outside_of_code():
    display, inline, _ = formulas("$a$ and `$b$`\n\n$$c\nd$$\n\n```\n$e$\n```\n")
    assert (display, inline) == (["c\nd"], ["a"])


PAGE = (
    '<p id="here">$5</p><a href="#here">x</a><code>\\frac $x$</code>'
    '<math display="inline"><mi>x</mi></math>'
)


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="gone.html">x</a>', "gone.html: no such file"),
        ('<a href="#gone">x</a>', "#gone: no such place"),
        ('<a href="page.html#gone">x</a>', "page.html#gone: no such place"),
        ('<img src="gone.svg">', "gone.svg: no such file"),
        (
            '<script src="https://example.org/x.js"></script>',
            "loads https://example.org/x.js",
        ),
        (
            '<link rel="stylesheet" href="//example.org/x.css">',
            "loads //example.org/x.css",
        ),
        ('<math display="inline"><mi>x</mi></math>', "2 inline formulas of 1"),
        ('<div class="formula"></div>', "1 displayed formulas of 0"),
        ("<p>$x$</p>", "raw text: $x$"),
        ("<p>\\alpha</p>", "raw text: \\alpha"),
        ("<math><mi>\\alpha</mi></math>", "raw text: \\alpha"),
        ('<a href="https://example.org">x</a>', None),
    ],
)
def test_the_check_finds_what_is_wrong_with_a_page(tmp_path, html, problem):
    path = tmp_path / "page.html"
    path.write_text(PAGE + html, "utf-8")
    found = link_problems(tmp_path, path) + formula_problems(path, "a formula: $x$")
    assert problem in found if problem else found == []


def test_every_pointer_of_the_markdown_has_the_form_that_the_site_reads():
    """A file and a name in one code span: a space or a line break too many would go unseen."""
    for page in sorted((ROOT / "derivations").glob("*.md")):
        text = page.read_text("utf-8")
        loose = re.findall(r"`\s*(?:snfnp|scripts)/[\w/]+\.py\s*:\s*[\w.]+\s*`", text)
        assert len(loose) == len(CODE.findall(text)), page.name


@pytest.mark.docs
class TestWithSphinx:
    def build(self, tmp_path, builder="html", **pages):
        """A site of a few pages; returns the finished process and the folder."""
        folder = tmp_path / "pages"
        folder.mkdir()
        (folder / "README.md").write_text("# Start\n\n[04](04-dense.md)\n", "utf-8")
        for name, text in pages.items():
            (folder / f"{name.replace('_', '-')}.md").write_text(text, "utf-8")
        (folder / "site").mkdir()
        (folder / "site" / "api.md").write_text("# API\n", "utf-8")
        options = ["-W", "-q", "-b", builder, "-c", SITE]
        command = [sys.executable, "-m", "sphinx", *options, folder, tmp_path / "out"]
        return subprocess.run(command, capture_output=True, text=True), tmp_path / "out"

    def test_code_stands_behind_the_paragraph_that_points_at_it_and_equations_are_links(
        self, tmp_path
    ):
        pointer = f"`{RULE}: SelfNormalizing.backward`"
        text = f"# Page\n\n## One\n\nFirst {pointer} and $x^2$.\n\n## Two\n\nAgain {pointer}.\n"
        text += "\n## Three\n\nBy [it](#page)\nEq.\n20 and Eqs.\n10-11, 17; `Eq. 8` is code, "
        text += "[Eq. 9](#page) a link.\n\n`snfnp.threads` is a module, `snfnp.gone` is not.\n"
        done, out = self.build(tmp_path, **{"04-dense": text})
        assert done.returncode == 0, done.stderr
        page = (out / "04-dense.html").read_text("utf-8")
        assert re.search(
            r'<p class="reading">\d+ minutes, builds on <a [^>]*>03 Change', page
        )
        first, last = lines_of(ROOT / RULE, "SelfNormalizing.backward")
        assert page.count('<aside class="beside"') == 1
        assert (
            page.index("First")
            < page.index('<aside class="beside"')
            < page.index("Again")
        )
        assert f'id="code-1-L{first}"' in page and f'id="code-1-L{last}"' in page
        assert (
            f'id="code-1-L{first - 1}"' not in page
            and f'id="code-1-L{last + 1}"' not in page
        )
        assert page.count('href="#code-1"') == 2
        assert "<math" in page and "$x^2$" not in page
        assert (out / f"source/{RULE}.html").is_file()
        assert (out / "index.html").is_file()
        page = page.partition("<h2>Three")[2]
        found = re.findall(r'<a class="eq[^>]*href="([^"]*)">([^<]*)</a>', page)
        target = "04-dense.html#eqs-17-19-and-20-the-reconstruction-error"
        assert [text for _, text in found] == ["Eq.\n20", "10", "11", "17"]
        assert found[0][0] == target
        assert re.findall(r'href="([^"]*)"><code[^>]*>.*?>(snfnp[^<]*)<', page) == [
            ("source/snfnp/threads.py.html#L1", "snfnp.threads")
        ]

    def test_pointers_that_point_nowhere_fail_the_build(self, tmp_path):
        gone = [
            "snfnp/rules/gone.py: Rule",
            f"{RULE}: Rule.gone",
            "tests/test_site.py::gone",
        ]
        text = "# Page\n\n" + "\n\n".join(f"`{pointer}`" for pointer in gone)
        done, _ = self.build(tmp_path, builder="dummy", **{"04-dense": text})
        assert done.returncode != 0
        assert [f"`{pointer}` points nowhere" in done.stderr for pointer in gone] == [
            True
        ] * 3

    def test_docstrings_are_shown_as_they_are_written(self):
        from docstrings import restructured

        prose = ["|x| of *all* `a.b` and x_"]
        code = "    code *"
        points = ["* one", "  more"]
        expected = [
            "\\|x\\| of \\*all\\* ``a.b`` and x\\_",
            "",
            "::",
            "",
            f"    {code}",
            "",
            "",
        ]
        assert restructured([*prose, "", code, "", *points]) == [*expected, *points, ""]

    def test_a_formula_is_set_without_the_converters_spaces(self):
        from mathml import mathml

        found = mathml(r"\mathrm{d} \log p(-x^\top)", "inline")
        assert "<mtext>d</mtext>" in found and '<mo form="prefix">' in found
        assert "<mi>&#x022A4;</mi>" in found and "\\" not in found
        assert "<mo movablelimits" not in mathml(r"\log\lvert\det W\rvert", "inline")

    def test_a_formula_breaks_at_spaces_and_signs_outside_of_brackets(self):
        from mathml import pieces, with_breaks

        found = pieces(
            r"f(a - b) = \lvert a + b\rvert - c_{i+1}, \qquad x = -1 . \quad \text{(Eq. 9)}"
        )
        first = [
            ("f(a - b)", False),
            (r"= \lvert a + b\rvert", False),
            ("- c_{i+1},", False),
        ]
        assert found == [*first, ("x = -1 .", True), (r"\text{(Eq. 9)}", True)]
        assert pieces(r"\left( a = b \right)") == [(r"\left( a = b \right)", False)]
        html = with_breaks("a = b - c", "block")
        assert html.count("<math") == 3 and html.count('class="more"') == 2
        assert html.count("<wbr>") == 2 and html.count('form="infix"') == 2

    def test_formulas_are_searched_as_they_are_typed(self):
        from searching import spoken

        words = spoken(r"\lambda s > \frac{1}{8} \text{ or } \sigma").split()
        assert words == ["λ", "s", ">", "1/8", "or", "σ"]
