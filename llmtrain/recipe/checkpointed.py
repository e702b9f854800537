"""Opening what `init_from` names: a finished checkpoint for use, or weights to start a training from."""

from __future__ import annotations

import json
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

import torch

from llmtrain.checkpoint.hf.read import is_hf_directory, read_hf
from llmtrain.checkpoint.read import SavedWeights, read_file, resolve
from llmtrain.checkpoint.state import MODEL_PREFIX
from llmtrain.checkpoint.weights import Weights
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.tokenizer_settings import SETTINGS
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model, materialise
from llmtrain.objective.build import Objective, build_objective
from llmtrain.recipe.context import Context
from llmtrain.schema.load import build
from llmtrain.schema.model import ModelConfig
from llmtrain.schema.roots import ROOTS, FinetuneConfig, PretrainConfig
from llmtrain.schema.stored import read_plain
from llmtrain.task.base import Task
from llmtrain.task.build import build_task
from llmtrain.utils.errors import ConfigError

CARRIED = ("backbone.", "head.pooler.")
"""Names of the parameters that fine-tuning takes over; the rest of the head is drawn anew."""


@dataclass
class Checkpointed:
    """A checkpoint in memory, on the device, in evaluation mode.

    Attributes:
        task: of a fine-tuned model; None for a language model.
    """

    path: Path
    config: PretrainConfig | FinetuneConfig
    tokenizer: Tokenizer
    objective: Objective
    task: Task | None
    model: Assembled

    @property
    def model_config(self) -> ModelConfig:
        """Of the backbone; a stored config always has it."""
        assert self.config.model is not None
        return self.config.model


@dataclass
class Pretrained:
    """Weights to start from, and what belongs to them.

    Attributes:
        path: where they are.
        weights: opens and verifies them.
        unknown: keys of a foreign file that stand for nothing here.
    """

    path: Path
    model: ModelConfig
    tokenizer: Tokenizer
    weights: Callable[[], Weights]
    unknown: list[str]


def read_config(checkpoint: Path, context: Context) -> PretrainConfig | FinetuneConfig:
    """The configuration in a checkpoint: plain data; plugins that it names are not loaded."""
    where = str(checkpoint / "config.yaml")
    verb, data = read_plain(read_file(checkpoint, "config.yaml"), where)
    config: PretrainConfig | FinetuneConfig = build(ROOTS[verb], data, context.registry, where)
    return config


def read_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer of a checkpoint, with the end token that it had; an older one does not tell."""
    told = json.loads(read_file(checkpoint, SETTINGS)) if (checkpoint / SETTINGS).exists() else {}
    return Tokenizer.from_json(read_file(checkpoint, "tokenizer.json"), settings=told)


def open_checkpoint(source: str, context: Context, device: torch.device) -> Checkpointed:
    """Load a run directory or a checkpoint for use."""
    if is_hf_directory(Path(source)):
        raise ConfigError(
            f"{source} is a Hugging Face model directory", "init_from", "train it first: llmtrain finetune"
        )
    path = resolve(Path(source))
    config = read_config(path, context)
    tokenizer = read_tokenizer(path)
    assert config.model is not None
    task: Task | None = None
    objective: Objective
    if isinstance(config, FinetuneConfig):
        objective = task = build_task(config.task, config.model.causal, context.builders)
    else:
        objective = build_objective(config.objective, config.data, context.builders)
    model = build_model(config.model, objective.build_head, context.builders)
    materialise(model, device)
    load_weights(model, saved_weights(path), path)
    model.eval()
    return Checkpointed(path, config, tokenizer, objective, task, model)


def open_pretrained(source: str, context: Context) -> Pretrained:
    """Open a run directory, a checkpoint or a Hugging Face model directory to start a training from."""
    folder = Path(source).expanduser()
    if is_hf_directory(folder):
        found = read_hf(folder)
        return Pretrained(folder, found.config, found.tokenizer, lambda: found.tensors, found.unknown)
    path = resolve(folder, others="; or a Hugging Face model directory (nothing is downloaded)")
    config = read_config(path, context)
    assert config.model is not None
    tokenizer = read_tokenizer(path)
    return Pretrained(path, config.model, tokenizer, lambda: saved_weights(path), [])


def compare_tokenizers(pretrained: Pretrained, tokenizer: Tokenizer) -> list[str]:
    """Whether the ids of a tokenizer mean to a pretrained model what they meant in its training.

    Returns:
        a warning where the vocabulary is the same, but something else is not (how words are split, say).

    Raises:
        ConfigError: the vocabulary is another one.
    """
    theirs = pretrained.tokenizer
    if theirs.sha256 == tokenizer.sha256:
        return []
    file = pretrained.path / "tokenizer.json"
    fix = f"give tokenizer=file tokenizer.path={file if file.exists() else pretrained.path}"
    if theirs.inner.get_vocab() == tokenizer.inner.get_vocab():
        return [f"the tokenizer has the vocabulary of {pretrained.path.name}, but other settings: {fix}"]
    raise ConfigError(
        "the tokenizer is not that of init_from: its ids stand for other tokens than those the model knows",
        "tokenizer, init_from",
        fix,
    )


def saved_weights(checkpoint: Path) -> SavedWeights:
    """The parameters of a checkpoint, verified."""
    return SavedWeights(checkpoint, MODEL_PREFIX)


def start_from(
    pretrained: Pretrained, model: Assembled, names: Set[str], carried: tuple[str, ...] = ("",)
) -> list[str]:
    """Copy pretrained weights into a model whose other parameters have theirs already.

    Args:
        pretrained: has all parameters of the backbone.
        model: to fill; the part of it that this process has.
        names: of all parameters of the model.
        carried: only parameters whose names start so are taken over.

    Returns:
        what the user should know: parameters that it does not have, and what is not used of it.

    Raises:
        ConfigError: see `load_weights`.
    """
    name, weights = pretrained.path.name, pretrained.weights()
    fitting = {key for key in weights.shapes if key in names and key.startswith(carried)}
    load_weights(model, weights, pretrained.path, fitting, required=("backbone.",))
    told = {
        f"not in {name}, drawn anew": sorted(names - fitting),
        f"not used of {name}": sorted(weights.shapes.keys() - fitting),
        f"unknown in {name}": pretrained.unknown,
    }
    return [f"{what}: {', '.join(keys)}" for what, keys in told.items() if keys]


def load_weights(
    model: Assembled,
    weights: Weights,
    where: Path,
    taken: Set[str] | None = None,
    required: tuple[str, ...] = ("",),
) -> None:
    """Copy weights into a model.

    Args:
        model: the part of it that this process has; some of its parameters may have no counterpart.
        weights: for it.
        where: they come from, for the message.
        taken: names of those that are copied. Default: all, and each must have its parameter.
        required: parameters whose names start so must be there.

    Raises:
        ConfigError: one that is required is missing, or shapes differ.
    """
    wanted = dict(model.named_parameters())
    shapes = {name: shape for name, shape in weights.shapes.items() if taken is None or name in taken}
    wrong = [
        name
        for name, parameter in wanted.items()
        if (name not in shapes and name.startswith(required))
        or (name in shapes and shapes[name] != parameter.shape)
    ]
    if taken is None:
        wrong += shapes.keys() - wanted.keys()
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ConfigError(
            f"the weights do not fit the model: {', '.join(sorted(wrong)[:5])}{more}",
            str(where),
            "use the model and the tokenizer of that run; its config.yaml tells them",
        )
    weights.fill({name: parameter for name, parameter in wanted.items() if name in shapes})
