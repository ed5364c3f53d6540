"""The original training recipes as data: one YAML file each, every number beside its source."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """All recipes, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


@cache
def read(name: str) -> dict[str, Any]:
    """A recipe: ``title``, ``repository``, ``notes`` and ``settings``, {setting: {value, source}}.

    A recipe that is ``based_on`` another holds only what differs from it; here it is filled in, and its notes
    follow those of the other.

    Raises:
        ValueError: there is no such recipe.
    """
    path = _FOLDER / f"{name}.yaml"
    if not path.exists():
        raise ValueError(f"recipe must be one of {', '.join(names())}, got {name!r}")
    recipe: dict[str, Any] = yaml.safe_load(path.read_text())
    base = recipe.pop("based_on", None)
    if base is not None:
        parent = read(base)
        notes = " ".join(recipe["notes"] for recipe in (parent, recipe) if "notes" in recipe)
        recipe = {**parent, **recipe, "notes": notes, "settings": {**parent["settings"], **recipe["settings"]}}
    return recipe


def settings(name: str) -> dict[str, Any]:
    """The settings of a recipe, as :class:`rctaf.config.RunConfig` takes them.

    >>> settings("trades")["weight_decay"], settings("trades-5e-4")["weight_decay"]
    (0.0002, 0.0005)
    """
    return {key: entry["value"] for key, entry in read(name)["settings"].items()}
