"""What makes a process of this project start sooner."""

from __future__ import annotations

import sys


def import_nbformat() -> None:
    """Import nbformat (as papermill and Plotly do) without the 1.4 s in which a dependency builds a grammar of URIs.

    jsonschema, below nbformat, imports rfc3987_syntax for a format that no notebook uses, and does without where it is
    missing. It is missing during this import only.
    """
    name = "rfc3987_syntax"
    if "nbformat" in sys.modules or name in sys.modules:
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        import nbformat  # noqa: F401
    finally:
        del sys.modules[name]
