"""The pages on the Hessian diagonal and on scale: complete, proved, and executable with other parameters."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from rctaf.notebooks import execute_notebook

THEORY = Path(__file__).parent.parent / "notebooks" / "theory"
APPENDIX = {7, *range(9, 34)}


def cells(name: str, kind: str) -> list[str]:
    notebook = nbformat.read(THEORY / f"{name}.ipynb", as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def test_every_equation_of_the_appendix_is_stated_once_under_its_number():
    text = "\n".join(cells("hessian_diagonal", "markdown"))
    labels = re.findall(r":label: eq-(\d+)\n\\tag\{(\d+)\}", text)
    assert all(label == tag for label, tag in labels)
    assert sorted(int(label) for label, _ in labels) == sorted(APPENDIX)


def test_every_equation_of_the_appendix_is_checked():
    checked: set[int] = set()
    for source in cells("hessian_diagonal", "code"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("check", "refute"):
                assert isinstance(node.args[0], ast.Constant)
                checked |= {int(number) for number in re.findall(r"\d+", str(node.args[0].value))}
    # Eq. 21 and 19 are definitions, and stand in the list because what they define is compared with SymPy's derivative
    assert checked == APPENDIX


@pytest.mark.parametrize("name", ["hessian_diagonal", "scale"])
def test_every_theorem_is_followed_by_its_proof(name):
    text = "\n".join(cells(name, "markdown"))
    directives = re.findall(r"```\{prf:(theorem|proof)\}", text)
    assert directives.count("theorem") >= 4
    assert directives == ["theorem", "proof"] * directives.count("theorem")


@pytest.mark.parametrize("name", ["hessian_diagonal", "scale"])
def test_references_inside_a_page_resolve(name):
    own = "\n".join(cells("hessian_diagonal", "markdown") + cells("scale", "markdown"))
    labels = re.findall(r":label: (\S+)", own)
    assert len(labels) == len(set(labels))
    used = re.findall(r"\{(?:eq|prf:ref)\}`([^`]+)`", "\n".join(cells(name, "markdown")))
    assert set(used) <= set(labels)


def test_critical_reading_refers_to_theorems_that_exist():
    page = (THEORY.parent.parent / "book" / "critical_reading.md").read_text()
    labels = re.findall(r":label: (\S+)", "\n".join(cells("hessian_diagonal", "markdown") + cells("scale", "markdown")))
    used = set(re.findall(r"\{(?:eq|prf:ref)\}`([^`]+)`", page))
    assert len(used) >= 8
    assert used <= set(labels)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        (
            "hessian_diagonal",
            {"depth": 1, "widths": [3], "orders": [2], "alphas": [3.0], "trained_widths": [5, 5], "steps": 10},
        ),
        ("scale", {"orders": [0], "alphas": [0.5, 2.0, 6.0], "widths": [2], "steps": 3}),
    ],
)
def test_the_page_holds_with_other_parameters(name, parameters, tmp_path):
    execute_notebook(THEORY / f"{name}.ipynb", tmp_path / "out.ipynb", parameters)
