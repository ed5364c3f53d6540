"""AutoAttack (Croce and Hein 2020, arXiv 2003.01690) on one model, resumable, with everything a record needs.

The attacks are the package's: ``autoattack`` (GitHub) where installed, else ``pyautoattack`` (PyPI). The loop
over attacks and batches is ours, because neither package can resume and neither returns what happened between
the attacks. It makes the same calls with the same seeds on the same batches as
``run_standard_evaluation``: every attack gets the images that survived the attacks before it, in their
order, cut into batches of ``batch_size``, each batch from the clean image and from the same seed. So the
verdict on every image is the package's own at equal seed and batch size. (The batch size matters: an attack
draws one random start for a whole batch. It is part of the result.)
"""

from __future__ import annotations

import base64
import copy
import hashlib
import importlib
import json
import math
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rctaf.arithmetic import repeatable
from rctaf.attacks import check_classes, check_finite, check_labels, check_range
from rctaf.models.frozen import Frozen, Unsupported
from rctaf.records import Record, write_text
from rctaf.replacement import computed_tensors

Version = Literal["standard", "screening"]
ATTACKS: dict[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    # the first two alone: fast, and not AutoAttack; the other two rarely change a verdict, but may
    "screening": ("apgd-ce", "apgd-t"),
}


class _Warnings:
    """Collects what the package's checks say; both packages' loggers at once (``log`` and ``warning``)."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def warning(self, message: str) -> None:
        message = message.removeprefix("Warning: ").split(" See flags_doc.md")[0].strip()
        if message not in self.messages:
            self.messages.append(message)

    log = warning

    def debug(self, message: str) -> None: ...

    info = debug


def _adversary(model: nn.Module, epsilon: float, seed: int, device: torch.device) -> tuple[Any, Any, str, str]:
    """The package's AutoAttack object and checks, and which package of which version they are."""
    options: dict[str, Any] = {"norm": "Linf", "eps": epsilon, "seed": seed, "version": "standard", "device": device}
    for name in ("autoattack", "pyautoattack"):
        try:
            package = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            continue
        try:
            number = version_of(name)
        except PackageNotFoundError:
            number = getattr(package, "__version__", "unknown")
        if name == "autoattack":
            options["verbose"] = False
        return package.AutoAttack(model, **options), importlib.import_module(f"{name}.checks"), name, number
    raise ModuleNotFoundError(
        "neither autoattack nor pyautoattack is here: pip install -e '.[experiments]' in the clone"
    )


@repeatable()
def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    version: Version = "standard",
    *,
    seed: int = 0,
    batch_size: int = 500,
    state: str | Path | None = None,
) -> dict[str, Any]:
    """Attack a model in the l-infinity ball; returns the entry for the record.

    The model is evaluated in float32 (:func:`rctaf.arithmetic.repeatable`) and eval mode on a copy: the caller's
    model, random generators and tracer are left as they were.

    Args:
        model: maps images [N, ...] in [0, 1] to logits [N, C], C >= 4.
        x: images [N, C, H, W] in [0, 1]; y: labels [N].
        epsilon: radius in the units of ``x``.
        version: ``standard`` is AutoAttack; ``screening`` is its first two attacks and must not be called so.
        seed: of every attack and batch.
        batch_size: images per attacked batch.
        state: a file that holds the progress after each batch of each attack, so that a killed evaluation
            repeats at most one batch. Progress of a model with other logits on ``x``, of other data or of another
            setting is not used.

    Returns:
        ``version``, ``implementation``, ``implementation_version``, ``epsilon``, ``seed``, ``batch_size``, ``n``,
        ``clean`` (correct before any attack), ``waterfall`` (list of attack and how many are still robust after
        it; the first two entries of ``standard`` are what ``screening`` gives), ``robust``,
        ``robust_accuracy`` = robust / n, ``mask`` (per image; read by :func:`unpack_mask`), ``warnings`` of
        the package's checks, ``seconds``.

    Raises:
        ValueError: unknown version, no images, images or epsilon outside [0, 1], labels that are no vector or no
            numbers of the classes, fewer than four classes, or logits not finite.
    """
    if version not in ATTACKS:
        raise ValueError(f"version must be one of {', '.join(ATTACKS)}, got {version!r}")
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"images and labels: {len(x)} and {len(y)} given, expected as many of each, at least one")
    check_labels(y)
    x = x.detach().float()
    check_range(x, epsilon)
    # a copy without parameter gradients: FAB would compute and add them up at every step
    model = copy.deepcopy(model, computed_tensors(model)).float().eval().requires_grad_(False)
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices), torch.autocast(x.device.type, enabled=False):
        with suppress(Unsupported):  # such a model is attacked as it is: the same verdicts, in more time
            model = Frozen(model, x)
        return _attack(model, x, y, epsilon, version, seed, batch_size, Path(state) if state else None)


def _attack(
    model: nn.Module, x: Tensor, y: Tensor, epsilon: float, version: str, seed: int, batch_size: int, state: Path | None
) -> dict[str, Any]:
    adversary, checks, implementation, implementation_version = _adversary(model, epsilon, seed, x.device)
    settings = {
        "version": version,
        "implementation": implementation,
        "implementation_version": implementation_version,
        "epsilon": epsilon,
        "seed": seed,
        "batch_size": batch_size,
        "n": len(x),
    }
    with torch.no_grad():
        logits = torch.cat([model(part) for part in x.split(batch_size)])
    key = _fingerprint(settings, logits, x, y)
    doc = _read_state(state, key)
    log = _Warnings()
    if doc is None:
        correct = _start(model, x, y, logits, batch_size, checks, log)
        doc = {
            "key": key,
            "clean": int(correct.sum()),
            "survivors": _pack(correct),  # when the current attack began
            "robust": _pack(correct),
            "batches_done": 0,
            "waterfall": [],
            "warnings": log.messages,
            "seconds": 0.0,
        }
    log.messages = doc["warnings"]

    for part in (adversary.apgd, adversary.apgd_targeted):
        part.logger = log
    adversary.fab.targeted = True
    # the package asks for nine target classes and fails where there are fewer
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = min(9, logits.shape[1] - 1)
    adversary.apgd.loss = "ce"
    perturb = {
        "apgd-ce": adversary.apgd.perturb,
        "apgd-t": adversary.apgd_targeted.perturb,
        "fab-t": adversary.fab.perturb,
        "square": adversary.square.perturb,
    }
    robust = unpack_mask(doc["robust"], len(x))
    for attack in ATTACKS[version][len(doc["waterfall"]) :]:
        index = np.flatnonzero(unpack_mask(doc["survivors"], len(x)))
        batches = [index[i : i + batch_size] for i in range(0, len(index), batch_size)]
        for batch in batches[doc["batches_done"] :]:
            began = time.perf_counter()
            rows = torch.from_numpy(batch).to(x.device)
            clean, labels = x[rows], y[rows]
            with torch.no_grad():  # the attacks turn gradients on where they need them
                attacked = perturb[attack](clean.clone(), labels.clone())
            robust[batch] = _survives(model, clean, attacked, labels, epsilon, attack).cpu().numpy()
            doc["robust"] = _pack(robust)
            doc["batches_done"] += 1
            doc["seconds"] += time.perf_counter() - began
            _write_state(state, doc)
        doc["waterfall"].append({"attack": attack, "robust": int(robust.sum())})
        doc["survivors"], doc["batches_done"] = doc["robust"], 0
        _write_state(state, doc)

    shares = {"clean": doc["clean"] / len(x)} | {w["attack"]: w["robust"] / len(x) for w in doc["waterfall"]}
    checks.check_square_sr(shares, logger=log)
    return {
        **settings,
        "clean": doc["clean"],
        "waterfall": doc["waterfall"],
        "robust": int(robust.sum()),
        "robust_accuracy": int(robust.sum()) / len(x),
        "mask": doc["robust"],
        "warnings": log.messages,
        "seconds": round(doc["seconds"], 2),
    }


def _start(
    model: nn.Module, x: Tensor, y: Tensor, logits: Tensor, batch_size: int, checks: Any, log: _Warnings
) -> np.ndarray:
    """The package's checks on the first batch, and which images are classified correctly."""
    first, labels = x[:batch_size], y[:batch_size]
    if logits.ndim != 2 or logits.shape[1] < 4:
        raise ValueError(
            f"AutoAttack's targeted loss (DLR) needs logits of at least 4 classes, got {tuple(logits.shape[1:])}"
        )
    check_finite(torch.isfinite(logits).all())
    check_classes(y, logits.shape[1])
    tracer = sys.gettrace()
    try:
        checks.check_randomized(model, first, labels, bs=batch_size, logger=log)
        checks.check_range_output(model, first, logger=log)
        checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # the package never resets its call counts
        with torch.no_grad():
            checks.check_dynamic(model, first, False, logger=log)
    finally:
        sys.settrace(tracer)  # check_dynamic ends with settrace(None), which would stop coverage and debuggers
    classes = logits.shape[1]
    if classes < 10:
        log.warning(f"{classes} classes: the targeted attacks try all {classes - 1} targets instead of 9")
    return (logits.argmax(1) == y).cpu().numpy()


def _survives(model: nn.Module, x: Tensor, attacked: Tensor, y: Tensor, epsilon: float, attack: str) -> Tensor:
    distance = (attacked - x).abs().max()
    # an attack may leave the ball by float32 rounding only: a few ulp of 1
    if not (distance <= epsilon + 1e-6 and attacked.min() >= 0 and attacked.max() <= 1):
        raise RuntimeError(f"{attack} left the ball: distance {float(distance):g}, epsilon {epsilon:g}")
    with torch.no_grad():
        return model(attacked).argmax(1) == y


def _fingerprint(settings: dict[str, Any], logits: Tensor, x: Tensor, y: Tensor) -> str:
    """Of what is attacked: the model counts by what it does, which its weights and its name alone do not tell."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tensor in (logits.float(), x, y):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_state(state: Path | None, key: str) -> dict[str, Any] | None:
    if state is None or not state.exists():
        return None
    try:
        doc = json.loads(state.read_text())
    except ValueError:
        return None
    return doc if isinstance(doc, dict) and doc.get("key") == key else None


def _write_state(state: Path | None, doc: dict[str, Any]) -> None:
    if state is not None:
        write_text(state, json.dumps(doc))


def _pack(mask: np.ndarray) -> str:
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def unpack_mask(text: str, n: int) -> np.ndarray:
    """The per-image verdicts [n] of a record's ``mask``: True where the image survived every attack.

    >>> unpack_mask(_pack(np.array([True, False, True])), 3)
    array([ True, False,  True])

    Raises:
        ValueError: the mask is not one of ``n`` images.
    """
    packed = np.frombuffer(base64.b64decode(text), np.uint8)
    if len(packed) != (expected := math.ceil(n / 8)):
        raise ValueError(
            f"the mask holds {len(packed)} bytes, expected {expected} for {n} images; give the record's own n"
        )
    return np.unpackbits(packed, count=n).astype(bool)


def robustbench_entry(record: Record) -> dict[str, Any]:
    """A record as one model's JSON of RobustBench (its ``model_info``; accuracies in per cent, as text).

    Raises:
        ValueError: the record holds no evaluation by the standard version, which is what RobustBench lists.
    """
    result = record.metrics.get("autoattack") or {}
    if (version := result.get("version", "none")) != "standard":
        said = f"record {record.run_id} holds no standard AutoAttack, only {version!r}"
        raise ValueError(f"{said}; make the run with autoattack=standard")
    config, package = record.config, f"{result['implementation']} {result['implementation_version']}"
    return {
        "link": "",
        "name": config.label,
        "authors": "",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": config.dataset,
        "venue": "",
        "architecture": config.network,
        "eps": config.evaluation_epsilon,
        "clean_acc": f"{100 * result['clean'] / result['n']:.2f}",
        "reported": "",
        "autoattack_acc": f"{100 * result['robust_accuracy']:.2f}",
        "footnote": "; ".join([f"{package}, {result['n']} images", *result["warnings"]]),
    }
