"""The loop that draws tokens: read what is new, choose the next token of each row, drop rows that end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from llmtrain.generate.sampler import choose
from llmtrain.generate.stream import TextStream
from llmtrain.model.assembled import Assembled
from llmtrain.model.cache import KVCache
from llmtrain.schema.fields import SampleConfig
from llmtrain.utils.seed import derive_seed


class Finish(str, Enum):
    """Why a text ends."""

    end = "end"
    """The model wrote a token that ends a text."""

    stop = "stop"
    """A stop string."""

    length = "length"
    """It has as many tokens as were asked for."""


class Row:
    """A text in the making.

    Args:
        prompt: tokens before it, at least one.
        number: of the sample among those of its prompt; with the seed it fixes what is drawn.
        text: its stream.
        config: how tokens are drawn.
        stop_ids: tokens that end it; they are no part of it.
        vocab_size: V.

    Attributes:
        ids: its tokens.
        finish: why it has ended, or None.
    """

    def __init__(
        self,
        prompt: list[int],
        number: int,
        text: TextStream,
        config: SampleConfig,
        stop_ids: Collection[int],
        vocab_size: int,
    ) -> None:
        self.prompt, self.text = prompt, text
        self.ids: list[int] = []
        self.finish: Finish | None = None
        self.generator = torch.Generator().manual_seed(derive_seed(config.seed, "sample", number))
        self.seen: Tensor | None = None
        if config.repetition_penalty != 1:
            self.seen = torch.zeros(vocab_size, dtype=torch.bool)
            self.seen[self.prompt] = True
        self._stop_ids, self._length = stop_ids, config.max_new_tokens

    def add(self, token: int) -> str:
        """The next token; returns the text that has become certain by it."""
        if token in self._stop_ids:
            self.finish = Finish.end
            return self.text.close()
        self.ids.append(token)
        if self.seen is not None:
            self.seen[token] = True
        self.text.add(token)
        if self.text.stopped:
            self.finish = Finish.stop
        elif len(self.ids) == self._length:
            self.finish = Finish.length
        return self.text.take() if self.finish is None else self.text.close()

    def last(self, count: int) -> list[int]:
        """The last tokens of prompt and text."""
        return (self.prompt + self.ids)[-count:] if count else []


@dataclass
class Memory:
    """What a model has read of a conversation, so that its next turn need not be read from the start.

    Attributes:
        ids: the tokens in the cache.
        cache: of one row.
    """

    ids: list[int] = field(default_factory=list)
    cache: KVCache = field(default_factory=lambda: KVCache(1))

    def recall(self, prompt: Sequence[int]) -> int:
        """Keep what a prompt begins with; returns its number of tokens, fewer than the prompt has."""
        same = 0
        for known, wanted in zip(self.ids, prompt[:-1], strict=False):
            if known != wanted:
                break
            same += 1
        self.cache.forget(same)
        self.ids = list(prompt)
        return same


class Decoder:
    """A model that reads tokens and says what may follow.

    Args:
        model: a causal language model, in evaluation mode.
        max_positions: tokens that it can look back on.
        device: of the model.
    """

    def __init__(self, model: Assembled, max_positions: int, device: torch.device) -> None:
        self.model, self.max_positions, self.device = model, max_positions, device

    @property
    def window(self) -> int:
        """Tokens that are kept where a text outgrows the model: half of what it can look back on.

        They are read anew, as at the start of a text. To drop one token at a time would mean to read all
        others anew each time, for what is kept of a token depends on those before it.
        """
        return max(self.max_positions // 2, 1)

    @torch.inference_mode()
    def write(
        self,
        rows: Sequence[Row],
        config: SampleConfig,
        poll: Callable[[], None] = lambda: None,
        memory: Memory | None = None,
    ) -> Iterator[tuple[Row, str]]:
        """Draw tokens until every row has ended.

        What a row becomes does not depend on the others, but for rounding.

        Args:
            rows: those of one prompt stand together.
            config: how tokens are drawn.
            poll: called before each token; may raise to stop.
            memory: of what was read before, for a single row.

        Yields:
            row and text that was added to it, as it becomes certain; the last time it may be nothing.
        """
        poll()
        cache, logits_BV = self._read_prompts(rows, memory)
        alive = list(rows)
        while True:
            tokens = choose(logits_BV, config, [row.seen for row in alive], [row.generator for row in alive])
            for row, token in zip(alive, tokens, strict=True):
                piece = row.add(token)
                if piece or row.finish is not None:
                    yield row, piece
            left = [place for place, row in enumerate(alive) if row.finish is None]
            if not left:
                return
            poll()
            if len(left) < len(alive):
                alive = [alive[place] for place in left]
                cache.select(left)
            self._make_room(cache, alive, memory)
            newest = [row.ids[-1] for row in alive]
            if memory is not None and memory.ids:
                memory.ids += newest
            logits_BV = self._logits(torch.tensor(newest, device=self.device)[:, None], cache)

    def _read_prompts(self, rows: Sequence[Row], memory: Memory | None) -> tuple[KVCache, Tensor]:
        """The cache of all rows, and scores of their first tokens (B, V); each prompt is read once."""
        prompts: list[list[int]] = []
        of_row = []
        for row in rows:
            if not prompts or prompts[-1] is not row.prompt:
                prompts.append(row.prompt)
            of_row.append(len(prompts) - 1)
        seen = [one if len(one) <= self.max_positions else one[-self.window :] for one in prompts]
        cache, known = KVCache(len(seen)), 0
        if memory is not None:
            assert len(rows) == 1, "a memory is of one conversation"
            cache, known = memory.cache, memory.recall(seen[0])
        counts = [len(one) - known for one in seen]
        ids_BT = torch.zeros(len(seen), max(counts), dtype=torch.int64)
        for place, one in enumerate(seen):
            ids_BT[place, : counts[place]] = torch.tensor(one[known:])
        logits_BV = self._logits(ids_BT.to(self.device), cache, counts)
        if len(seen) < len(rows):
            cache.select(of_row)
            logits_BV = logits_BV[torch.tensor(of_row, device=self.device)]
        return cache, logits_BV

    def _logits(self, ids_BT: Tensor, cache: KVCache, counts: Sequence[int] | None = None) -> Tensor:
        """Scores of what follows the last token of each row, (B, V)."""
        batch = cache.read(ids_BT, counts)
        hidden_BTD = self.model.backbone(batch, cache)
        if counts is not None and len(set(counts)) > 1:
            last = torch.tensor(counts, device=self.device) - 1
            hidden_B1D = hidden_BTD[torch.arange(len(counts), device=self.device), last][:, None]
        else:
            hidden_B1D = hidden_BTD[:, -1:]
        return self.model.head.predict(hidden_B1D, batch)[:, 0]

    def _make_room(self, cache: KVCache, rows: Sequence[Row], memory: Memory | None) -> None:
        """Read the last tokens of rows anew that have no room for a further one."""
        for place, row in enumerate(rows):
            if cache.lengths[place] < self.max_positions:
                continue
            if memory is not None:
                memory.ids = []  # the places of the tokens are others from now on
            kept = row.last(self.window)[:-1]  # the newest is read with those of the other rows
            fresh = KVCache(1)
            if kept:
                self.model.backbone(fresh.read(torch.tensor([kept], device=self.device)), fresh)
            cache.replace(place, fresh)
