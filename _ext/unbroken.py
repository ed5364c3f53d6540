"""max|σ″| stays on one line wherever a page has it: a browser may break after a bar, and no style forbids that."""

import re

from sphinx.application import Sphinx

from rctaf.words import unbroken

PARTS = re.compile(r"<script.*?</script>|<[^>]*>|max\|σ″\|", re.DOTALL)


def keep_whole(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    """In the text of a page: neither in tags nor in the data of figures and widgets."""
    if "body" in context:
        context["body"] = PARTS.sub(lambda part: part[0] if part[0][0] == "<" else unbroken(part[0]), context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", keep_whole)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
