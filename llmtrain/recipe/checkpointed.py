"""Opening what `init_from` names: a finished checkpoint for use, or weights to start a training from."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

import torch

from llmtrain.adapt.lora import MergedWeights
from llmtrain.checkpoint.hf.foreign import is_foreign, read_foreign
from llmtrain.checkpoint.hf.locate import locate
from llmtrain.checkpoint.read import SavedWeights, read_file, resolve
from llmtrain.checkpoint.state import AVERAGE_PREFIX, MODEL_PREFIX
from llmtrain.checkpoint.weights import Weights
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.tokenizer_settings import GENERATION, SETTINGS
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model, materialise
from llmtrain.model.layers.lora import is_adapter
from llmtrain.objective.build import Objective, build_objective
from llmtrain.recipe.adapters import Base, BaseRecord, read_base, weights_digest
from llmtrain.recipe.context import Context
from llmtrain.recipe.foreign import imported_config
from llmtrain.schema.adapt import LoRAConfig
from llmtrain.schema.load import build
from llmtrain.schema.model import ModelConfig
from llmtrain.schema.roots import ROOTS, FinetuneConfig, PretrainConfig, TrainingConfig
from llmtrain.schema.stored import read_plain
from llmtrain.task.base import Task
from llmtrain.task.build import build_task
from llmtrain.utils.errors import ConfigError

CARRIED = ("backbone.", "head.pooler.", "head.projection.")
"""Names of the parameters that fine-tuning takes over; the rest of the head is drawn anew."""


@dataclass
class Checkpointed:
    """A checkpoint in memory, on the device, in evaluation mode.

    Attributes:
        task: of a fine-tuned model; None for a language model.
        note: what the user should know of its weights; may be empty.
    """

    path: Path
    config: PretrainConfig | FinetuneConfig
    tokenizer: Tokenizer
    objective: Objective
    task: Task | None
    model: Assembled
    note: str = ""

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
        note: what the user should know of the weights; may be empty.
    """

    path: Path
    model: ModelConfig
    tokenizer: Tokenizer
    weights: Callable[[], Weights]
    unknown: list[str]
    note: str = ""


def read_config(checkpoint: Path, context: Context) -> PretrainConfig | FinetuneConfig:
    """The configuration in a checkpoint: plain data; plugins that it names are not loaded."""
    where = str(checkpoint / "config.yaml")
    verb, data = read_plain(read_file(checkpoint, "config.yaml"), where)
    config: PretrainConfig | FinetuneConfig = build(ROOTS[verb], data, context.registry, where)
    return config


def read_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer of a checkpoint, with the end token that it had; an older one does not tell."""
    settings, generation = (
        json.loads(read_file(checkpoint, name)) if (checkpoint / name).exists() else {}
        for name in (SETTINGS, GENERATION)
    )
    text = read_file(checkpoint, "tokenizer.json")
    return Tokenizer.from_json(text, settings=settings, generation=generation)


def open_checkpoint(source: str, context: Context, device: torch.device) -> Checkpointed:
    """Load a run, a checkpoint or a foreign model for use."""
    located = locate(source, context.allow_bin)
    if is_foreign(located):
        return open_foreign(located, context, device)
    path = resolve(located)
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
    load_weights(model, checkpoint_weights(path, config, context), path)
    model.eval()
    return Checkpointed(path, config, tokenizer, objective, task, model, average_note(path, config))


def tell(loaded: Checkpointed) -> None:
    """Say which weights are used, where there are several, beside what goes to standard output."""
    if loaded.note:
        print(f"note: {loaded.note}", file=sys.stderr)


def open_foreign(path: Path, context: Context, device: torch.device) -> Checkpointed:
    """Load a model that was made elsewhere for use, with the head that predicts text.

    Raises:
        ConfigError: it has none.
    """
    found = read_foreign(path, context.allow_bin)
    config = imported_config(found, path)
    objective = build_objective(config.objective, config.data, context.builders)
    model = build_model(found.config, objective.build_head, context.builders)
    materialise(model, device)
    taken = found.tensors.keys() & dict(model.named_parameters()).keys()
    load_weights(model, found.tensors, path, taken)
    model.eval()
    return Checkpointed(path, config, found.tokenizer, objective, None, model)


def open_pretrained(source: str, context: Context) -> Pretrained:
    """Open a run, a checkpoint or a foreign model to start a training from."""
    located = locate(source, context.allow_bin)
    if is_foreign(located):
        found = read_foreign(located, context.allow_bin)
        return Pretrained(located, found.config, found.tokenizer, lambda: found.tensors, found.unknown)
    path = resolve(located, others="; or a Hugging Face model directory, a .gguf file, a name on the hub")
    config = read_config(path, context)
    assert config.model is not None
    tokenizer = read_tokenizer(path)
    return Pretrained(
        path,
        config.model,
        tokenizer,
        lambda: checkpoint_weights(path, config, context),
        [],
        average_note(path, config),
    )


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
    """The parameters of a checkpoint, verified; of what has a moving average, that."""
    return SavedWeights(checkpoint, MODEL_PREFIX, AVERAGE_PREFIX)


def average_note(checkpoint: Path, config: TrainingConfig) -> str:
    """Says that of a checkpoint with a moving average the average is taken; else empty."""
    return f"{checkpoint.name}: the moving average is taken (optim.ema={config.optim.ema:g})" * (
        config.optim.ema > 0
    )


def checkpoint_weights(
    checkpoint: Path, config: TrainingConfig, context: Context
) -> SavedWeights | MergedWeights:
    """The parameters of the model that a checkpoint stands for: adapters are folded into their base.

    Raises:
        ConfigError: the base is gone, or has changed.
    """
    own = saved_weights(checkpoint)
    if not isinstance(config.adapt, LoRAConfig):
        return own
    record = read_base(checkpoint)
    return MergedWeights(
        open_pretrained(record.path, context).weights(), own, config.adapt.scale, record.carried
    )


def open_base(
    config: TrainingConfig,
    pretrained: Pretrained | None,
    found: Path | None,
    context: Context,
    carried: tuple[str, ...],
) -> Base | None:
    """The model that adapters are to learn for; None where there are none.

    Args:
        config: of the run.
        pretrained: what a new run starts from; not looked at where a run goes on.
        found: the checkpoint that the run goes on from, which names its base.
        context: surroundings.
        carried: names of the parameters that a new run takes over start so.

    Raises:
        ConfigError: the base is gone, or has changed.
    """
    if config.adapt is None:
        return None
    if found is not None:
        record = read_base(found)
        return Base(record, open_pretrained(record.path, context).weights())
    assert pretrained is not None
    path = str(pretrained.path.absolute())
    return Base(BaseRecord(path, weights_digest(pretrained.path), carried), pretrained.weights())


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
        f"not in {name}, drawn anew": sorted(one for one in names - fitting if not is_adapter(one)),
        f"not used of {name}": sorted(weights.shapes.keys() - fitting),
        f"unknown in {name}": pretrained.unknown,
    }
    notes = [pretrained.note] if pretrained.note else []
    return notes + [f"{what}: {', '.join(keys)}" for what, keys in told.items() if keys]


def load_base(model: Assembled, base: Base, names: Set[str]) -> None:
    """Copy the parameters of these names from the base of adapters into the part of a model that is here."""
    load_weights(model, base.weights, Path(base.record.path), names, required=())


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
        required: parameters whose names start so must be there, but for adapters.

    Raises:
        ConfigError: one that is required is missing, or shapes differ.
    """
    wanted = dict(model.named_parameters())
    shapes = {name: shape for name, shape in weights.shapes.items() if taken is None or name in taken}
    wrong = [
        name
        for name, parameter in wanted.items()
        if (name not in shapes and name.startswith(required) and not is_adapter(name))
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
