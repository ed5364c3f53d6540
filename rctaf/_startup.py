"""How a process of this project starts, and ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn


class Unreadable(ValueError):
    """A grid or a record that is asked for is not there, or is none; the message is one line saying which and why."""


def command(main: Callable[[], int]) -> NoReturn:
    """Run a command line. That its reader has seen enough (``| head``), or its user (Ctrl-C), is no error of it.

    A grid or a record that cannot be read is one, or a store that cannot be written; either is told in one line.
    """
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        status = 0
    except (Unreadable, OSError) as error:
        status = 1
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        status = 130  # 128 + SIGINT, as shells count
    sys.exit(status)


def settle_threads() -> None:
    """One CPU thread, unless ``OMP_NUM_THREADS`` says otherwise: results repeat bit by bit only at a fixed number.

    Called before PyTorch is imported, which reads the variable only then.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        os.environ["OMP_NUM_THREADS"] = "1"


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
