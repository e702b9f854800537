"""Packed rows as a human reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from llmtrain.data.batch import IGNORE
from llmtrain.data.loader import Rows
from llmtrain.data.mixture import MixedRow, MixedRows
from llmtrain.data.packed import PackedRows
from llmtrain.data.rows import Row, StreamRows
from llmtrain.data.tokenizer import Tokenizer

WIDTH = 240
"""Characters of a long document's text that are shown, half from each end."""

MARKED_WIDTH = 1000
"""Characters that are shown of a text with masks in it."""

Renderer = Callable[[Tokenizer, Any, Any], tuple[int, list[str]]]
"""(tokenizer, rows, row) -> real tokens in the row; what to say of its labels, then a line for each part."""


def render_rows(tokenizer: Tokenizer, rows: Rows, n: int) -> str:
    """The first `n` rows of the stream, decoded, and the share of real tokens in them."""
    render = renderer(rows)
    paragraphs = [f"{rows.rows_per_epoch} rows of {rows.sequence_length} tokens an epoch"]
    total = 0
    for i in range(n):
        real, (labels, *lines) = render(tokenizer, rows, rows.read(i))
        total += real
        first = f"row {i}: real tokens {_share(real, rows.sequence_length)}, {labels}"
        if real < rows.sequence_length:
            lines.append(f"padding, tokens {real}-{rows.sequence_length - 1}, labels 0")
        paragraphs.append("\n  ".join([first, *lines]))
    paragraphs.append(f"real tokens in these rows: {_share(total, n * rows.sequence_length)}")
    return "\n\n".join(paragraphs)


def render_stream(tokenizer: Tokenizer, rows: StreamRows, row: Row) -> tuple[int, list[str]]:
    """A row of joined documents.

    `|end|` is the end token; `|cut|` shows that the document goes on in another row; `|no label|` that its
    last token predicts nothing.
    """
    labels = row.has_label(rows.isolate_documents)
    lines = [f"labels {int(labels.sum())}, documents {'isolated' if rows.isolate_documents else 'joined'}"]
    for start, end in _runs(row.documents[: row.length]):
        ids = row.ids[start:end]
        text = _short(repr(tokenizer.decode(ids)), WIDTH) + (
            "|end|" if ids[-1] == tokenizer.end_id else "|cut|"
        )
        mark = "" if labels[end - 1] else "|no label|"
        count = int(labels[start:end].sum())
        lines.append(
            f"document {row.documents[start]}, tokens {start}-{end - 1}, labels {count}: {text}{mark}"
        )
    return row.length, lines


def render_packed(tokenizer: Tokenizer, rows: PackedRows, row: Any) -> tuple[int, list[str]]:
    """A row of samples with what is to be predicted; see `render_batch`."""
    return render_batch(tokenizer, rows, row, rows.label_names)


def render_batch(
    tokenizer: Tokenizer, rows: Rows, row: Any, label_names: tuple[str, ...] = ()
) -> tuple[int, list[str]]:
    """Any row, as the model gets it.

    `[x:y]` means that the input has x where y is to be predicted; each segment of a pair has a line.
    """
    batch = rows.collate([row])
    real, ids = batch.num_tokens or 0, batch.ids[0].numpy()
    labels = np.full(len(ids), IGNORE)
    if batch.labels is not None:
        places = np.arange(len(ids)) if batch.selected is None else batch.selected[0].numpy()
        has_label = batch.labels[0].numpy() != IGNORE
        labels[places[has_label]] = batch.labels[0].numpy()[has_label]
    documents = np.zeros(len(ids)) if batch.documents is None else batch.documents[0].numpy()
    segments = np.zeros(len(ids)) if batch.segments is None else batch.segments[0].numpy()
    lines = [f"labels {int((labels != IGNORE).sum())}"]
    for number, (start, end) in enumerate(_runs(documents[:real])):
        count = int((labels[start:end] != IGNORE).sum())
        told = ""
        if batch.sample_labels is not None:
            label = int(batch.sample_labels[0, number])
            told = f", label {label}" + (f" ({label_names[label]})" if label_names else "")
        lines.append(f"sample {number}, tokens {start}-{end - 1}, labels {count}{told}")
        for first, last in _runs(segments[start:end]):
            part = slice(start + first, start + last)
            lines.append("  " + _short(_marked(tokenizer, ids[part], labels[part]), MARKED_WIDTH))
    return real, lines


def render_mixed(tokenizer: Tokenizer, rows: MixedRows, row: MixedRow) -> tuple[int, list[str]]:
    """A row of a mixture, as its source shows it."""
    source = rows.sources[row.source]
    real, (labels, *lines) = renderer(source)(tokenizer, source, row.row)
    return real, [f"source {rows.names[row.source]}, {labels}", *lines]


def renderer(rows: Rows) -> Renderer:
    """How a kind of rows is shown."""
    return next((RENDERERS[kind] for kind in type(rows).__mro__ if kind in RENDERERS), render_batch)


RENDERERS: dict[type, Renderer] = {
    StreamRows: render_stream,
    PackedRows: render_packed,
    MixedRows: render_mixed,
}
"""How rows of each kind are shown; others as batches."""


def _marked(tokenizer: Tokenizer, ids: np.ndarray, labels: np.ndarray) -> str:
    """Text of a part of a sample with its labels in it."""
    parts = []
    for i, label in zip(ids.tolist(), labels.tolist(), strict=True):
        original = i if label == IGNORE else label
        text = _token(tokenizer, i)
        if label != IGNORE:
            text = f"[{text}:{_token(tokenizer, label)}]"
        parts.append(text if tokenizer.continues_word[original] else " " + text)
    return " ".join("".join(parts).split())


def _token(tokenizer: Tokenizer, i: int) -> str:
    """Text of one token; special ones by name."""
    if i == tokenizer.mask_id:
        return "MASK"
    token = tokenizer.inner.id_to_token(i)
    return (tokenizer.decode([i]).strip() or str(token)).removeprefix("##")


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Start and end of each run of equal values."""
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1)).tolist()
    return list(zip(starts, [*starts, len(values)][1:], strict=True))


def _share(part: int, of: int) -> str:
    return f"{part} of {of} ({100 * part / max(of, 1):.1f} %)"


def _short(text: str, width: int) -> str:
    """A text shortened in the middle."""
    return text if len(text) <= width else f"{text[: width // 2]} [...] {text[-width // 2 :]}"
