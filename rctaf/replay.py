"""Make a record's experiment once more, and judge whether it came out the same."""

from __future__ import annotations

import math
import os
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import scipy  # its parts load when first used

from rctaf import records
from rctaf.config import RunConfig
from rctaf.records import Record
from rctaf.runs import RunError, execute

SHOWN = 20  # lines of a replay's report
LEVEL = 0.01  # how often at most a faultless replay on another machine is called different
MIN_SIBLINGS = 3  # beside the one compared, to estimate a deviation from
ROUNDING = 1e-5  # relative; float32 sums over the same weights in another order differ by a few 1e-7, amplified
CHOSEN = ("probes", "converged")  # by a rule that looks at the samples: equal in all seeds by chance alone
VERDICTS = ("identical", "within tolerance", "different", "not judged")


class Compared(NamedTuple):
    """A measured value in a record and in its replay; ``verdict`` is one of :data:`VERDICTS`."""

    name: str
    before: Any
    after: Any
    tolerance: float | None
    verdict: str


def replay(run_id: str) -> int:
    """Execute a record's experiment again in an empty store and compare; 0 unless it fails or something is different.

    Same code, versions, device and thread count repeat a run bit by bit. Elsewhere sums round
    differently, training amplifies that within its first epoch, and the new run is as far from the old one as
    another seed would be: so a metric is *within tolerance* when it differs by at most :func:`tolerance`, or by
    rounding. A correct replay is then called different in at most a share :data:`LEVEL` of cases; how small
    a fault it can find depends on how many seeds are known.

    Raises:
        Unreadable: there is no record of that id.
    """
    old = records.existing(run_id)
    siblings = _siblings(old)
    threads = str(old.provenance["threads"])
    print(f"{run_id}  {old.config.label}\n  recorded {_conditions(old)}", flush=True)
    store = tempfile.mkdtemp(prefix="rctaf-replay-")
    with mock.patch.dict(os.environ, RCTAF_RESULTS=store, OMP_NUM_THREADS=threads):
        try:
            execute(old.config)
        except RunError as error:  # told here: the command line, being __main__, has a RunError of its own
            print(f"{run_id}: {error}; what it left is in {store}", file=sys.stderr)
            return 1
        except BaseException:  # stopped by hand, say
            print(f"what the replay of {run_id} left is in {store}", file=sys.stderr)
            raise
        new = records.load(run_id)
    shutil.rmtree(store)
    assert new is not None  # execute ends with a record or raises
    print(f"  replayed {_conditions(new)}")
    before, now = (record.provenance.get("activation_kernel", "unknown code") for record in (old, new))
    if before != now:  # they round differently
        print(f"  activations by {before} in the record, by {now} here")
    before, now = (record.provenance.get("processor") for record in (old, new))
    if before and now and before != now:  # older records do not say
        print(f"  on {before} in the record, on {now} here")
    verdicts = compare(old, new, siblings)
    changed = [row for row in verdicts if row.verdict != "identical"]
    changed.sort(key=lambda row: row.verdict != "different")
    for name, before, after, allowed, verdict in changed[:SHOWN]:
        margin = "" if allowed is None else f"  (tolerance {allowed:.3g})"
        print(f"  {verdict:16} {name}: {before} -> {after}{margin}")
    if len(changed) > SHOWN:
        print(f"  and {len(changed) - SHOWN} more that are not identical")
    number = {kind: sum(row.verdict == kind for row in verdicts) for kind in VERDICTS}
    if number["identical"] == len(verdicts):
        print(f"bit-identical: all {len(verdicts)} values")
    else:
        outcome = next(kind for kind in ("different", "within tolerance", "not judged") if number[kind])
        counts = ", ".join(f"{n} {kind}" for kind, n in number.items() if n)
        print(f"{outcome}: {counts}{_weakness(verdicts, siblings)}")
    return 1 if number["different"] else 0


def compare(old: Record, new: Record, siblings: list[Record]) -> list[Compared]:
    """Every measured value of two records of one experiment.

    Durations are left out. What differs by more than :data:`ROUNDING` and has no known scatter (a number
    measured for one seed only), text (the version of an attack), and what
    only the newer code measures, is ``not judged``: shown, no more.
    """
    before, after, *others = (
        dict(_leaves({"metrics": r.metrics, "history": r.history})) for r in (old, new, *siblings)
    )
    compared = sum(isinstance(before[name], int | float) for name in before.keys() & after.keys())
    rows: list[Compared] = []
    for name in before | after:
        a, b = before.get(name), after.get(name)
        allowed, verdict = None, "different"
        if a == b:
            verdict = "identical"
        elif name.endswith(CHOSEN):
            verdict = "not judged"
        elif isinstance(a, int | float) and isinstance(b, int | float):
            scatter = [o[name] for o in others if isinstance(o.get(name), int | float)]
            allowed = tolerance(a, scatter, counting_error(name, a, old.metrics), compared)
            if abs(a - b) <= max(allowed or 0.0, ROUNDING * abs(a)):
                verdict = "within tolerance"
            elif allowed is None:
                verdict = "not judged"
        elif type(a) is type(b) or name not in before:
            verdict = "not judged"
        rows.append(Compared(name, a, b, allowed, verdict))
    return rows


def _weakness(rows: list[Compared], siblings: list[Record]) -> str:
    """How far an accuracy could have moved and passed: its widest tolerance, and what that rests on."""
    widest = max(
        ((r.tolerance, r.name) for r in rows if r.tolerance and re.fullmatch(r"metrics\..*_accuracy", r.name)),
        default=None,
    )
    if widest is None:
        return ""
    allowed, name = widest
    seeds = sum(name in dict(_leaves({"metrics": record.metrics})) for record in siblings)
    origin = (
        f"from {seeds} other seeds" if seeds >= MIN_SIBLINGS else f"of counting images; {seeds} other seeds, too few"
    )
    return f" (the widest tolerance of an accuracy: {100 * allowed:.1f} points, {origin})"


def tolerance(value: float, others: list[float], counting: float, compared: int = 1) -> float | None:
    """How far a value may move when its run is repeated with other rounding; None where that is unknown.

    Two independent draws of spread s differ by a deviation of sqrt(2) s. With s known, their difference over
    that is normal; with s estimated from k values it is t distributed on k - 1 degrees of freedom. The tolerance is the
    quantile that one of ``compared`` values exceeds in a share :data:`LEVEL` of replays (Bonferroni).
    s is the deviation between seeds, where ``others`` are at least :data:`MIN_SIBLINGS`, and never less than the
    ``counting`` error (0 where the value is no count).
    """
    tail = LEVEL / (2 * compared)
    reach = counting * float(scipy.stats.norm.isf(tail))
    if len(others) >= MIN_SIBLINGS:
        reach = max(reach, statistics.stdev([value, *others]) * float(scipy.stats.t.isf(tail, len(others))))
    return math.sqrt(2) * reach if counting or len(others) >= MIN_SIBLINGS else None


def counting_error(name: str, value: float, metrics: dict[str, Any]) -> float:
    """sqrt(p (1 - p) / n) of a share of n test images, times n for a count of them; 0 for anything else."""
    n = metrics.get("n_test" if name == "metrics.clean_accuracy" else "n_eval")
    share = name.startswith("metrics.") and name.endswith("_accuracy")
    count = name.startswith("metrics.autoattack.") and name.endswith((".robust", ".clean"))
    if not n or not (share or count):
        return 0.0
    p = value if share else value / n
    p = min(max(p, 1 / n), 1 - 1 / n)  # at 0 and 1 the formula would allow no image at all
    return math.sqrt(p * (1 - p) / n) * (1 if share else n)


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar of nested dicts and lists under a dotted name, durations left out."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if not str(key).endswith(("seconds", "_s")):
                yield from _leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, tree


def _siblings(old: Record) -> list[Record]:
    """The same experiment with other seeds, one record of each: a seed that was attacked twice was trained once."""
    others = [
        record
        for record in records.load_all()
        if _but_seed(record.config) == _but_seed(old.config) and record.config.seed != old.config.seed
    ]
    others.sort(key=lambda record: record.config.autoattack == old.config.autoattack)  # of two, the one attacked alike
    return list({record.config.seed: record for record in others}.values())


def _but_seed(config: RunConfig) -> dict[str, Any]:
    # the attack tier may differ too: a deviation between seeds needs the same training only
    return config.model_dump(exclude={"seed", "autoattack"})


def _conditions(record: Record) -> str:
    p = record.provenance
    commit = f"{str(p['git_commit'])[:10]}{' with uncommitted changes' if p['git_dirty'] else ''}"
    return f"at {commit}, torch {p['packages']['torch']}, {p['device']}, {p['threads']} thread(s), {p['wall_s']} s"
