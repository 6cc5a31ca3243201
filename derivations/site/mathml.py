"""A Sphinx extension: formulas as MathML, which browsers lay out unaided."""

from __future__ import annotations

import re

import latex2mathml.converter
from docutils import nodes

# What the converter writes, and what browsers set as TeX does: a transpose is no operator, bars and
# slashes have no space around them, a sign has none after it, the name of a function has.
_MINUS, _NAMES = "&#x02212;", "log|det|max|min|exp|ln|sin|cos|tanh"
_AFTER = r"\(|\[|=|,|&#x02248;|&#x02192;|&#x0003D;|&#x00028;|&#x02190;|&#x0003E;|&#x0003C;"
_SPACE = '<mspace width="0.17em"></mspace>'
# After \big the converter knows no delimiter by its name.
_DELIMITERS = dict.fromkeys(("lvert", "rvert", "vert"), "|")
_DELIMITERS |= dict.fromkeys(("lVert", "rVert", "Vert"), "‖") | {"langle": "⟨", "rangle": "⟩"}
_BIG = re.compile(rf"(\\[bB]igg?[lr]?)\s*\\({'|'.join(_DELIMITERS)})\b")
_TYPESETTING = [
    ('<mo movablelimits="true">det</mo>', "<mi>det</mi>"),
    ("<mo>&#x022A4;</mo>", "<mi>&#x022A4;</mi>"),
    (r"<mo>(&#x0007C;|&#x02016;)</mo>", r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>'),
    (r'(<mo minsize="[^>]*)>([|‖])', r'\1 lspace="0" rspace="0">\2'),
    ("<mo>&#x0002F;</mo>", '<mo lspace="0" rspace="0">&#x0002F;</mo>'),
    (rf"(<mo[^>]*>(?:{_AFTER})</mo>)<mo>({_MINUS})</mo>", r'\1<mo form="prefix">\2</mo>'),
    (rf"(</(?!mo)\w+>)<mi>({_NAMES})</mi>", rf"\1{_SPACE}<mi>\2</mi>"),
    (rf"<mi>({_NAMES})</mi>(?=<m(?!o\b|space))", rf"<mi>\1</mi>{_SPACE}"),
]


def mathml(latex: str, display: str) -> str:
    """A formula as MathML. Upright words are text: the converter would space their letters."""
    latex = re.sub(r"\\mathrm\{([A-Za-z]+)\}", r"\\text{\1}", latex)
    latex = _BIG.sub(lambda m: m[1] + _DELIMITERS[m[2]], latex)
    found = latex2mathml.converter.convert(latex, display=display)
    for pattern, replacement in _TYPESETTING:
        found = re.sub(pattern, replacement, found)
    return found


# Where a displayed formula may go on in the next line, outside of all brackets: at a wide space,
# and before a relation, a sum's sign or the number of an equation.
_OPENING = {"{", "(", "[", r"\lvert", r"\lVert", r"\langle", r"\left", r"\begin", r"\lbrace"}
_CLOSING = {"}", ")", "]", r"\rvert", r"\rVert", r"\rangle", r"\right", r"\end", r"\rbrace"}
_RELATIONS = {"=", "+", "-", "<", ">", r"\approx", r"\le", r"\ge", r"\to", r"\ne", r"\propto"}
_SHORT = 8  # characters of LaTeX: the start of a formula that is not left alone at a line's end
_LONG = 40  # characters of LaTeX: a formula within a line that may have to go on in the next one
_SPACES = {r"\qquad", r"\quad"}
_TOKEN = re.compile(r"\\[bB]igg?[lr]?\s*(?:\\[A-Za-z]+|.)|\\[A-Za-z]+|\\.|\s+|.", flags=re.S)


def pieces(latex: str) -> list[tuple[str, bool]]:
    """The pieces of a displayed formula, and whether a wide space stands before each."""
    parts: list[list] = [["", False]]
    depth, before = 0, ""
    for token in _TOKEN.findall(latex):
        name = re.sub(r"^\\[bB]igg?[lr]?\s*", "", token)
        depth += (name in _OPENING) - (name in _CLOSING)
        text = parts[-1][0].strip()
        if depth == 0 and token in _SPACES:
            parts.append(["", True])
        else:
            sign = token in _RELATIONS and before not in {*_RELATIONS, "^", "_"}
            starts = parts[-1][1] and len(text) < _SHORT
            if depth == 0 and sign and text and not starts:
                parts.append(["", False])
            parts[-1][0] += token
        before = token if token.strip() else before
    return [(text.strip(), gap) for text, gap in parts if text.strip()]


def with_breaks(latex: str, display: str) -> str:
    """A formula as HTML: its pieces, with places for a line break between them."""
    html = ""
    for index, (piece, gap) in enumerate(pieces(latex)):
        found = mathml(piece, display)
        found = re.sub(r"(<math[^>]*><mrow>)<mo>", r'\1<mo form="infix">', found, count=bool(index))
        space = '<span class="gap"> </span>' if gap else "<wbr>"
        html += (space + found.replace("<math", '<math class="more"', 1)) if index else found
    return html


def _visit_inline(self, node):
    latex = node.astext()
    self.body.append((with_breaks if len(latex) > _LONG else mathml)(latex, "inline"))
    raise nodes.SkipNode


def _visit_block(self, node):
    self.body.append(f'<div class="formula">{with_breaks(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
