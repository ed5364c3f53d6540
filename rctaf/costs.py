"""Table 2, the cost of an activation, from the records that benchmarks/bench_activations.py writes."""

from __future__ import annotations

import json
from typing import Any, Literal

from IPython.display import HTML

from rctaf.names import activation_name
from rctaf.paper import TABLE_2
from rctaf.records import results_dir
from rctaf.tables import html_table
from rctaf.verdicts import Verdict
from rctaf.words import count

WHAT = {
    "training_step": "One training step of ResNet-18",
    "activation": "The activation alone, forward and backward",
}
DEVICES = {"cpu": "a CPU", "cuda": "a GPU"}
MODES = {"naive": "naive", "eager": "this package", "compiled": "compiled"}
NAIVE_IS_EAGER = ("gelu", "softplus", "swish")  # PyTorch's own, which cannot work in place
MEMORY_TOLERANCE = 0.1  # a GPU's allocator rounds up, and its convolutions take workspaces
MIN_ROUNDS = 5  # for a verdict on times: four rounds agree by mere chance in more than 5 % of cases

Record = dict[str, Any]


def load(what: str, device_type: str) -> list[Record]:
    """The records of one of :data:`WHAT` on one of :data:`DEVICES`, in the order of file names."""
    paths = sorted((results_dir() / "benchmarks").glob(f"{what}_*.json"))
    records = [json.loads(path.read_text()) for path in paths]
    return [record for record in records if record["device_type"] == device_type]


def row(record: Record, activation: str, mode: str) -> dict[str, Any] | None:
    """What was measured for one activation (named as in ``TABLE_2``) in one mode; None where it was not."""
    found = [r for r in record["rows"] if (r["activation"], r["mode"]) == (activation, mode)]
    return found[0] if found else None


def describe(record: Record) -> str:
    """What was measured, where and how, in one paragraph."""
    source = record["provenance"]
    place = source["device"]
    if record["device_type"] == "cpu":
        place += f" ({count(source['threads'], 'thread')} of {record['cores']} cores)"
    kernel = source["activation_kernel"]
    kernel = "PyTorch operations, no kernel of its own" if kernel == "PyTorch" else f"its {kernel} kernel"
    shape = " × ".join(map(str, record["shape"]))
    return (
        f"**{WHAT[record['benchmark']]}**, input {shape} in {record['dtype']}, on **{place}**; "
        f"PyTorch {source['packages']['torch']}; this package with {kernel}; {record['rounds']} rounds on "
        f"{source['started'][:10]}, at a load average of {record['load_before']:.1f} when they began."
    )


def table_2(record: Record, quantity: Literal["memory", "time"]) -> HTML:
    """Table 2 as printed and as one record has it, both over the ReLU of the same machine.

    Where PyTorch's own activation is the naive mode too, its number stands across both columns.

    Args:
        record: one of :func:`load`.
        quantity: ``memory`` (peak allocated; 10^9 bytes in brackets) or ``time`` (median over rounds; quartiles in
            brackets).

    Raises:
        ValueError: the record has no eager ReLU, which every other is compared with.
    """
    relu = row(record, "relu", "eager")
    if relu is None:
        raise ValueError("the record has no row for eager ReLU, which every other is compared with; run make bench")

    def cell(activation: str, mode: str) -> str:
        r = row(record, activation, mode)
        if r is None:
            return "–"
        if quantity == "memory":
            return f"{r['peak_mib'] / relu['peak_mib']:.2f} ({r['peak_mib'] * 2**20 / 1e9:.3g})"
        low, high = r["time_over_relu"]["quartiles"]
        return f"{r['time_over_relu']['median']:.2f} ({low:.2f} to {high:.2f})"

    lines = []
    for name, printed in TABLE_2.items():
        value, base = (pair[quantity == "time"] for pair in (printed, TABLE_2["relu"]))
        own = [cell(name, mode) for mode in MODES]
        one = "β" not in name and row(record, name, "naive") is None  # naive is what PyTorch does anyway
        eager = f"<td colspan='2' class='both'>{own[1]}</td>" if one else f"<td>{own[0]}</td><td>{own[1]}</td>"
        lines.append(
            f"<tr><td>{activation_name(name)}</td><td>{value:.2f}</td><td>{value / base:.2f}</td>{eager}"
            f"<td>{own[2]}</td></tr>"
        )
    unit, extra = {"memory": ("GB", "GB"), "time": ("min", "quartiles")}[quantity]
    head = (
        f"<tr><th rowspan='2'>{quantity}</th><th colspan='2'>as printed</th>"
        f"<th colspan='3'>here, over ReLU ({extra})</th></tr>"
        f"<tr><th>{unit}</th><th>over ReLU</th>{''.join(f'<th>{word}</th>' for word in MODES.values())}</tr>"
    )
    return html_table("table", head, lines)


def memory_as_printed(record: Record) -> Verdict:
    """Whether the naive mode of a training step gives the memory of Table 2, each activation over ReLU.

    It was composed to: which activations work in place, and what the others keep, was inferred from the printed
    numbers. So the claim is only that there is such a mode. Supported: every row lies within ``MEMORY_TOLERANCE`` of
    its printed ratio. Not supported: some row does not.
    """
    claim = "A mode exists that reproduces the ratios of memory to ReLU that Table 2 prints."
    rows = {name: row(record, name, "eager" if name in NAIVE_IS_EAGER else "naive") for name in TABLE_2}
    peaks = {name: r["peak_mib"] for name, r in rows.items() if r}
    if len(peaks) < len(rows):
        return Verdict(claim, "No naive training step was measured for every activation.", "not testable")
    off = {name: peak / peaks["relu"] / (TABLE_2[name][0] / TABLE_2["relu"][0]) - 1 for name, peak in peaks.items()}
    worst = max(off, key=lambda name: abs(off[name]))
    words = (
        "Naive mode, whose in-place activations were inferred from the same numbers: the largest deviation from a "
        f"printed ratio is {100 * off[worst]:+.1f} % ({activation_name(worst)}); "
        f"allowed are {100 * MEMORY_TOLERANCE:g} %."
    )
    return Verdict(claim, words, "supported" if abs(off[worst]) <= MEMORY_TOLERANCE else "not supported")


def order_2_costs_more(record: Record, mode: str) -> Verdict:
    """A.6: order 2 needs substantially more memory and time than orders 0 and 1; here in one of :data:`MODES`.

    Supported: its peak memory is above that of both, and so is its time (lower quartile above both upper quartiles,
    from at least ``MIN_ROUNDS`` rounds). Not supported: its peak is not above that of both, and neither is its median
    time, from as many rounds. Else undecided.
    """
    claim = f"Order 2 needs more memory and more time than orders 0 and 1 ({MODES[mode]})."
    rows = [row(record, f"rctaf β={beta}", mode) for beta in range(3)]
    relu = row(record, "relu", "eager")
    if relu is None or None in rows:
        return Verdict(claim, "Not measured.", "not testable")
    peaks = [r["peak_mib"] / relu["peak_mib"] for r in rows if r]
    times = [r["time_over_relu"] for r in rows if r]
    words = "; ".join(
        f"order {beta}: memory {peak:.2f}, time {time['median']:.2f} "
        f"({time['quartiles'][0]:.2f} to {time['quartiles'][1]:.2f})"
        for beta, (peak, time) in enumerate(zip(peaks, times, strict=True))
    )
    enough = record["rounds"] >= MIN_ROUNDS
    if not enough:
        words += f"; only {record['rounds']} rounds were timed, {MIN_ROUNDS} are needed to decide"
    memory = peaks[2] > max(peaks[:2])
    slower = times[2]["quartiles"][0] > max(t["quartiles"][1] for t in times[:2])
    perhaps = times[2]["median"] > max(t["median"] for t in times[:2])
    outcome = "supported" if memory and slower else "undecided" if memory or perhaps else "not supported"
    return Verdict(claim, f"Over ReLU, {words}.", outcome if enough else "undecided")


def verdicts(record: Record) -> list[Verdict]:
    """The claims of A.6 that one record can test: those on what the paper seems to have run, the naive mode."""
    memory = [memory_as_printed(record)] if record["benchmark"] == "training_step" else []
    return [*memory, order_2_costs_more(record, "naive")]


def beyond_the_paper(record: Record) -> list[Verdict]:
    """The same question put to this package and to compiled code, of which the paper says nothing."""
    return [order_2_costs_more(record, mode) for mode in MODES if mode != "naive"]
