"""Execute one notebook with papermill, and turn everything that can go wrong into one exception.

Papermill alone only warns at a misspelt parameter and then runs on the defaults, counts
``sys.exit(0)`` in a cell as success, saves its output in place, and lets a kernelspec of the user
stand in for this interpreter. The book and the batch both execute notebooks here instead.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
import papermill
from ipykernel.kernelspec import write_kernel_spec
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from rctaf.config import assigned_names


class NotebookError(RuntimeError):
    """A notebook could not be executed to its end; the message is one line saying where and why."""


def partial_path(dst: Path | str) -> Path:
    """Where :func:`execute_notebook` writes until it has succeeded, and leaves a failure to be read."""
    return Path(dst).with_suffix(".partial.ipynb")


def parameter_names(src: Path | str) -> list[str]:
    """The names assigned in the first code cell tagged ``parameters``; empty where there is none."""
    for cell in nbformat.read(src, as_version=4).cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            return assigned_names(cell.source)
    return []


def execute_notebook(
    src: Path | str,
    dst: Path | str,
    parameters: Mapping[str, Any] | None = None,
    cwd: Path | str | None = None,
) -> None:
    """Execute ``src`` with this interpreter and write the executed notebook to ``dst``.

    ``dst`` appears only when every cell ran; until then, and after a failure, the notebook with
    the failing cell is :func:`partial_path` of it. Not for several threads of one process.

    Args:
        src: the notebook.
        dst: the executed copy, replaced if it exists.
        parameters: values for the cell tagged ``parameters``, as JSON can hold them.
        cwd: directory the kernel starts in; by default that of ``src``.

    Raises:
        NotebookError: an unknown parameter, a value that JSON cannot hold, a failing cell, a cell
            that left by ``sys.exit`` (whatever its status), or a dead kernel.
    """
    src, dst = Path(src), Path(dst)
    parameters = dict(parameters or {})
    known = parameter_names(src)
    if unknown := sorted(set(parameters) - set(known)):
        raise NotebookError(f"{src}: unknown parameter {', '.join(unknown)}; it takes {', '.join(known) or 'none'}")
    for name, value in parameters.items():
        # papermill would pass a tuple, or an object of any other class, on as a string
        if not _json_can_hold(value):
            raise NotebookError(f"{src}: {name} = {value!r} is not a number, string, bool, None, list or dict")

    partial = partial_path(dst)
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    with _private_kernel() as config:
        try:
            papermill.execute_notebook(
                _verbatim(src),
                _verbatim(partial),
                parameters=parameters,
                kernel_name="python3",
                cwd=cwd or src.parent,
                progress_bar=False,
                start_timeout=180,
                config=config,
            )
        except PapermillExecutionError as error:
            raise NotebookError(f"{src}: {_stopped_at(partial)}: {error.ename}: {_first_line(error.evalue)}") from None
        except DeadKernelError:
            raise NotebookError(
                f"{src}: {_last_started(partial)}: the kernel died (killed, or out of memory)"
            ) from None
    if where := _stopped_at(partial):  # papermill forgives sys.exit(0)
        raise NotebookError(f"{src}: {where}: sys.exit before the end")
    os.replace(partial, dst)


def _verbatim(path: Path) -> str:
    """The path for papermill, which would fill in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _json_can_hold(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _first_line(text: str) -> str:
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).strip().splitlines()
    return lines[0] if lines else ""


def _code_cells(partial: Path) -> list[tuple[str, nbformat.NotebookNode]]:
    """The code cells with their names, such as ``code cell 3 (`model = ...`)``."""
    cells = [cell for cell in nbformat.read(partial, as_version=4).cells if cell.cell_type == "code"]
    return [(f"code cell {n} (`{_first_line(cell.source)[:60]}`)", cell) for n, cell in enumerate(cells, start=1)]


def _stopped_at(partial: Path) -> str:
    """The first code cell that failed or did not run; empty if all ran."""
    for name, cell in _code_cells(partial):
        failed = any(out.output_type == "error" for out in cell.outputs)
        if failed or (cell.source.strip() and cell.execution_count is None):
            return name
    return ""


def _last_started(partial: Path) -> str:
    """The cell in which the kernel died: nothing but papermill's clock says which that was."""
    started = [name for name, cell in _code_cells(partial) if cell.metadata.get("papermill", {}).get("start_time")]
    return started[-1] if started else "before the first code cell"


@contextmanager
def _private_kernel() -> Iterator[Config]:
    """Settings under which ``python3`` is this interpreter and nothing is shared with another kernel."""
    with tempfile.TemporaryDirectory(prefix="rctaf-") as folder:
        # a kernel is interrupted before it is shut down, and would call that an error; a cell's own errors are outputs
        write_kernel_spec(f"{folder}/kernels/python3", extra_arguments=["--log-level=CRITICAL"])
        config = Config()
        if sys.platform != "win32" and len(os.fsencode(folder)) < 80:  # the path of a socket ends at some 100 bytes
            config.KernelManager.transport = "ipc"  # files in this folder: no ports to collide on
            config.KernelManager.ip = f"{folder}/kernel"
        # JUPYTER_PATH comes before the user's own kernelspecs; IPYTHONDIR keeps their startup files out
        with mock.patch.dict(os.environ, JUPYTER_PATH=folder, IPYTHONDIR=f"{folder}/ipython"):
            yield config
