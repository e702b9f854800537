"""What was measured as tables: medians, ratios, share of the machine's peak. Nothing here measures."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

BEGIN, END = "<!-- results: written by `python scripts/bench --write` -->", "<!-- end of results -->"

OURS = "llmtrain"
"""The name that the contender under test starts with."""

Result = dict[str, Any]
"""Of a work: `title`, `how`, `unit` (of an amount, such as tokens/s), `rows`. A row has `name`, `precision`,
`compile`, `allocator`, perhaps `reference` (our own numbers of the same rounds), and either `seconds` (one
number a round, in which `amount` of the work is done) or `values` (one number a round, less is better); and
what else is worth telling, as `note`."""


def log(text: str) -> None:
    """Say how far it has come."""
    print(text, file=sys.stderr, flush=True)


def median(values: Sequence[float]) -> float:
    """The median, nan of nothing."""
    return statistics.median(values) if values else float("nan")


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over the rounds of theirs over ours: how many times as fast we are."""
    return median([b / a for a, b in zip(ours, theirs, strict=False)])


def spread(values: Sequence[float]) -> float:
    """Half the distance from the least to the greatest, as a share of the median."""
    return (max(values) - min(values)) / 2 / median(values) if values else float("nan")


def measured(row: Mapping[str, Any]) -> list[float]:
    """The numbers of a row, less is better."""
    return list(row.get("seconds") or row.get("values") or [])


def work_rows(result: Result) -> list[list[str]]:
    """The cells of a work's table, a list for each contender; the first row is what all are compared with."""
    lines = []
    reference = next((measured(row) for row in result["rows"] if row["name"].startswith(OURS)), [])
    flops, peak = result.get("flops"), result.get("peak_flops")
    for row in result["rows"]:
        numbers = measured(row)
        told = [str(row.get(key, "")) for key in ("precision", "compile", "allocator")]
        if row.get("failed") or not numbers:
            lines.append([row["name"], *told, "failed", "", "", "", str(row.get("failed", ""))])
            continue
        middle = median(numbers)
        if result["unit"]:
            shown, speed = f"{1e3 * middle:,.0f} ms", f"{result['amount'] / middle:,.0f}"
        else:
            shown, speed = f"{middle:,.{2 if middle < 100 else 0}f} {row.get('unit', 's')}", ""
        mfu = f"{100 * flops / middle / peak:.0f} %" if flops and peak else ""
        beside = row.get("reference", reference)
        ratio = "" if numbers == beside else ratio_text(beside, numbers)
        note = f"±{100 * spread(numbers):.0f} %" + (f"; {row['note']}" if row.get("note") else "")
        lines.append([row["name"], *told, shown, speed, mfu, ratio, note])
    return lines


def ratio_text(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """How many times as fast we are."""
    return f"{paired_ratio(ours, theirs):.2f}" if ours else ""


def headings(result: Result) -> list[str]:
    """Of the columns of `work_rows`."""
    unit = result["unit"] or ""
    return [
        "",
        "precision",
        "compiled",
        "allocator",
        result.get("measure", "a step"),
        unit,
        "MFU",
        "ratio",
        "",
    ]


def markdown(results: Mapping[str, Result], machine: Mapping[str, Any]) -> str:
    """All works as Markdown."""
    lines = [
        f"{machine['date']}, {machine['processor']}, {machine['threads']} threads; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        + f". Products of large matrices reach {machine['peak_fp32'] / 1e9:,.0f} GFLOP/s in fp32 and "
        f"{machine['peak_bf16'] / 1e9:,.0f} in bf16; MFU is of the latter. Medians; the ratio is that of our "
        "speed to theirs, the median over rounds; ± is half the range.",
    ]
    for name, result in results.items():
        columns = headings(result)
        used = [i for i, _ in enumerate(columns) if any(row[i] for row in work_rows(result))]
        lines += ["", f"### {result['title']}", "", f"`python scripts/bench {name}`; {result['how']}", ""]
        lines.append(f"| {' | '.join(columns[i] for i in used)} |")
        lines.append("|" + "---|" * len(used))
        lines += [f"| {' | '.join(row[i] for i in used)} |" for row in work_rows(result)]
    return "\n".join(lines)


def put_between(text: str, inner: str) -> str:
    """The text with what stands between the two comments replaced.

    Raises:
        ValueError: they are not there.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"there must be one line {BEGIN} and one line {END}")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{inner}\n{END}{rest.partition(END)[2]}"
