"""One torch thread per test process, denormals flushed as in every program of the project; a browser, and a store for
batches."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from synthetic import record_of
from torch import nn

from rctaf.config import Grid, RunConfig

torch.set_num_threads(1)
torch.set_flush_denormal(True)

# An experiment that trains nothing: it notes that it ran, waits where told, fails where told, writes a record.
EXPERIMENT = """
import json, os, time
from pathlib import Path
here = Path(os.environ["RCTAF_NOTEBOOK"]).parent
with open(here / "executions", "a") as handle:
    handle.write(f"{seed} {os.getpid()}\\n")
while seed >= 3 and (here / "hold").exists():
    time.sleep(0.05)
if seed == 2:
    raise ValueError("made to fail")
record = json.loads((here / f"seed-{seed}.json").read_text())
folder = Path(os.environ["RCTAF_RESULTS"], "local", record["id"])
folder.mkdir(parents=True, exist_ok=True)
(folder / "run.json").write_text(json.dumps(record))
"""


@pytest.fixture
def passes_alone() -> Callable[..., None]:
    """Run a test file in a process of its own, with more in its environment, for what holds for a whole process."""

    def passes(file: str, **environment: str) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", file]
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True,
            cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert " passed" in done.stdout

    return passes


@pytest.fixture
def random_images() -> tuple[torch.Tensor, torch.Tensor]:
    """40 images [1, 4, 4] in [0, 1] and their labels, of five classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(40, 1, 4, 4, generator=generator), torch.randint(0, 5, (40,), generator=generator)


@pytest.fixture
def perceptron() -> nn.Module:
    """For these images; with a batch norm and dropout, which differ between training and evaluation."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(), nn.Linear(8, 5))


@pytest.fixture(scope="session")
def browsers() -> Iterator[tuple[object, str]]:
    """Playwright's chromium, to be launched, and the path of the program; Playwright runs once in a process.

    The program is $RCTAF_CHROMIUM, or a chromium on the PATH, or Playwright's own; with CI=true a missing one fails.
    """
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    chosen = os.environ.get("RCTAF_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        path = chosen or playwright.chromium.executable_path
        if not Path(path).exists():
            missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            missing("no Chromium: install one, or set RCTAF_CHROMIUM to its path")
        yield playwright.chromium, path


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder with an empty store, the experiment above, and a grid of six seeds of it."""
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("RCTAF_NOTEBOOK", str(tmp_path / "experiment.ipynb"))
    monkeypatch.delenv("RCTAF_GPUS", raising=False)
    parameters = "\n".join(f"{k} = {v!r}" for k, v in RunConfig().model_dump(mode="json").items())
    import nbformat  # takes a second or more, which most tests need not wait for

    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells.append(nbformat.v4.new_code_cell(EXPERIMENT))
    spec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec}), tmp_path / "experiment.ipynb")
    (tmp_path / "six.yaml").write_text(
        "name: six\nscale: trains nothing\nblocks: [{base: {epochs: 2}, axes: {seed: [0, 1, 2, 3, 4, 5]}}]"
    )
    for config in Grid.load(tmp_path / "six.yaml").cells().values():
        (tmp_path / f"seed-{config.seed}.json").write_text(record_of(config).to_json())
    return tmp_path


@pytest.fixture
def grid(store):
    return store / "six.yaml"


@pytest.fixture
def cell(grid):
    """The first of the six experiments."""
    return next(iter(Grid.load(grid).cells().values()))
