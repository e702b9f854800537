"""What a preparation tells: counts, lengths, and what cleaning did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from llmtrain.data.store import TokenStore
from llmtrain.data.writer import BAD_ROWS


@dataclass
class PrepareReport:
    """What came out of a preparation. Numbers are of the training source, before the split.

    Attributes:
        documents: documents in the store.
        tokens: tokens in the store, end tokens included.
        bytes: UTF-8 bytes of text.
        bytes_per_token: bytes of text per token.
        empty: documents without any text; they are left out.
        skipped: rows that could not be read (`data.on_error=skip`).
        unknown: tokens that stand for characters or words that the tokenizer does not know.
        seconds: time that it all took.
        cached: whether the store was there already.
        path: directory of the store; "" for a mixture.
        vocab_size: of the tokenizer.
        train_tokens: tokens in the training view.
        validation_tokens: tokens in the validation view, 0 where there is none.
        read: documents and rows that were read.
        removed: documents that cleaning left out, by rule.
        changed: places that cleaning changed, by rule.
        examples: a few of each rule.
        lengths: how many documents have from 2^k to 2^(k+1) - 1 tokens, by that smallest number.
        round_trip: share of the first documents whose ids give back the very text, or None.
        bad_rows: file of the rows that could not be read, where there are some.
        sources: reports of the sources of a mixture, by name.
        warnings: what a human should know, one sentence each.
    """

    documents: int
    tokens: int
    bytes: int
    bytes_per_token: float
    empty: int
    skipped: int
    unknown: int
    seconds: float
    cached: bool
    path: str
    vocab_size: int
    train_tokens: int
    validation_tokens: int
    read: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    round_trip: float | None = None
    bad_rows: str | None = None
    sources: dict[str, PrepareReport] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """The report as JSON holds it, without what belongs to this call of `prepare`."""
        values = asdict(self)
        for name in ("seconds", "cached", "train_tokens", "validation_tokens", "sources", "warnings"):
            del values[name]
        return values


def store_report(store: TokenStore, cached: bool, seconds: float) -> PrepareReport:
    """What a store says about itself; tokens of the views are left at 0."""
    manifest = store.manifest
    counts, removed = manifest["counts"], manifest.get("removed", {})
    exact, checked = manifest.get("round_trip", (0, 0))
    bad_rows = store.path / BAD_ROWS
    return PrepareReport(
        documents=store.num_documents,
        tokens=store.num_tokens,
        bytes=manifest["bytes"],
        bytes_per_token=manifest["bytes"] / store.num_tokens,
        empty=counts.get("empty", 0),
        skipped=counts.get("skipped", 0),
        unknown=counts.get("unknown", 0),
        seconds=seconds,
        cached=cached,
        path=str(store.path),
        vocab_size=manifest["vocab_size"],
        train_tokens=0,
        validation_tokens=0,
        read=store.num_documents + counts.get("empty", 0) + counts.get("skipped", 0) + sum(removed.values()),
        removed=removed,
        changed=manifest.get("changed", {}),
        examples=manifest.get("examples", {}),
        lengths=length_histogram(store),
        round_trip=exact / checked if checked else None,
        bad_rows=str(bad_rows) if bad_rows.exists() else None,
    )


def length_histogram(store: TokenStore) -> dict[int, int]:
    """Documents by length in tokens, the end token counted: number from 2^k to 2^(k+1) - 1, by 2^k."""
    lengths = np.diff(np.asarray(store.ends), prepend=0)
    powers, counts = np.unique(np.frexp(lengths)[1] - 1, return_counts=True)
    return {1 << int(power): int(count) for power, count in zip(powers, counts, strict=True)}


def join_reports(reports: Mapping[str, PrepareReport], seconds: float) -> PrepareReport:
    """The report of a mixture: sums of its sources, and the sources themselves."""
    every = list(reports.values())

    def total(name: str) -> int:
        return sum(getattr(report, name) for report in every)

    return PrepareReport(
        documents=total("documents"),
        tokens=total("tokens"),
        bytes=total("bytes"),
        empty=total("empty"),
        skipped=total("skipped"),
        unknown=total("unknown"),
        bytes_per_token=total("bytes") / total("tokens"),
        seconds=seconds,
        cached=all(report.cached for report in every),
        path="",
        vocab_size=every[0].vocab_size,
        train_tokens=total("train_tokens"),
        validation_tokens=total("validation_tokens"),
        read=total("read"),
        sources=dict(reports),
        warnings=[warning for report in every for warning in report.warnings],
    )


def store_warnings(store: TokenStore, name: str) -> list[str]:
    """What was left out or not understood, in sentences."""
    counts, total = store.manifest["counts"], store.num_tokens
    lines = []
    if skipped := counts.get("skipped", 0):
        examples = "; ".join(store.manifest["messages"])
        lines.append(f"{name}: {skipped} unreadable rows were skipped, the first: {examples}")
    if empty := counts.get("empty", 0):
        lines.append(f"{name}: {empty} empty documents were left out")
    if unknown := counts.get("unknown", 0):
        lines.append(f"{name}: {unknown} of {total} tokens are unknown to the tokenizer")
    if lost := counts.get("lost", 0):
        lines.append(f"{name}: {lost} documents with text gave no token at all")
    return lines
