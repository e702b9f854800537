"""`llmtrain convert`: write a checkpoint as a Hugging Face model directory."""

from __future__ import annotations

from pathlib import Path

from llmtrain.checkpoint.hf.read import read_hf
from llmtrain.checkpoint.hf.write import write_hf
from llmtrain.checkpoint.read import read_file, resolve
from llmtrain.recipe.checkpointed import checkpoint_tensors, read_config
from llmtrain.recipe.context import Context
from llmtrain.recipe.terminal import make_console
from llmtrain.schema.roots import ConvertConfig, FinetuneConfig
from llmtrain.schema.task import Pool
from llmtrain.utils.errors import ConfigError


def convert(config: ConvertConfig, context: Context) -> int:
    """Write the directory, and read it back: every tensor must be there with the same bits."""
    assert config.source is not None
    assert config.target is not None
    source, target = resolve(Path(config.source)), Path(config.target)
    if target.exists():
        raise ConfigError(f"{target} is there already", "target", "give a directory that is to be made")
    trained = read_config(source, context)
    if isinstance(trained, FinetuneConfig) and getattr(trained.task, "pool", None) is Pool.mean:
        raise ConfigError(
            "transformers have no classifier over the mean of all positions",
            f"{source}: task.pool",
            "convert a run with task.pool=first",
        )
    tensors = checkpoint_tensors(source)
    labels = list(getattr(trained.task, "labels", [])) if isinstance(trained, FinetuneConfig) else []
    assert trained.model is not None
    write_hf(target, trained.model, tensors, read_file(source, "tokenizer.json"), labels=labels)
    written = read_hf(target)
    wrong = [name for name, tensor in tensors.items() if not tensor.equal(written.tensors[name])]
    assert not wrong, f"not as they were: {wrong}"
    make_console().print(
        f"{target}: {len(tensors)} tensors of {source.name}, read back with the same bits", markup=False
    )
    return 0
