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


def _visit_inline(self, node):
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _visit_block(self, node):
    self.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
