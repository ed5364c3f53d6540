"""The one definition of an experiment.

Papermill parameters, YAML grids, the command line and the id of a run all come from
:class:`RunConfig`; the first cell of the experiment's notebook repeats its defaults, and a test compares them.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import itertools
import json
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rctaf import recipes
from rctaf._startup import Unreadable
from rctaf.family import (
    BASELINE_CURVATURES,
    LAST_ORDER,
    alpha_for_curvature,
    alpha_for_rms_curvature,
    curvature,
    sharpness_for_curvature,
    sharpness_for_rms_curvature,
)

SCHEMA = 1  # raise it when the *meaning* of a field changes: every run id changes with it

# Settings that only some choices use, by the choice. They are dropped (None) elsewhere, so that a number that nothing
# reads does not split one experiment into two ids. Numbers that are read and make no difference still do: a width that
# is the network's own (committed records write it or not), an n_eval of all test images, a temperature where lam_mse
# is 0 and attack_mse off.
_ATTACK = {"attack_steps", "attack_step_size", "attack_schedule", "epsilon_ramp"}
_USED_BY: dict[str, dict[str | None, set[str]]] = {
    "norm": {"batch": {"gain"}},
    "activation": {
        "rctaf": {"alpha", "beta", "alpha_learned"},
        **{name: {"sharpness"} for name in BASELINE_CURVATURES},
    },
    "method": {
        "standard": set(),
        "pgd": _ATTACK,
        "trades": _ATTACK | {"lam"},
        "mart": _ATTACK | {"lam"},
        "dajat": _ATTACK | {"lam", "lam_jsd", "auto_views", "label_smoothing"},
        "dkl": _ATTACK | {"lam", "lam_mse", "temperature", "attack_mse"},
    },
    "attack_schedule": {None: {"attack_steps", "attack_step_size"}},
    "lr_schedule": {"step": {"lr_drops"}},
}
# axes of a grid that stand for alpha, or for the sharpness of ELU and GELU: what gives these, and the digits to which
# they are rounded, so that an experiment keeps its id whatever the last bits of a division or a bisection are
_LABELS: dict[str, tuple[Callable[[float, int], float], Callable[[float, str], float], int]] = {
    "curvature": (alpha_for_curvature, sharpness_for_curvature, 12),
    "rms_curvature": (alpha_for_rms_curvature, sharpness_for_rms_curvature, 9),
}
_NEEDED_BY = {  # dropped where it is None or 0
    "awp": {"awp_from"},
    "averaging": {"averaging_decay", "averaging_from"},
    "auto_views": {"lam_jsd"},
}


def parse_epsilon(text: str) -> float:
    """Read a budget such as ``"8/255"`` or ``"0.15"`` (pixel range [0, 1]) as a float.

    Raises:
        ValueError: not a fraction or decimal in (0, 1].
    """
    return float(_budget(text))


def _budget(text: Any) -> Fraction:
    try:
        value = Fraction("/".join(part.strip() for part in str(text).split("/")))
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not 0 < value <= 1:
        raise ValueError(f'a budget must be a number in (0, 1] such as "8/255" or "0.15", got {text!r}')
    return value


def canonical_epsilon(text: str) -> str:
    """One way to write each budget, so that it cannot split an experiment into two ids.

    >>> [canonical_epsilon(text) for text in ("8 / 255", "16/510", "0.150", "1/7")]
    ['8/255', '8/255', '0.15', '1/7']

    Raises:
        ValueError: as :func:`parse_epsilon`.
    """
    value = _budget(text)
    if 10 ** value.denominator.bit_length() % value.denominator == 0:  # a finite decimal
        return format(Decimal(value.numerator) / value.denominator, "f")
    pixels = value * 255
    return f"{pixels}/255" if pixels.denominator == 1 else str(value)


def _unused(settings: dict[str, Any]) -> set[str]:
    """The settings that the choices among ``settings`` do not use."""
    unused: set[str] = set()
    for choice, table in _USED_BY.items():
        unused |= set().union(*table.values()) - table.get(settings[choice], set())
    for choice, fields in _NEEDED_BY.items():
        if not settings[choice]:
            unused |= fields
    return unused


class RunConfig(BaseModel):
    """Every setting of one experiment: train, attack, measure, record.

    Frozen; unknown names are refused. ``alpha`` is the sharpness and ``beta`` the order of
    RCT-AF; the trade-off weight of TRADES is ``lam``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    # data
    dataset: Literal["digits", "fashion_mnist", "cifar10", "cifar100"] = "digits"
    n_train: int | None = Field(None, ge=1, description="train on the first n images of a fixed shuffle; None: all")
    augment: Literal["none", "crop", "crop_flip"] = "none"
    # network
    network: Literal["resnet_small", "resnet18", "preact_resnet18", "wrn_28_10", "wrn_34_10"] = "resnet_small"
    width: int | None = Field(None, ge=1, description="channels of the first stage; None: the network's own")
    norm: Literal["batch", "none"] = "batch"
    gain: float | None = Field(1.0, gt=0, description="initial batch-norm gains; the head starts 1/gain as large")
    activation: Literal["rctaf", "relu", "leaky_relu", "elu", "selu", "gelu", "swish", "mish", "softplus"] = "rctaf"
    alpha: float | None = Field(14.0, gt=0, le=1000, description="sharpness of RCT-AF")
    beta: int | None = Field(1, ge=0, le=LAST_ORDER, description="order of RCT-AF")
    alpha_learned: bool | None = Field(False, description="alpha is where each layer starts, and is then trained")
    sharpness: float | None = Field(1.0, gt=0, description="a of ELU or GELU f, run as f(a x) / a")
    # training
    method: Literal["standard", "pgd", "trades", "mart", "dajat", "dkl"] = "trades"
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(128, ge=1)
    lr: float = Field(0.1, gt=0)
    lr_schedule: Literal["cosine", "step"] = "cosine"
    head_lr: float = Field(1.0, gt=0, description="factor on the learning rate of the classifier's weights")
    lr_drops: list[int] | None = Field(None, description="epochs, counted from 1, from which lr is ten times smaller")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    decay_gains: bool = Field(True, description="weight decay also acts on batch-norm gains and on biases")
    epsilon: str = Field("0.15", description="l-inf budget of the training, exact, e.g. 8/255")
    attack_steps: int | None = Field(5, ge=1, description="steps of the training attack")
    attack_step_size: str | None = Field(None, description="step of the training attack; None: epsilon / 4")
    attack_schedule: Literal["as_released", "as_intended"] | None = Field(
        None, description="DAJAT's high budget, which DKL's code has too, in place of attack_steps and attack_step_size"
    )
    epsilon_ramp: bool | None = Field(False, description="the training budget grows linearly up to epsilon")
    lam: float | None = Field(6.0, gt=0, description="weight of the robust term (TRADES' 1/lambda)")
    lam_jsd: float | None = Field(2.0, ge=0, description="DAJAT: weight of the divergence between the views")
    auto_views: int | None = Field(2, ge=0, description="DAJAT: AutoAugment views beside the base; 0 is ACAT")
    label_smoothing: float | None = Field(0.0, ge=0, lt=1, description="DAJAT: probability given to the other classes")
    lam_mse: float | None = Field(20.0, ge=0, description="DKL: weight of the squared logit differences")
    temperature: float | None = Field(4.0, gt=0, description="DKL: softens the class means that weigh them")
    attack_mse: bool | None = Field(False, description="DKL: the attack raises the squared differences too")
    awp: float | None = Field(None, gt=0, description="size of the adversarial weight perturbation; None: without")
    awp_from: int | None = Field(1, ge=1, description="first epoch with it, counted from 1")
    averaging: Literal["step", "epoch"] | None = Field(None, description="evaluate an average of the weights")
    averaging_decay: float | None = Field(None, ge=0, lt=1, description="decay * average + (1 - decay) * weights")
    averaging_from: int | None = Field(1, ge=1, description="first epoch that is averaged, counted from 1")
    precision: Literal["fp32", "bf16"] = "fp32"
    compiled: bool = Field(False, description="torch.compile for training and its attack: minutes first, then faster")
    seed: int = Field(0, ge=0)
    # evaluation
    n_eval: int | None = Field(None, ge=1, description="attack the first n test images; None: all")
    epsilon_eval: str | None = Field(None, description="budget of the evaluation; None: that of the training")
    epsilon_larger: str | None = Field("0.2", description="a second, larger budget for PGD-20")
    autoattack: Literal["none", "screening", "standard"] = "screening"
    hessian_images: int = Field(128, ge=1, description="images over which the Hessian is averaged")
    hessian_probes: int = Field(256, ge=0, description="at most this many probes, 64 or more; 0 skips the measurement")

    @model_validator(mode="before")
    @classmethod
    def _drop_unused(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        with suppress(ValueError):  # a budget that cannot be read is refused below
            trained = _budget(values.get("epsilon", cls.model_fields["epsilon"].default))
            step, own = values.get("attack_step_size"), values.get("epsilon_eval")
            if step is not None and _budget(step) == trained / 4:
                values = {**values, "attack_step_size": None}
            if own is not None and (_budget(own) == trained or values.get("method") == "standard"):
                values = {**values, "epsilon": own, "epsilon_eval": None}
        chosen = {name: values.get(name, cls.model_fields[name].default) for name in (*_USED_BY, *_NEEDED_BY)}
        with suppress(TypeError):  # a list, say, is no choice: refused below too
            values = {**values, **dict.fromkeys(_unused(chosen))}
        return values

    @model_validator(mode="after")
    def _complete(self) -> RunConfig:
        # None stands for "unused" in a setting whose default is a value, and for nothing else
        own = {name for name, field in type(self).model_fields.items() if field.default is not None}
        used = (own | {"lr_drops", "averaging_decay"}) - {"epsilon_larger"} - _unused(dict(self))
        missing = [name for name in type(self).model_fields if name in used and getattr(self, name) is None]
        if missing:
            raise ValueError(f"{', '.join(missing)}: must be given with these choices")
        # nothing of what was asked for would happen: the average would be the weights at the start
        for name in ("awp_from", "averaging_from"):
            first = getattr(self, name)
            if first is not None and first > self.epochs:
                raise ValueError(f"{name}={first} is after the last epoch, {self.epochs}")
        if self.epsilon_larger is not None and _budget(self.epsilon_larger) < _budget(self.evaluation_epsilon):
            raise ValueError(
                f"epsilon_larger={self.epsilon_larger}: expected no less than the budget of the evaluation, "
                f"{self.evaluation_epsilon}, or None"
            )
        drops = self.lr_drops or []
        if drops != sorted({drop for drop in drops if drop > 1}):
            raise ValueError(f"lr_drops={drops}: expected epochs after the first, each once and in order")
        if self.gain not in (None, 1) and self.network not in ("resnet_small", "resnet18"):
            raise ValueError(f"gain={self.gain:g} needs resnet_small or resnet18, got {self.network}")
        return self

    @field_validator("epsilon", "attack_step_size", "epsilon_eval", "epsilon_larger", mode="before")
    @classmethod
    def _canonical_budget(cls, value: Any) -> Any:
        # papermill's -p gives a number where one is written
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return canonical_epsilon(str(value)) if number or isinstance(value, str) else value

    @field_validator("hessian_probes")
    @classmethod
    def _probes(cls, number: int) -> int:
        if 0 < number < 64:
            raise ValueError("an interval needs at least 64 probes; 0 skips the measurement")
        return number

    @property
    def run_id(self) -> str:
        """Twelve hex digits that name this experiment.

        The hash covers the validated settings that are used and differ from their defaults, so a
        field added later (whose default means "as before") leaves every old id as it is.
        """
        doc = {"schema": SCHEMA, **self.chosen()}
        text = json.dumps(doc, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def chosen(self) -> dict[str, Any]:
        """The settings that are used and differ from their defaults, as JSON holds them: they alone make it again."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude=_unused(dict(self)))

    @property
    def evaluation_epsilon(self) -> str:
        """The budget at which accuracy under attack and the Hessian of the attacked loss are measured."""
        return self.epsilon_eval or self.epsilon

    @property
    def norm_sets(self) -> int:
        """Sets of batch-norm statistics: AutoAugment views have their own."""
        return 2 if self.auto_views else 1

    @property
    def label(self) -> str:
        """A short human name, e.g. ``digits resnet_small trades rctaf(alpha=14, beta=1) seed 0``."""
        act: str = self.activation
        if act == "rctaf":
            act = f"rctaf(alpha={self.alpha:g}, beta={self.beta})"
        elif self.sharpness not in (None, 1):
            act += f"(sharpness={self.sharpness:g})"
        return f"{self.dataset} {self.network} {self.method} {act} seed {self.seed}"

    @property
    def curvature(self) -> float | None:
        """max |sigma''| of the configured RCT-AF; None for the named baselines."""
        if self.alpha is None or self.beta is None:
            return None
        return curvature(self.alpha, self.beta)

    @property
    def equal_curvature(self) -> float | None:
        """max |sigma''| of RCT-AF, or of ELU or GELU at their sharpness; None for the other activations.

        To ten digits, so that equal ones compare equal: a grid gives alpha and sharpness to twelve.
        """
        found = self.curvature
        if self.sharpness is not None:
            found = self.sharpness * BASELINE_CURVATURES[self.activation]
        return None if found is None else float(f"{found:.10g}")

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> RunConfig:
        """Read the settings from a notebook's globals.

        Raises:
            ValueError: the cell of parameters, as it was run last, or the one that papermill injects (which warns
                only) has a name that is no setting, or a value is out of range.
        """
        settings = set(cls.model_fields)
        cells = [(cell, set(assigned_names(cell))) for cell in namespace.get("In", [])]
        of_parameters = [names for _, names in cells if 2 * len(names & settings) > len(settings)]
        injected = [names for cell, names in cells if cell.startswith("# Parameters\n")]
        if unknown := sorted(set().union(*of_parameters[-1:], *injected) - settings):
            raise ValueError(_no_setting(unknown))
        try:
            return cls(**{name: namespace[name] for name in cls.model_fields if name in namespace})
        except ValidationError as error:
            raise ValueError(explain(error)) from None


def _no_setting(names: Iterable[str]) -> str:
    """One line for names that are no settings, each with the setting that was probably meant."""
    said = []
    for name in names:
        near = difflib.get_close_matches(name, RunConfig.model_fields, n=1)
        said.append(f"{name} (perhaps {near[0]})" if near else name)
    return f"no such setting: {', '.join(said)}; there are {', '.join(RunConfig.model_fields)}"


def assigned_names(code: str) -> list[str]:
    """The names that a cell assigns at its top level; none where it is not plain Python."""
    targets: list[Any] = []
    try:
        body = ast.parse(code).body
    except SyntaxError:  # a magic of IPython
        return []
    for node in body:
        targets += node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


class Block(BaseModel):
    """One product of axes over a common base.

    In place of ``alpha``, or of the ``sharpness`` of ELU and GELU, an axis may be ``curvature``, max|sigma''|, or
    ``rms_curvature``, what the start of training meets of it (:func:`rctaf.family.rms_curvature_at_start`).
    ``recipe`` names a file of ``rctaf/recipes``, whose settings are used where neither base nor axes give their own.
    """

    model_config = ConfigDict(extra="forbid")

    base: dict[str, Any] = {}
    axes: dict[str, list[Any]] = {}

    def settings(self) -> list[dict[str, Any]]:
        """The settings of each experiment of the product, alpha and sharpness worked out.

        Raises:
            ValueError: a list where one value is expected, an axis without values, or two settings or labels that
                stand for the same.
        """
        if empty := [name for name, values in self.axes.items() if not values]:
            raise ValueError(f"axes: {', '.join(empty)}: at least one value is expected, or there would be no run")
        rows = []
        for values in itertools.product(*self.axes.values()):
            row = {**self.base, **dict(zip(self.axes, values, strict=True))}
            for name, value in row.items():
                if isinstance(value, list | dict) and name != "lr_drops":
                    raise ValueError(f"{name}={value!r}: one value is expected; a list of them belongs under axes")
            if "recipe" in row:
                row = {**recipes.settings(row.pop("recipe")), **row}
            activation, order = (row.get(name, RunConfig.model_fields[name].default) for name in ("activation", "beta"))
            labels = [name for name in _LABELS if name in row]
            setting = "sharpness" if activation in BASELINE_CURVATURES else "alpha"
            if labels and setting == "alpha" and activation != "rctaf":
                raise ValueError(f"{labels[0]} says nothing about {activation}")
            if len(given := [name for name in (setting, *labels) if name in row]) > 1:
                raise ValueError(f"give {' or '.join(given)}, not both")
            for name in labels:
                (alpha_for, sharpness_for, digits), value = _LABELS[name], row.pop(name)
                found = alpha_for(value, order) if setting == "alpha" else sharpness_for(value, activation)
                row[setting] = float(f"{found:.{digits}g}")
            rows.append(row)
        return rows


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would keep the last and drop the other without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [name.value for name, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


class Grid(BaseModel):
    """The experiments behind a figure at one scale: a YAML file under ``grids/``."""

    model_config = ConfigDict(extra="forbid")

    name: str
    scale: str = Field(description="what these runs are, in the words printed under every figure")
    base: dict[str, Any] = {}
    blocks: list[Block] = Field(min_length=1)

    @classmethod
    def load(cls, path: str | Path) -> Grid:
        """Read a grid file.

        Raises:
            Unreadable: it cannot be used, a ``ValueError`` in one line that says why.
        """
        try:
            grid = cls.model_validate(yaml.load(Path(path).read_text(), _Loader))
            grid.cells()
        except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
            raise Unreadable(f"grid {path}: {explain(error)}") from None
        return grid

    def cells(self) -> dict[str, RunConfig]:
        """All experiments by run id: by seed, then in the order of the file.

        So a grid that is stopped half-way leaves complete seeds rather than complete blocks.

        Raises:
            ValueError: a setting is unknown or out of range, or one experiment appears twice.
        """
        cells: dict[str, RunConfig] = {}
        problems: list[str] = []
        for block in self.blocks:
            for row in Block(base={**self.base, **block.base}, axes=block.axes).settings():
                try:
                    config = RunConfig(**row)
                except ValidationError as error:
                    problems.append(explain(error))
                    continue
                if config.run_id in cells:
                    problems.append(f"the same experiment appears twice: {config.label}")
                cells[config.run_id] = config
        if problems:
            raise ValueError("; ".join(dict.fromkeys(problems)))
        return dict(sorted(cells.items(), key=lambda cell: cell[1].seed))


def explain(error: Exception) -> str:
    """A validation error as one line: which field, what was given, what was expected."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    lines = []
    if error.title == RunConfig.__name__:
        unknown = [str(item["loc"][0]) for item in error.errors() if item["type"] == "extra_forbidden"]
        lines += [_no_setting(unknown)] if unknown else []
    for item in error.errors():
        if lines and item["type"] == "extra_forbidden":
            continue
        where = ".".join(str(part) for part in item["loc"])
        # a rule between several fields names them itself, and its input is the whole configuration
        given = "" if item["type"] == "missing" or not where else f"={item['input']!r}"
        said = item["msg"].removeprefix("Value error, ")  # pydantic's, of what a rule here says
        lines.append(f"{where}{given}: {said}" if where else said)
    return "; ".join(lines)
