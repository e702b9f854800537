"""A language model that is opened to write text, for every verb that does."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from llmtrain.generate.products import use_vector_products
from llmtrain.generate.text import Writer
from llmtrain.model.assembled import Assembled
from llmtrain.model.heads.vocabulary import LanguageModelHead
from llmtrain.parallel.layout import AUTOCAST_DTYPES
from llmtrain.recipe.checkpointed import Checkpointed, open_checkpoint, tell
from llmtrain.recipe.context import Context
from llmtrain.recipe.resolve import resolve_precision
from llmtrain.schema.fields import Precision
from llmtrain.utils.device import pick_device
from llmtrain.utils.errors import ConfigError

CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
"""Characters that steer a terminal, and the signs that stand for them."""


def open_writer(source: str, device: str, precision: Precision, context: Context) -> Writer:
    """The model that `init_from` names.

    Args:
        source: run, checkpoint or foreign model.
        device: cpu, cuda, mps or auto.
        precision: number format of weights and products.
        context: surroundings.

    Raises:
        UserError: it is not there, cannot be read, or does not write text.
    """
    where = pick_device(device)
    loaded = open_checkpoint(source, context, where)
    tell(loaded)
    return make_writer(loaded, resolve_precision(precision, where))


def make_writer(loaded: Checkpointed, precision: Precision) -> Writer:
    """A checkpoint's writer; the weights are brought into the number format, once and for all.

    Raises:
        ConfigError: the model does not write text.
    """
    model = loaded.model
    if not writes(model):
        why = "looks at both sides of a token" if not model.backbone.causal else "was trained for a task"
        raise ConfigError(
            f"the model {why}: it does not generate text",
            str(loaded.path),
            "give a run of llmtrain pretrain with a decoder, such as model=gpt/tiny",
        )
    if precision is not Precision.fp32:
        model.to(AUTOCAST_DTYPES[precision.value])
    use_vector_products(model)
    device = next(model.parameters()).device
    return Writer(model, loaded.tokenizer, loaded.model_config.max_positions, device)


def writes(model: Assembled) -> bool:
    """Whether a model says what token follows."""
    return model.backbone.causal and isinstance(model.head, LanguageModelHead)


def printable(text: str) -> str:
    """Text that a terminal only shows: what would steer it becomes signs."""
    return text.translate(CONTROLS) if sys.stdout.isatty() else text


def show(pieces: Iterable[str]) -> None:
    """Print text as it comes, on one line until it has line ends."""
    for piece in pieces:
        print(printable(piece), end="", flush=True)


@dataclass
class Speed:
    """Tokens that were written, and how long it took."""

    tokens: int = 0
    texts: int = 0
    start: float = field(default_factory=time.perf_counter)

    def add(self, tokens: int) -> None:
        """A text is ready."""
        self.tokens += tokens
        self.texts += 1

    def __str__(self) -> str:
        seconds = time.perf_counter() - self.start
        texts = f"{self.texts} texts, " if self.texts > 1 else ""
        return f"{texts}{self.tokens:,} tokens in {seconds:.1f} s: {self.tokens / seconds:.1f} tokens/s"


def told(warnings: Iterator[str]) -> None:
    """Say on standard error what the user should know."""
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
