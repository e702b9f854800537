"""A model in a few lines of Python.

    from llmtrain.api import load

    model = load("runs/NAME")
    print(model.generate("Once upon a time", max_new_tokens=50))

`load` takes what `init_from` takes on the command line: a run, a checkpoint, a Hugging Face model directory,
a .gguf file, or a name on the hub. Nothing of it is executed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from llmtrain.data.batch import Batch
from llmtrain.data.chat import Message
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.generate.conversation import Conversation
from llmtrain.generate.text import Writer
from llmtrain.model.assembled import Assembled
from llmtrain.parallel.layout import Replicated, autocast
from llmtrain.parallel.mesh import Mesh
from llmtrain.recipe.checkpointed import Checkpointed, open_checkpoint
from llmtrain.recipe.context import BUILDERS, Context
from llmtrain.recipe.predict import require_task
from llmtrain.recipe.resolve import resolve_precision
from llmtrain.recipe.scoring import TaskData, measure
from llmtrain.recipe.writer import make_writer, writes
from llmtrain.schema.fields import Precision, SampleConfig
from llmtrain.schema.model import ModelConfig
from llmtrain.schema.parallel import Degrees
from llmtrain.schema.plugins import load_builders, load_schemas
from llmtrain.schema.registry import builtin_registry
from llmtrain.task.base import TaskKind
from llmtrain.utils.device import pick_device
from llmtrain.utils.signals import StopFlag

Tokens = str | Sequence[int] | Tensor
"""Text; or ids, (T,) or (B, T)."""

Said = Message | Mapping[str, str]
"""A message of a conversation; as a mapping with `role` and `content`."""


def load(
    path: str | Path,
    *,
    device: str = "auto",
    precision: str = "fp32",
    plugins: Sequence[str] = (),
    allow_bin: bool = False,
) -> Model:
    """Open a model for use.

    Args:
        path: a run (its best checkpoint, else its newest), a checkpoint, a Hugging Face model directory, a
            .gguf file, or a name on the hub (owner/name).
        device: cpu, cuda, mps, or auto.
        precision: fp32, bf16, fp16, or auto, which takes bf16 where the hardware multiplies it fast.
        plugins: folders of plugins that the model needs.
        allow_bin: open pytorch_model.bin where a foreign model has no safetensors; of it nothing but tensors
            is read.

    Raises:
        UserError: it is not there, is broken, or cannot be used; the message tells what to do.
    """
    folders, registry = list(plugins), builtin_registry()
    load_schemas(registry, folders)
    context = Context(None, registry, {**BUILDERS, **load_builders(folders)}, StopFlag(), allow_bin)
    where = pick_device(device)
    loaded = open_checkpoint(str(path), context, where)
    return Model(loaded, context, where, resolve_precision(Precision(precision), where))


class Model:
    """A model that was loaded; see `load`.

    Attributes:
        model: the module: `model.backbone` and `model.head`, in evaluation mode.
        tokenizer: its tokenizer.
        config: of the backbone.
        device: that it is on.
    """

    def __init__(
        self, loaded: Checkpointed, context: Context, device: torch.device, precision: Precision
    ) -> None:
        self.model: Assembled = loaded.model
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.config: ModelConfig = loaded.model_config
        self.device = device
        self._loaded, self._context, self._precision = loaded, context, precision
        self._writer = make_writer(loaded, precision) if writes(loaded.model) else None

    @overload
    def generate(self, prompt: str, **settings: Any) -> str: ...

    @overload
    def generate(self, prompt: Sequence[str], **settings: Any) -> list[str]: ...

    def generate(self, prompt: str | Sequence[str], **settings: Any) -> str | list[str]:
        """Go on with a text, or with each of several, which are written at once.

        Args:
            prompt: one or several.
            settings: of `SampleConfig`: max_new_tokens, temperature (0 takes the likeliest token), top_k,
                top_p, min_p, repetition_penalty, stop, seed.

        Returns:
            what was written after the prompt, or after each.

        Raises:
            UserError: the model does not write text.
        """
        several = [prompt] if isinstance(prompt, str) else list(prompt)
        writer, sample = self.writer, sample_of(settings)
        texts = [one.text for one in writer.write([writer.prompt_ids(text) for text in several], sample)]
        return texts[0] if isinstance(prompt, str) else texts

    def stream(self, prompt: str, **settings: Any) -> Iterator[str]:
        """The same for one text, piece by piece, as it is written."""
        sample = sample_of(settings)
        row = self.writer.row(self.writer.prompt_ids(prompt), 0, sample)
        return self.writer.stream(row, sample)

    def chat(self, messages: Sequence[Said], **settings: Any) -> str:
        """The answer to a conversation, by the chat template of the tokenizer.

        Args:
            messages: so far, the last of them the user's.
            settings: see `generate`.
        """
        *before, last = [
            one if isinstance(one, Message) else Message(one["role"], one["content"]) for one in messages
        ]
        conversation = self.conversation(**settings)
        conversation.messages = before
        return "".join(conversation.say(last.content))

    def conversation(self, system: str | None = None, **settings: Any) -> Conversation:
        """A conversation that goes on: `"".join(conversation.say("Hello"))`. Only what is new is read.

        Args:
            system: what it starts with.
            settings: see `generate`.
        """
        return Conversation(self.writer, sample_of(settings), system)

    def encode(self, text: str) -> list[int]:
        """Ids of a text as the model is given it: with what the tokenizer puts around it."""
        if self._writer is not None:
            return self._writer.prompt_ids(text)
        around = (self.tokenizer.cls_id, self.tokenizer.sep_id) if not self.config.causal else (None, None)
        ids = [around[0], *self.tokenizer.encode(text).tolist(), around[1]]
        return [one for one in ids if one is not None]

    def hidden(self, tokens: Tokens) -> Tensor:
        """Hidden states after the last norm, (T, D), of a batch (B, T, D).

        Args:
            tokens: text; or ids of one text, or of several of the same length.
        """
        return self._run(tokens, logits=False)

    def logits(self, tokens: Tokens) -> Tensor:
        """What the head makes of `hidden`: of a language model scores of tokens, (T, V) or (B, T, V)."""
        return self._run(tokens, logits=True)

    def predict(self, examples: Sequence[str | Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What a fine-tuned model says about examples, as `llmtrain predict` writes it.

        Args:
            examples: texts (a pair: two, parted by a tab; line ends count as blanks); or mappings with the
                columns that the model was trained on.

        Raises:
            UserError: the model was not fine-tuned for a task, or an example is not as it must be.
        """
        task, trained = require_task(self._loaded)
        kind: TaskKind = self._context.builders[type(trained.task)]
        texts = all(isinstance(one, str) for one in examples)
        lines = [
            " ".join(one.splitlines()) if isinstance(one, str) else json.dumps(dict(one)) for one in examples
        ]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / ("examples.txt" if texts else "examples.jsonl")
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            found = kind.read(trained.task, [file], labelled=False)
        data = TaskData.make(task, found.items, self.tokenizer, trained.train.sequence_length, 32)
        layout = Replicated(self.model, Mesh.here(Degrees(), self.device), self._precision.value)
        measured = measure(task, layout, data, 32, lambda: False)
        assert measured is not None
        return list(measured[1])

    @property
    def writer(self) -> Writer:
        """What writes text: the ways of this class, with tokens.

        Raises:
            UserError: the model does not write text.
        """
        return self._writer or make_writer(self._loaded, self._precision)

    @torch.inference_mode()
    def _run(self, tokens: Tokens, logits: bool) -> Tensor:
        ids = torch.as_tensor(self.encode(tokens) if isinstance(tokens, str) else tokens, device=self.device)
        batch = Batch(ids.reshape(-1, ids.shape[-1]).long())
        with self._format():
            hidden_BTD = self.model.backbone(batch)
            found = self.model.head.predict(hidden_BTD, batch) if logits else hidden_BTD
        return found if ids.ndim == 2 else found[0]

    def _format(self) -> AbstractContextManager[object]:
        """Models that write text have their weights in the number format already."""
        return autocast(self.device, "fp32" if self._writer is not None else self._precision.value)


def sample_of(settings: Mapping[str, Any]) -> SampleConfig:
    """The settings of one text for each prompt.

    Raises:
        TypeError: there is no such setting.
        ValueError: one is out of range.
    """
    return replace(SampleConfig(num_samples=1), **settings)
