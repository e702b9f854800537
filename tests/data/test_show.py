from __future__ import annotations

import re

import numpy as np
import torch

from llmtrain.data.batch import Batch
from llmtrain.data.mask import Masker
from llmtrain.data.pairs import PairRows
from llmtrain.data.show import render_rows
from llmtrain.data.spans import SpanRows
from llmtrain.data.store import whole
from llmtrain.schema.objective import MLMConfig
from tests.helpers.text import story, word_tokenizer


def test_masks_and_labels_are_shown(make_store) -> None:
    store = make_store(["bas be bi.", "bo buing ca ce"], tokenizer=word_tokenizer())
    tokenizer = store.tokenizer
    config = MLMConfig(mask_rate=0.5, replace_rate=0.5, random_rate=0.25)
    masker = Masker(config, tokenizer, sequence_length=16, seed=5)
    rows = SpanRows(whole(store), sequence_length=16, seed=0, shuffle=False, masker=masker)
    text = render_rows(tokenizer, rows, 1)
    batch = rows.collate([rows.read(0)])
    count = int((batch.labels != -100).sum())
    assert "1 rows of 16 tokens an epoch" in text
    assert f"row 0: real tokens 14 of 16 (87.5 %), labels {count}\n" in text
    assert re.search(r"  sample 0, tokens 0-6, labels \d\n    \[CLS\] .* \[SEP\]\n", text)
    assert "padding, tokens 14-15, labels 0" in text
    assert "real tokens in these rows: 14 of 16 (87.5 %)" in text
    mark = r"\[([^][: ]+):([^][: ]+)\]"
    marks = re.findall(mark, text)
    assert len(marks) == count
    # what stands in the input or, where that is shown, behind it, is the text
    original = re.sub(mark, r"\2", text)
    assert "[CLS] bas be bi . [SEP]" in original
    assert "[CLS] bo buing ca ce [SEP]" in original
    masked = [label for shown, label in marks if shown == "MASK"]
    assert len(masked) == int((batch.ids == tokenizer.mask_id).sum())


def test_pairs_are_shown_by_segment(make_store) -> None:
    store = make_store([story(i, 30) for i in range(3)], tokenizer=word_tokenizer())
    masker = Masker(MLMConfig(), store.tokenizer, sequence_length=40, seed=5)
    rows = PairRows(
        whole(store),
        sequence_length=40,
        seed=0,
        shuffle=True,
        masker=masker,
        random_next_rate=0.5,
        short_rate=0.5,
    )
    text = render_rows(store.tokenizer, rows, 8)
    assert "label 0 (b follows a)" in text
    assert "label 1 (b is random)" in text
    samples = sum(len(rows.read(i).samples) for i in range(8))
    heads = re.findall(r"\n  sample \d+, tokens \d+-\d+, labels \d+, label [01] \(.*\)\n", text)
    assert len(heads) == samples
    assert len(re.findall(r"\n    \[CLS\] .* \[SEP\]\n    .* \[SEP\]", text)) == samples


class OddRows:
    """Rows that are known only by the protocol."""

    sequence_length = 4
    rows_per_epoch = 2

    def read(self, global_row: int) -> int:
        return global_row

    def collate(self, rows: list[int]) -> Batch:
        return Batch(torch.tensor([[5, 6, 7, 0]] * len(rows)), num_tokens=3)

    def filler(self) -> int:
        return 0

    def limit(self, row: int, tokens: int) -> int:
        return row


def test_rows_of_any_kind_are_shown() -> None:
    text = render_rows(word_tokenizer(), OddRows(), 1)
    assert "row 0: real tokens 3 of 4 (75.0 %), labels 0\n" in text
    assert "\n  sample 0, tokens 0-2, labels 0\n    ba be bi\n  padding, tokens 3-3" in text


def test_long_texts_are_shortened(make_store) -> None:
    store = make_store([story(0, 300)], tokenizer=word_tokenizer())
    masker = Masker(MLMConfig(), store.tokenizer, sequence_length=4000, seed=5)
    rows = SpanRows(whole(store), sequence_length=4000, seed=0, shuffle=False, masker=masker)
    text = render_rows(store.tokenizer, rows, 1)
    assert " [...] " in text
    assert max(map(len, text.splitlines())) < 1100
    assert np.array(rows.read(0).samples[0].ids).size > 1100
