"""Sample texts during training: what the model writes, or fills in, as it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.loader import Rows
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.engine.watch import Draw
from llmtrain.generate.decode import Row
from llmtrain.generate.sampler import choose
from llmtrain.generate.text import Writer
from llmtrain.model.assembled import Assembled
from llmtrain.model.heads.vocabulary import LanguageModelHead, MaskedHead
from llmtrain.parallel.layout import Layout, Replicated
from llmtrain.schema.fields import LogConfig, SampleConfig
from llmtrain.utils import dist
from llmtrain.utils.errors import ConfigError

MASK = "[MASK]"
"""How a masked token is written in prompts and samples, whatever the tokenizer calls it."""

Texts = list[tuple[str, str]]
"""Prompts, and what follows each."""


def why_no_samples(log: LogConfig, layout: Layout, head: type) -> list[str]:
    """A warning where samples are asked for but cannot be drawn.

    Args:
        log: what is asked for.
        layout: runs the model.
        head: of the whole model; a stage of a pipeline may have none.
    """
    if not log.sample_every:
        return []
    if not issubclass(head, LanguageModelHead | MaskedHead):
        return ["log.sample_every is left out: a model of this task writes no text"]
    degrees = layout.mesh.degrees
    if degrees.tp > 1 or degrees.cp > 1:
        what = "the vocabulary" if degrees.tp > 1 else "each row"
        return [f"log.sample_every is left out: no process has the scores of all of {what} ({degrees})"]
    return []


def drawn(draw: Draw, layout: Layout, eager: Callable[[], AbstractContextManager[object]]) -> Texts:
    """Samples of the model as it stands; collective where no process has the whole model.

    Nothing random of the training is touched: generators are put back, and samples have their own.
    """
    if isinstance(layout, Replicated) and dist.rank() != 0:
        return []
    was_training = layout.model.training
    layout.model.eval()
    try:
        with eager(), torch.random.fork_rng(devices=[]):
            return list(draw())
    finally:
        layout.model.train(was_training)


@contextmanager
def force_eager() -> Iterator[None]:
    """Leave compiled blocks alone: texts that grow would have them compiled for length after length."""
    with torch.compiler.set_stance("force_eager"):
        yield


def make_draw(
    log: LogConfig, layout: Layout, head: type, tokenizer: Tokenizer, rows: Rows, max_positions: int
) -> Callable[[], Texts]:
    """What draws the samples: it goes on with prompts, or fills masks.

    Raises:
        ConfigError: a prompt for a model of masked tokens has no mask.
    """
    if issubclass(head, MaskedHead):
        return fill_masks(log, layout, tokenizer, rows)
    assert isinstance(layout.model, Assembled)
    config = SampleConfig(num_samples=1, max_new_tokens=log.sample_tokens)
    writer = Writer(layout.model, tokenizer, max_positions, layout.device)
    prompts = log.sample_prompts or [""]
    whole = isinstance(layout, Replicated)

    def draw() -> Texts:
        ids = [writer.prompt_ids(prompt) for prompt in prompts]
        if whole:
            with layout.autocast():
                texts = [sample.text for sample in writer.write(ids, config)]
        else:
            written = [writer.row(one, 0, config) for one in ids]
            texts = write_together(written, config, layout, rows.sequence_length)
        return list(zip(prompts, texts, strict=True))

    return draw


def write_together(rows: Sequence[Row], config: SampleConfig, layout: Layout, length: int) -> list[str]:
    """The texts of some rows where the model is spread over processes. Collective.

    All processes read the same tokens, in batches of one shape, and the first that has the scores chooses
    for all. Nothing is kept from token to token: it is slow, and simple.

    Args:
        rows: to be written.
        config: how tokens are drawn.
        layout: runs the model.
        length: T; longer texts are cut at their start.
    """
    leader = layout.mesh.leaders[0]
    while alive := [row for row in rows if row.finish is None]:
        last = [row.last(length) for row in rows]
        ids_BT = torch.zeros(len(rows), length, dtype=torch.int64)
        for place, one in enumerate(last):
            ids_BT[place, : len(one)] = torch.tensor(one)
        ends = torch.tensor([len(one) - 1 for one in last])
        scores_BV = measure(layout, Batch(ids_BT, labels=torch.full_like(ids_BT, IGNORE)), at(ends))
        tokens: list[int] = []
        if layout.mesh.rank == leader:
            assert scores_BV is not None
            kept = scores_BV[[place for place, row in enumerate(rows) if row.finish is None]]
            tokens = choose(kept, config, [row.seen for row in alive], [row.generator for row in alive])
        for row, token in zip(alive, dist.broadcast_json(tokens, leader), strict=True):
            row.add(token)
    return [row.text.text for row in rows]


def at(ends_B: Tensor) -> Callable[[Tensor, Batch], Tensor]:
    """Keeps the scores of one position of each row."""
    return lambda scores_BTV, batch: scores_BTV[torch.arange(len(ends_B)), ends_B.to(scores_BTV.device)]


def measure(layout: Layout, batch: Batch, output: Callable[[Tensor, Batch], Tensor]) -> Tensor | None:
    """What is kept of the scores for a batch, on the CPU; None where another process has them."""
    _, kept = layout.measure(batch, output)
    return None if kept is None else kept.float().cpu()


def fill_masks(log: LogConfig, layout: Layout, tokenizer: Tokenizer, rows: Rows) -> Callable[[], Texts]:
    """Fills the masks of the prompts, or of the first row of the text that is learned from.

    Raises:
        ConfigError: a prompt has no mask.
    """
    for prompt in log.sample_prompts:
        if MASK not in prompt:
            raise ConfigError(
                f"the prompt {prompt!r} has no {MASK} to fill",
                "log.sample_prompts",
                f"write {MASK} where the model is to say a word",
            )
    batches = [prompt_batch(prompt, tokenizer) for prompt in log.sample_prompts]
    if not batches:
        batches = [rows.collate([rows.limit(rows.read(0), log.sample_tokens)])]
    leader = layout.mesh.leaders[0]

    def draw() -> Texts:
        texts = []
        for batch in batches:
            likeliest = measure(layout, batch, lambda scores, batch: scores.argmax(dim=-1).float())
            guesses = [] if likeliest is None else likeliest[0].int().tolist()
            if not isinstance(layout, Replicated):
                guesses = dist.broadcast_json(guesses, leader)
            texts.append(filled_text(batch, guesses, tokenizer, known=not log.sample_prompts))
        return texts

    return draw


def prompt_batch(prompt: str, tokenizer: Tokenizer) -> Batch:
    """A text with masks as a batch of one row, framed as in training."""
    assert tokenizer.mask_id is not None
    ids = [tokenizer.cls_id] if tokenizer.cls_id is not None else []
    for number, part in enumerate(prompt.split(MASK)):
        ids += ([tokenizer.mask_id] if number else []) + tokenizer.encode(part).tolist()
    ids += [tokenizer.sep_id] if tokenizer.sep_id is not None else []
    ids_1T = torch.tensor([ids])
    selected_1M = torch.tensor([[place for place, token in enumerate(ids) if token == tokenizer.mask_id]])
    return Batch(
        ids_1T,
        labels=torch.full_like(selected_1M, IGNORE),
        selected=selected_1M,
        segments=torch.zeros_like(ids_1T),
        first=torch.zeros(1, 1, dtype=torch.int64),
        sample_labels=torch.full((1, 1), IGNORE),
    )


def filled_text(batch: Batch, guesses: Sequence[int], tokenizer: Tokenizer, known: bool) -> tuple[str, str]:
    """A row with masks, and with what stands there now: `[guess]`, or `[guess, not truth]`.

    Args:
        batch: of one row.
        guesses: of its selected positions.
        tokenizer: of the tokens.
        known: whether the labels say what is right; without one a position only fills up the row.
    """
    assert batch.selected is not None
    assert batch.labels is not None
    told: dict[int, str] = {}
    places, labels = batch.selected[0].tolist(), batch.labels[0].tolist()
    for place, guess, label in zip(places, guesses, labels, strict=True):
        if known and label == IGNORE:
            continue
        words = [tokenizer.decode([guess]).strip()]
        words += [f"not {tokenizer.decode([label]).strip()}"] if label not in (IGNORE, guess) else []
        told[place] = f"[{', '.join(words)}]"
    ids = batch.ids[0].tolist()
    return with_marks(ids, dict.fromkeys(told, MASK), tokenizer), " -> " + with_marks(ids, told, tokenizer)


def with_marks(ids: Sequence[int], marks: dict[int, str], tokenizer: Tokenizer) -> str:
    """The text of some tokens, with marks in place of a few of them; without frame and padding."""
    frame = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id}
    parts: list[str] = []
    start = 0
    for place in [*sorted(marks), len(ids)]:
        words = [token for token in ids[start:place] if token not in frame]
        parts.append(tokenizer.decode(words).strip())
        parts.append(marks.get(place, ""))
        start = place + 1
    return " ".join(part for part in parts if part)
