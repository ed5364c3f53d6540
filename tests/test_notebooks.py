"""Every way in which an execution can go wrong, on real kernels (one notebook each: a kernel takes about a second)."""

import os
import sys
from pathlib import Path

import nbformat
import pytest

from rctaf.notebooks import NotebookError, execute_notebook, parameter_names, partial_path


@pytest.fixture
def notebook(tmp_path: Path):
    def write(*cells: str, parameters: str = "") -> Path:
        book = nbformat.v4.new_notebook(
            metadata={"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        )
        if parameters:
            book.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
        book.cells += [nbformat.v4.new_code_cell(source) for source in cells]
        path = tmp_path / "page.ipynb"
        nbformat.write(book, path)
        return path

    return write


def outputs(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(out.get("text", "") for cell in cells for out in cell.get("outputs", []))


def test_runs_with_this_interpreter_parameters_and_working_directory(notebook, tmp_path, monkeypatch):
    hijack = tmp_path / "user" / "kernels" / "python3"
    hijack.mkdir(parents=True)
    (hijack / "kernel.json").write_text('{"argv": ["false"], "display_name": "stray", "language": "python"}')
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "user"))
    source = notebook(
        "import os, sys; print(sys.executable, os.getcwd(), alpha, orders, label)",
        parameters='alpha: float = 1.0  # sharpness\norders = [0]\nlabel = "a"',
    )
    target = tmp_path / "out" / "page.ipynb"
    execute_notebook(source, target, {"alpha": 14, "orders": [0, 2]}, cwd=tmp_path)
    assert outputs(target).split() == [sys.executable, str(tmp_path), "14", "[0,", "2]", "a"]
    assert not partial_path(target).exists()
    assert "rctaf-" not in os.environ.get("JUPYTER_PATH", "")


def test_parameter_names(notebook):
    assert parameter_names(notebook("z = 1")) == []
    assert parameter_names(notebook(parameters="a = 1\nb: int | None = None\nc = [\n  1,\n]")) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alhpa": 3}, "page.ipynb: unknown parameter alhpa; it takes alpha, beta"),
        ({"alpha": (1, 2)}, r"alpha = \(1, 2\) is not a number"),
        ({"alpha": Path("x")}, "alpha = .*Path.* is not a number"),
    ],
)
def test_refuses_parameters_before_anything_runs(notebook, tmp_path, parameters, message):
    source = notebook("raise SystemError", parameters="alpha = 1\nbeta = 2")
    with pytest.raises(NotebookError, match=message):
        execute_notebook(source, tmp_path / "out.ipynb", parameters)
    assert not partial_path(tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("1 / 0", "code cell 2 (`1 / 0`): ZeroDivisionError: division by zero"),
        ("# two\nraise ValueError('one\\ntwo')", "code cell 2 (`# two`): ValueError: one"),
        ("import sys; sys.exit(0)", "code cell 2 (`import sys; sys.exit(0)`): sys.exit before the end"),
        ("import sys; sys.exit(3)", "code cell 2 (`import sys; sys.exit(3)`): SystemExit: 3"),
        (
            "import os; os._exit(0)",
            "code cell 2 (`import os; os._exit(0)`): the kernel died (killed, or out of memory)",
        ),
    ],
)
def test_a_failure_is_one_line_and_keeps_the_red_cell(notebook, tmp_path, cell, message):
    target = tmp_path / "out.ipynb"
    target.write_text("an earlier success")
    source = notebook("print('before')", cell, "print('after')")
    with pytest.raises(NotebookError) as caught:
        execute_notebook(source, target)
    assert str(caught.value) == f"{source}: {message}"
    assert target.read_text() == "an earlier success"
    kept = outputs(partial_path(target))
    assert "before" in kept
    assert "after" not in kept


def test_a_long_folder_for_temporary_files_and_braces_in_a_path(notebook, tmp_path, monkeypatch) -> None:
    """A socket's path ends at some 100 bytes, and papermill fills in what stands in braces."""
    far = tmp_path / ("x" * 100)
    far.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(far))
    source = tmp_path / "{here}.ipynb"
    notebook("x = 1").rename(source)
    execute_notebook(source, tmp_path / "{there}.ipynb")
    assert (tmp_path / "{there}.ipynb").exists()
