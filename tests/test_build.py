"""tools/assets.py and tools/build_book.py, the latter on a book of three pages in a folder of its own."""

import csv
import inspect
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
import yaml
from plotly.offline import get_plotlyjs_version
from synthetic import record_of

from rctaf import controls, costs, verdicts
from rctaf.config import RunConfig
from rctaf.records import load_all, table

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "vendor"


def test_every_page_of_the_contents_exists_once():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    assert len(pages) == len(set(pages))
    for page in pages:
        assert (ROOT / f"{page}.md").exists() != (ROOT / f"{page}.ipynb").exists(), page


def test_every_column_of_a_record_is_explained_in_the_reference():
    text = (ROOT / "book/reference.md").read_text()
    described = set(re.findall(r"`([a-z0-9_]+)(?:\.…)?`", text[text.index("(record-columns)=") :]))
    records = load_all()
    columns = {name.split(".")[0] for name in table(records).columns} - set(RunConfig.model_fields)
    assert {"clean_accuracy", "hessian_clean"} <= columns <= described
    history = {name for record in records for name in record.history}
    assert {name for name in history if not name.startswith("alpha_")} <= described


def test_every_rule_is_on_the_page_of_rules():
    documented = set(re.findall(r"autofunction:: rctaf\.(\w+\.\w+)", (ROOT / "book/rules.md").read_text()))
    for module in (verdicts, controls, costs):
        home = module.__name__.removeprefix("rctaf.")
        rules = {f"{home}.{name}" for name, f in vars(module).items() if is_rule(f, module)}
        assert rules <= documented, rules - documented


def is_rule(f: object, module: ModuleType) -> bool:
    """A public function that makes verdicts, and more than a list of what others make."""
    if not inspect.isfunction(f) or not f.__module__.startswith(module.__name__) or f.__name__.startswith("_"):
        return False
    makes = f.__annotations__["return"]
    return makes == "Verdict" or (makes == "list[Verdict]" and module is controls)


def test_lock_file_pins_everything_and_names_no_registry():
    wanted = json.loads((ROOT / "package.json").read_text())["dependencies"]
    text = (ROOT / "package-lock.json").read_text()
    packages = json.loads(text)["packages"]
    assert '"resolved"' not in text
    assert {name: packages[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert all("integrity" in package for name, package in packages.items() if name)


@pytest.fixture
def vendor() -> Path:
    if not VENDOR.exists():
        pytest.fail("vendor/ is missing: run `python tools/assets.py`", pytrace=False)
    return VENDOR


def test_plotly_in_the_pages_is_of_the_version_that_wrote_them(vendor):
    with open(vendor / "plotly.min.js") as script:
        assert f"v{get_plotlyjs_version()}\n" in script.read(200)


def test_assets_are_not_fetched_twice(vendor):
    def state():
        return {path: path.stat().st_mtime_ns for path in vendor.rglob("*")}

    subprocess.run([sys.executable, ROOT / "tools/assets.py"], check=True)
    before = state()
    subprocess.run([sys.executable, ROOT / "tools/assets.py"], check=True)
    assert state() == before


def notebook(path: Path, *cells: str) -> None:
    """A notebook that counts its own executions in a file beside it."""
    count = f"with open({path.stem + '.count'!r}, 'a') as handle: handle.write('x')"
    book = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell(f"# {path.stem}"),
            *(nbformat.v4.new_code_cell(cell) for cell in (count, *cells)),
        ],
        metadata={"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)


def test_a_book_from_failing_notebook_to_failing_warning(tmp_path, vendor):
    shutil.copytree(ROOT / "_ext", tmp_path / "_ext", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "book/assets", tmp_path / "book/assets")
    shutil.copy(ROOT / "book/references.bib", tmp_path / "book")
    shutil.copy(ROOT / "_config.yml", tmp_path)
    (tmp_path / "tools").mkdir()
    for name in ("tools/build_book.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "vendor").symlink_to(vendor)
    (tmp_path / "rctaf").mkdir()
    parts = [{"caption": "All", "chapters": [{"file": "notebooks/first"}, {"file": "notebooks/figures/second"}]}]
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump({"format": "jb-book", "root": "book/intro", "parts": parts}))
    intro = tmp_path / "book/intro.md"
    intro.write_text("# Intro\n\n{eq}`eq-7` says {glue}`../notebooks/first.ipynb::answer`, {eq}`own` more.\n")
    first, second = tmp_path / "notebooks/first.ipynb", tmp_path / "notebooks/figures/second.ipynb"
    notebook(first, "from myst_nb import glue; glue('answer', 42, display=False)")
    with first.open() as handle:
        book = nbformat.read(handle, as_version=4)
    equations = "```{math}\n:label: eq-7\nx \\tag{7}\n```\n\n```{math}\n:label: own\ny\n```"
    book.cells.append(nbformat.v4.new_markdown_cell(equations))
    nbformat.write(book, first)
    notebook(second, "1 / 0")
    html = tmp_path / "_build/html"

    def build() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, tmp_path / "tools/build_book.py"],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "RCTAF_RESULTS": str(tmp_path / "results")},
        )

    def executions() -> tuple[int, int]:
        return tuple(len(path.with_suffix(".count").read_text()) for path in (first, second))

    done = build()
    assert done.returncode == 1
    assert "1 of 2 notebooks failed" in done.stderr
    assert f"{second}: code cell 2 (`1 / 0`): ZeroDivisionError: division by zero" in done.stderr
    assert "to read: _build/src/notebooks/figures/second.partial.ipynb" in done.stderr
    assert "ZeroDivisionError" in (tmp_path / "_build/src/notebooks/figures/second.partial.ipynb").read_text()
    assert not html.exists()

    notebook(second, "1 / 1")
    done = build()
    assert done.returncode == 0, done.stderr
    assert executions() == (1, 2)
    page = (html / "book/intro.html").read_text()
    assert ">(7)</a> says" in page  # the paper's number, from its \tag
    assert ">(i)</a> more" in page  # ours
    assert "42" in page
    assert not list((tmp_path / "_build").rglob("*.partial.ipynb"))
    assert str(tmp_path) not in (html / "_sources/notebooks/first.ipynb").read_text()

    assert not list((html / "records").iterdir())

    made = (html / "index.html").stat().st_mtime_ns
    assert build().returncode == 0
    assert executions() == (1, 2)
    assert (html / "index.html").stat().st_mtime_ns == made

    # a new record is news to the figures only, and part of the book; of two, the committed one
    mine, kept = record_of(RunConfig(), clean=0.5), record_of(RunConfig(), clean=0.625)
    for kind, one in (("local", mine), ("runs", kept)):
        record = tmp_path / f"results/{kind}/{one.run_id}/run.json"
        record.parent.mkdir(parents=True)
        record.write_text(one.to_json())
    assert build().returncode == 0
    assert executions() == (1, 3)
    files = {path.name: path.read_text() for path in (html / "records").iterdir()}
    assert files.pop(f"{kept.run_id}.json") == kept.to_json()
    (row,) = csv.DictReader(files.pop("records.csv").splitlines())
    assert (row["id"], row["clean_accuracy"]) == (kept.run_id, "0.625")
    assert not files

    # a warning is an error, and the last good book stays
    made = (html / "index.html").stat().st_mtime_ns
    intro.write_text("# Intro\n\n[](nowhere.md) and $\\nothing$\n")
    done = build()
    assert done.returncode == 1
    assert "nowhere.md" in done.stderr
    assert "Undefined control sequence: \\nothing" in done.stderr
    assert executions() == (1, 3)
    assert (html / "index.html").stat().st_mtime_ns == made


def test_figures_are_stale_once_anything_in_the_store_is_new(tmp_path, monkeypatch):
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    key = runpy.run_path(str(ROOT / "tools/build_book.py"))["key"]

    def keys() -> tuple[str, str]:
        return key("notebooks/figures/summary.ipynb", ""), key("notebooks/explore.ipynb", "")

    figure, other = keys()
    for name in ("power.json", "benchmarks/time.json", "runs/0/run.json", "local/1/run.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        before, (figure, now) = figure, keys()
        assert figure != before, name
        assert now == other


def test_the_benchmark_of_the_pages_explains_itself_without_playwright():
    program = "import runpy, sys; sys.modules['playwright'] = None; sys.argv[1:] = ['--help']; "
    program += "sys.path.insert(0, 'benchmarks'); runpy.run_path('benchmarks/bench_pages.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--repeats" in done.stdout
