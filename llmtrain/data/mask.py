"""Which tokens are to be predicted, and what stands for them in the input (masked language modelling)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.samples import PackedRow, Sample
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.words import Words, read_word_list
from llmtrain.schema.objective import Masking, MLMConfig
from llmtrain.utils.seed import derive_seed, generator

SPARE = {Masking.tokens: 1, Masking.words: 3, Masking.spans: 3}
"""Places for labels in a row beyond its share: the number is rounded up or down by chance, in each sample,
and a whole word may exceed it. With these, less than one label in a hundred is given up."""

TRIES = 4
"""Spans that are drawn at most for each token to be masked: most of a sample may be covered already."""


class Masker:
    """Masks batches of rows. What is masked in a sample depends on (seed, epoch, its number) only.

    Of each sample `mask_rate` of the tokens are chosen, rounded up or down by chance, at least one, never a
    special or unknown token; `replace_rate` of them become the mask token, `random_rate` any ordinary token,
    the rest stay (Devlin et al. 2019, section 3.1). That is decided for each token, or for each span as a
    whole (Joshi et al. 2020, section 3.1).

    Args:
        config: rates and what is masked together.
        tokenizer: with a mask token.
        sequence_length: T.
        seed: of all draws.

    Attributes:
        num_selected: M, places for labels in a row. Words or spans beyond it are left as they are, which of
            them is drawn.

    Raises:
        ConfigError: the word list cannot be read.
    """

    def __init__(self, config: MLMConfig, tokenizer: Tokenizer, *, sequence_length: int, seed: int) -> None:
        assert tokenizer.mask_id is not None
        spare = SPARE[config.masking]
        self.num_selected = min(math.ceil(config.mask_rate * sequence_length) + spare, sequence_length)
        self._config = config
        self._seed = seed
        self._mask_id = tokenizer.mask_id
        self._ordinary = tokenizer.ordinary_ids
        self._can_mask = np.zeros(tokenizer.vocab_size, bool)
        self._can_mask[self._ordinary] = True
        self._words: Words | None = None
        if config.masking is not Masking.tokens:
            phrases = tokenizer.encode_batch(read_word_list(config.word_list)) if config.word_list else []
            self._words = Words(tokenizer.continues_word, phrases)
        lengths = np.arange(config.span_limit)
        share = (1 - config.span_rate) ** lengths
        self._span_lengths = np.cumsum(share)[:-1] / share.sum()

    def __call__(self, batch: Batch, rows: Sequence[PackedRow]) -> None:
        """Mask a batch in place.

        Args:
            batch: of `pack_batch`; gets other ids, and selected and labels (B, M), the places in ascending
                order and unused ones (0, IGNORE) at the end.
            rows: what it was made of.
        """
        shape = (len(rows), self.num_selected)
        selected, labels = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
        ids = batch.ids.numpy()
        for i, row in enumerate(rows):
            places, masked = self.mask_row(row)
            selected[i, : len(places)] = places
            labels[i, : len(places)] = ids[i, places]
            ids[i, places] = masked
        batch.selected, batch.labels = torch.from_numpy(selected), torch.from_numpy(labels)

    def mask_row(self, row: PackedRow) -> tuple[np.ndarray, np.ndarray]:
        """Places in a row that are to be predicted, and what stands there in the input, at most (M,) each."""
        key = derive_seed(self._seed, "mask", row.epoch)
        places, masked, groups = [], [], []
        start = num_groups = 0
        for sample in row.samples:
            rng = np.random.Generator(np.random.Philox(key=np.array([key, sample.number], np.uint64)))
            chosen, group = self._choose(sample, rng)
            masked.append(self._replace(sample.ids[chosen], group, rng))
            places.append(chosen + start)
            groups.append(group + num_groups)
            start += len(sample.ids)
            num_groups += len(sample.ids)
        if not places:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        joined, inputs, together = map(np.concatenate, (places, masked, groups))
        if len(joined) > self.num_selected:
            kept = self._keep(together, generator(self._seed, "kept", row.epoch, row.samples[0].number))
            joined, inputs = joined[kept], inputs[kept]
        return joined, inputs

    def _keep(self, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Which labels of a row with too many are kept: whole groups in random order, (n,) bool."""
        names, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        order = rng.permutation(len(names))
        kept = np.zeros(len(names), bool)
        kept[order[np.cumsum(sizes[order]) <= self.num_selected]] = True
        return kept[inverse]

    def _choose(self, sample: Sample, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Places to mask, ascending, and for each the number of what it is masked together with."""
        possible = self._can_mask[sample.ids]
        places = np.flatnonzero(possible)
        if not len(places):
            return places, places
        exact = self._config.mask_rate * len(places)
        budget = max(int(exact + rng.random()), 1)
        if self._words is None:
            word = np.arange(len(places))
        else:
            starts = self._words.starts(sample.ids)
            starts[1:] |= ~possible[:-1]
            word = np.cumsum(starts[places]) - 1
        if self._config.masking is Masking.spans:
            group = self._draw_spans(places, word, budget, rng)[word]
        else:
            group = _draw_words(np.bincount(word), budget, rng)[word]
        chosen = group >= 0
        return places[chosen], group[chosen]

    def _draw_spans(
        self, places: np.ndarray, word: np.ndarray, budget: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Choose runs of words with geometric lengths until `budget` tokens are in them.

        Returns:
            (words,) number of each word's span, or -1.
        """
        sizes = np.bincount(word).tolist()
        is_first = np.append(True, word[1:] != word[:-1])
        # something that is never masked stands before the word: no run goes on across it
        breaks = np.append(True, places[1:] - places[:-1] > 1)[is_first].tolist()
        tries = TRIES * budget
        lengths = np.searchsorted(self._span_lengths, rng.random(tries), side="right") + 1
        starts = rng.integers(len(sizes), size=tries)
        span, number, left = [-1] * len(sizes), 0, budget
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            for i in range(start, min(start + length, len(sizes))):
                if span[i] >= 0 or (breaks[i] and i > start):
                    break
                if sizes[i] > left and left < budget and rng.random() * sizes[i] >= left:
                    return np.array(span)
                span[i] = number
                left -= sizes[i]
                if left <= 0:
                    return np.array(span)
            number += span[start] == number
        return np.array(span)

    def _replace(self, ids: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What stands in the input for tokens that are to be predicted, (n,) int64."""
        config = self._config
        if config.masking is Masking.spans:
            draw = rng.random(groups.max(initial=-1) + 1)[groups]
        else:
            draw = rng.random(len(ids))
        other = self._ordinary[rng.integers(len(self._ordinary), size=len(ids))]
        changed = np.where(draw < config.replace_rate + config.random_rate, other, ids)
        return np.where(draw < config.replace_rate, self._mask_id, changed)


def _draw_words(sizes: np.ndarray, budget: int, rng: np.random.Generator) -> np.ndarray:
    """Choose words in random order until they have `budget` tokens.

    The word that would exceed it is taken with the chance that keeps the mean; the first one always.

    Returns:
        (words,) number of each chosen word, -1 for the others.
    """
    order = rng.permutation(len(sizes))
    total = np.cumsum(sizes[order])
    num = int(np.searchsorted(total, budget, side="right"))
    room = budget - (int(total[num - 1]) if num else 0)
    if num < len(order) and (num == 0 or rng.random() * sizes[order[num]] < room):
        num += 1
    chosen = np.full(len(sizes), -1)
    chosen[order[:num]] = order[:num]
    return chosen
