r"""Equations of the paper keep the paper's numbers.

A labelled equation with ``\tag{7}`` is number 7 in the book: beside the equation and in every
``{eq}`` that refers to it, on whatever page. Labelled equations of our own carry no tag and count
i, ii, iii on each page, so that no reader takes one for the paper's.
"""

import re

from docutils import nodes
from sphinx.application import Sphinx

TAG = re.compile(r"\s*\\tag\{([^}]*)\}")


def roman(n: int) -> str:
    digits = [(10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i")]
    text = ""
    for value, digit in digits:
        text += digit * (n // value)
        n %= value
    return text


def number_equations(app: Sphinx, doctree: nodes.document) -> None:
    equations = app.env.get_domain("math").equations  # label -> (page, number)
    own = 0
    for block in doctree.findall(nodes.math_block):
        label = block.get("label")
        if not label:
            continue
        tag = TAG.search(block.astext())
        if tag:
            number = tag[1]
            block.children = [nodes.Text(TAG.sub("", block.astext()))]  # else it would be numbered twice
        else:
            own += 1
            number = roman(own)
        block["number"] = number
        equations[label] = (app.env.docname, number)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", number_equations)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
