"""Docstrings are written to be read in an editor; on a page their max|sigma''| is set as a formula, and other
bars stay bars, of which reStructuredText would make substitutions."""

import re

from sphinx.application import Sphinx

CURVATURE = re.compile(r"max ?\|(?:sigma''|σ″)\|")


def typeset(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    for i, line in enumerate(lines):
        line = CURVATURE.sub(lambda _: r":math:`\max|\sigma''|`\ ", line)
        if "`" not in line:
            line = line.replace("sigma''", "σ″").replace("sigma'", "σ′").replace("|", r"\|")
        lines[i] = line


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", typeset)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
