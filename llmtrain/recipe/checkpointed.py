"""Opening a finished checkpoint for use: its config, tokenizer and model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from llmtrain.checkpoint.read import read_file, read_tensors, resolve
from llmtrain.checkpoint.state import MODEL_PREFIX, model_tensors
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model, materialise
from llmtrain.recipe.context import Context
from llmtrain.schema.load import build
from llmtrain.schema.roots import PretrainConfig
from llmtrain.schema.stored import read_plain
from llmtrain.utils.errors import ConfigError


@dataclass
class Checkpointed:
    """A checkpoint in memory, on the device, in evaluation mode."""

    path: Path
    config: PretrainConfig
    tokenizer: Tokenizer
    model: Assembled


def open_checkpoint(source: str, context: Context, device: torch.device) -> Checkpointed:
    """Load what `init_from` names: a run directory or a checkpoint.

    The config inside is read as plain data, and plugins that it names are not loaded.
    """
    path = resolve(Path(source))
    where = str(path / "config.yaml")
    _, data = read_plain(read_file(path, "config.yaml"), where)
    config: PretrainConfig = build(PretrainConfig, data, context.registry, where)
    tokenizer = Tokenizer.from_json(read_file(path, "tokenizer.json"))
    model = build_model(config.model, context.builders)
    materialise(model, device)
    load_weights(model, path)
    model.eval()
    return Checkpointed(path, config, tokenizer, model)


def load_weights(model: Assembled, checkpoint: Path) -> None:
    """Copy the weights of a checkpoint into a model of the same shape.

    Raises:
        ConfigError: names or shapes differ.
    """
    saved, wanted = read_tensors(checkpoint, MODEL_PREFIX), model_tensors(model)
    differing = sorted(
        name
        for name in saved.keys() | wanted.keys()
        if name not in saved or name not in wanted or saved[name].shape != wanted[name].shape
    )
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ConfigError(
            f"the weights do not fit the model: {', '.join(differing[:5])}{more}",
            str(checkpoint),
            "use the model and the tokenizer of that run; its config.yaml tells them",
        )
    for name, tensor in wanted.items():
        tensor.copy_(saved[name])
