"""environment.yml, pyproject.toml and constraints.txt say the same; nothing is unpinned."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml

import rctaf

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
)


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~@ ;\[]", requirement, maxsplit=1)[0]).lower()


def test_environment_installs_what_pyproject_says() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    python = next(entry.partition("=")[2] for entry in conda if entry.startswith("python="))
    low, high = re.findall(r"\d+\.(\d+)", PROJECT["requires-python"])
    assert int(low) <= int(python.split(".")[1]) < int(high)
    assert pip[0] == "-c constraints.txt"
    assert {f"{name}=={CONSTRAINTS[name]}" for name in ("torch", "torchvision")} == set(pip[1:-1])
    extras = set(re.fullmatch(r"-e \.\[(.*)\]", pip[-1]).group(1).split(","))
    # everything but the original AutoAttack, which is on GitHub only and never required
    assert extras == set(PROJECT["optional-dependencies"]) - {"autoattack"}


@pytest.mark.parametrize("page", ["README.md", "book/reproducing.md"])
def test_the_cpu_builds_are_the_pinned_ones(page: str) -> None:
    wanted = " ".join(f"{name}=={CONSTRAINTS[name]}" for name in ("torch", "torchvision"))
    assert f"pip install {wanted} --index-url " in (ROOT / page).read_text()


def test_makefile_installs_the_same_extras() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"][-1]["pip"][-1].removeprefix("-e ") in (ROOT / "Makefile").read_text()


def test_every_declared_package_is_pinned() -> None:
    pinned = {_name(name) for name in CONSTRAINTS}
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    assert {_name(requirement) for requirements in lists for requirement in requirements} - pinned == {"autoattack"}


@pytest.mark.parametrize("name", sorted(CONSTRAINTS))
def test_pin_is_what_is_installed(name: str) -> None:
    try:
        installed = distribution(name).version
    except PackageNotFoundError:
        pytest.skip(f"{name} is not needed on this platform")
    assert installed.split("+")[0] == CONSTRAINTS[name]


def test_what_is_not_imported_yet_can_be_completed() -> None:
    code = "import sys, rctaf; assert 'torch' not in sys.modules; print(*dir(rctaf))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert {*rctaf.__all__, "__version__"} <= {*done.stdout.split()}


def test_activations_need_numpy_and_torch_only() -> None:
    """The example of the README, where nothing else that the extras bring can be imported."""
    example = re.search(r"```python\n(from rctaf import .*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    others = {_name(requirement) for extra in PROJECT["optional-dependencies"].values() for requirement in extra}
    modules = {"pyyaml": "yaml", "scikit-learn": "sklearn"}
    blocked = {modules.get(name, name.replace("-", "_")) for name in others} - {"numpy", "torch"}
    assert {"scipy", "pandas", "pydantic", "yaml"} <= blocked
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({sorted(blocked)!r}))\n"
        "from torch import nn\nmodel = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())\n"
        f"{example}\nassert isinstance(model[1], RCTAF), model\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
