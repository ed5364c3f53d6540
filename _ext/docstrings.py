"""Docstrings are written to be read in an editor; on a page their max|sigma''| is set as a formula."""

import re

from sphinx.application import Sphinx

CURVATURE = re.compile(r"max ?\|(?:sigma''|σ″)\|")


def typeset(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    for i, line in enumerate(lines):
        line = CURVATURE.sub(lambda _: r":math:`\max|\sigma''|`\ ", line)
        lines[i] = line if "`" in line else line.replace("sigma''", "σ″").replace("sigma'", "σ′")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", typeset)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
