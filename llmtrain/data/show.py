"""Packed rows as a human reads them."""

from __future__ import annotations

import numpy as np

from llmtrain.data.prepare import Prepared
from llmtrain.data.rows import Row, StreamRows

WIDTH = 240
"""Characters of a long document's text that are shown, half from each end."""


def render_rows(prepared: Prepared, rows: StreamRows, n: int, isolate_documents: bool) -> str:
    """The first `n` rows of the stream, decoded.

    For each row: how many of its tokens are real and carry a label, then a line for each document in it
    with its tokens, its labels and its text. `|end|` is the end token; `|cut|` shows that the document
    goes on in another row; `|no label|` that its last token predicts nothing.
    """
    head = (
        f"{rows.rows_per_epoch} rows of {rows.sequence_length} tokens an epoch, "
        f"documents {'isolated' if isolate_documents else 'joined'}"
    )
    shown = [rows.read(i) for i in range(n)]
    real = sum(row.length for row in shown)
    lines = [head, *(_render(prepared, rows, row, i, isolate_documents) for i, row in enumerate(shown))]
    lines.append(f"real tokens in these rows: {_share(real, n * rows.sequence_length)}")
    return "\n\n".join(lines)


def _share(part: int, of: int) -> str:
    return f"{part} of {of} ({100 * part / max(of, 1):.1f} %)"


def _render(prepared: Prepared, rows: StreamRows, row: Row, number: int, isolate_documents: bool) -> str:
    labels = row.has_label(isolate_documents)
    lines = [
        f"row {number}: real tokens {_share(row.length, rows.sequence_length)}, labels {int(labels.sum())}"
    ]
    documents = row.documents[: row.length]
    starts = np.flatnonzero(np.diff(documents, prepend=-1))
    for start, end in zip(starts, [*starts[1:], row.length], strict=True):
        count = int(labels[start:end].sum())
        text = _text(prepared, row.ids[start:end])
        mark = "" if labels[end - 1] else "|no label|"
        lines.append(f"  document {documents[start]}, tokens {start}-{end - 1}, labels {count}: {text}{mark}")
    if row.length < rows.sequence_length:
        lines.append(f"  padding, tokens {row.length}-{rows.sequence_length - 1}, labels 0")
    return "\n".join(lines)


def _text(prepared: Prepared, ids: np.ndarray) -> str:
    """A document's text on one line, shortened in the middle."""
    tokenizer = prepared.tokenizer
    text = repr(tokenizer.decode(ids))
    if len(text) > WIDTH:
        text = f"{text[: WIDTH // 2]} [...] {text[-WIDTH // 2 :]}"
    return text + ("|end|" if ids[-1] == tokenizer.end_id else "|cut|")
