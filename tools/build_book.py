"""Execute every notebook of the book, then build the book from the executed copies into _build/html.

    python tools/build_book.py [-j JOBS]

A notebook is executed again only when something it depends on has changed (:func:`key`), and the
pages are built again only when anything at all has (:func:`digest`). In between there is no
half-way: an incremental build would hide the warnings of unchanged pages and keep old numbers on
pages that show another notebook's results.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import requires, version
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import nbformat
import yaml
from packaging.requirements import Requirement
from tqdm import tqdm

from rctaf.notebooks import NotebookError, execute_notebook, partial_path
from rctaf.records import load_all, results_dir, to_csv, write_text

ROOT = Path(__file__).resolve().parent.parent
STAGE = ROOT / "_build/src"  # what Sphinx reads
HTML = ROOT / "_build/html"  # complete whenever it exists
EXTRAS = ("experiments", "notebooks", "batch", "book")  # what `make book` installs
SEEN = HTML / ".built-from"  # the digest that it was built from


def pages() -> list[str]:
    """The files of _toc.yml, without suffix."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def notebooks() -> list[str]:
    """The notebooks among the pages, such as ``notebooks/explore.ipynb``."""
    return [f"{page}.ipynb" for page in pages() if page.startswith("notebooks/")]


def sha256(paths: Iterable[Path], *more: str) -> str:
    total = hashlib.sha256("\n".join(more).encode())
    for path in sorted(paths):
        total.update(f"\0{path}\0".encode() + path.read_bytes())
    return total.hexdigest()


def environment() -> str:
    """Python, the pins, and the version of every package that the book is made with: not those that only tests need."""
    asked = [Requirement(line) for line in requires("rctaf") or []]
    used = {r.name for r in asked if r.marker is None or any(r.marker.evaluate({"extra": name}) for name in EXTRAS)}
    lines = [f"{name} {version(name)}" for name in sorted(used)]
    return "\n".join([f"python {sys.version}", (ROOT / "constraints.txt").read_text(), *lines])


def key(notebook: str, environment: str) -> str:
    """Everything that the outputs of a notebook depend on; the figures also read grids and all that is in the store."""
    sources = [ROOT / notebook, *(p for p in (ROOT / "rctaf").rglob("*") if p.suffix in {".c", ".js", ".py", ".yaml"})]
    if notebook.startswith("notebooks/figures/"):
        sources += [*(ROOT / "grids").rglob("*.yaml"), *results_dir().glob("*/*/run.json")]
        sources += [*results_dir().glob("*.json"), *results_dir().glob("benchmarks/**/*.json")]
    return sha256(sources, environment)


def execute(notebook: str, key: str) -> None:
    """Execute into the stage; the key beside the result says what it was made from."""
    done = STAGE / notebook
    done.with_suffix(".key").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as store:
        # the page of one experiment makes the whole of it, whatever an earlier build left behind
        fresh_store = {"RCTAF_RESULTS": store} if notebook.startswith("notebooks/experiments/") else {}
        with mock.patch.dict(os.environ, fresh_store):
            execute_notebook(ROOT / notebook, done)
    book = nbformat.read(done, as_version=4)
    for part in (book, *book.cells):
        part.metadata.pop("papermill", None)  # this machine's paths and clock are nobody's business
    nbformat.write(book, done)
    done.with_suffix(".key").write_text(key)


def execute_all(names: list[str], jobs: int) -> dict[str, str]:
    """Execute what is stale, several at a time; returns what failed, and why."""
    installed = environment()
    keys = {name: key(name, installed) for name in names}
    stale = [name for name in names if not fresh(name, keys[name])]
    failed: dict[str, str] = {}
    if not stale:
        return failed
    with (
        ProcessPoolExecutor(min(jobs, len(stale)), mp_context=get_context("spawn")) as pool,
        tqdm(total=len(names), initial=len(names) - len(stale), unit="notebook", desc="notebooks") as bar,
    ):
        running = {pool.submit(execute, name, keys[name]): name for name in stale}
        for future in as_completed(running):
            try:
                future.result()
            except NotebookError as error:
                failed[running[future]] = str(error)
            bar.set_postfix_str(running[future].removeprefix("notebooks/"))
            bar.update()
    return failed


def fresh(name: str, key: str) -> bool:
    done = STAGE / name
    stored = done.with_suffix(".key")
    return done.exists() and stored.exists() and stored.read_text() == key


def stage() -> None:
    """Copy beside the executed notebooks everything else the book is made of, and drop what it no longer is."""
    wanted = set(notebooks()) | {name.replace(".ipynb", ".key") for name in notebooks()} | {"_config.yml", "_toc.yml"}
    for folder in ("book", "_ext", "vendor"):
        for source in (ROOT / folder).rglob("*"):
            if source.is_file() and "__pycache__" not in source.parts:
                name = source.relative_to(ROOT).as_posix()
                wanted.add(name)
                (STAGE / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, STAGE / name)
    shutil.copy2(ROOT / "_toc.yml", STAGE)
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["execute"]["execute_notebooks"] = "off"  # done already
    (STAGE / "_config.yml").write_text(yaml.safe_dump(config))
    for path in staged():
        if path.relative_to(STAGE).as_posix() not in wanted:
            path.unlink()


def staged() -> Iterator[Path]:
    """The files of the stage, without what Sphinx makes of them."""
    return (p for p in STAGE.rglob("*") if p.is_file() and p.relative_to(STAGE).parts[0] != "_build")


def digest() -> str:
    """Everything that the pages are made of: what is staged, and the package, whose docstrings are on some."""
    return sha256([*staged(), *(ROOT / "rctaf").rglob("*.py")], environment())


def built(now: str) -> bool:
    """Whether _build/html is what this digest gives, and nobody has built over it since."""
    return SEEN.exists() and SEEN.read_text() == f"{now} {search_index_time()}"


def search_index_time() -> int:
    index = HTML / "searchindex.js"  # every Sphinx build writes it last
    return index.stat().st_mtime_ns if index.exists() else 0


def build() -> bool:
    """Run Jupyter Book on the stage, warnings being errors; True if _build/html is now complete."""
    output = STAGE / "_build"
    shutil.rmtree(output, ignore_errors=True)
    jupyter_book = Path(sysconfig.get_path("scripts")) / "jupyter-book"
    command = [str(jupyter_book), "build", str(STAGE), "--all", "--quiet", "--warningiserror", "--keep-going"]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        return False
    copy_records(output / "html/records")
    shutil.rmtree(HTML, ignore_errors=True)
    os.rename(output / "html", HTML)
    return True


def copy_records(folder: Path) -> None:
    """Put the record of every run into the book, as ``ID.json``: what the points of its figures link to.

    The committed ones are in ``records.csv`` too, a row each, which the page of records offers.
    """
    folder.mkdir()
    for kind in ("local", "runs"):  # where a run has two, the committed one, as everywhere
        for path in results_dir().glob(f"{kind}/*/run.json"):
            shutil.copyfile(path, folder / f"{path.parent.name}.json")
    if committed := [record for record in load_all() if record.kept]:
        write_text(folder / "records.csv", to_csv(committed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    two = min(2, os.cpu_count() or 1)
    parser.add_argument(
        "-j", "--jobs", type=int, default=two, help="notebooks executed at a time (default %(default)s)"
    )
    jobs = max(1, parser.parse_args().jobs)
    if not (ROOT / "vendor").exists():
        print("vendor/ is missing: run `python tools/assets.py` first (`make book` does)", file=sys.stderr)
        return 1

    os.environ["OMP_NUM_THREADS"] = "1"  # one thread each: `jobs` is the number of cores in use
    failed = execute_all(notebooks(), jobs)
    if failed:
        print(f"\nThe book was not built: {len(failed)} of {len(notebooks())} notebooks failed.", file=sys.stderr)
        for name, why in failed.items():
            print(f"  {why}\n    to read: {partial_path(STAGE / name).relative_to(ROOT)}", file=sys.stderr)
        return 1

    stage()
    now = digest()
    if not built(now):
        print("Building the pages", flush=True)
        if not build():
            print("\nThe book was not built: see the warnings above; each is an error.", file=sys.stderr)
            return 1
        SEEN.write_text(f"{now} {search_index_time()}")
    print(f"The book: {HTML / 'index.html'}  (opens from there as it is)")
    print(f"To serve: python -m http.server -d {HTML.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
