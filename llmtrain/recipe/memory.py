"""What a layout costs each process, by arithmetic on a model without memory."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence

from llmtrain.model.assembled import Assembled
from llmtrain.model.plan import Split
from llmtrain.optim.optimizer import block_number
from llmtrain.schema.optim import AdafactorConfig, AdamWConfig, LionConfig, OptimConfig, SGDConfig
from llmtrain.schema.parallel import Degrees

NUMBER = 4
"""Bytes of a number: all that is kept is fp32."""

SHARED = {Split.columns: 0, Split.lookup: 0, Split.vocabulary: 0, Split.rows: 1}
"""Dimension of a weight that tensor parallelism shares out; what else a plan names stays whole."""

WHOLE = {Split.columns: "lora_A", Split.rows: "lora_B"}
"""What of an adapter stays whole where the layer is shared out."""


def state_bytes(
    model: Assembled, degrees: Degrees, blocks: Sequence[range], optim: OptimConfig | None = None
) -> list[int]:
    """Bytes of parameters, gradients, optimizer state and moving average in a process, for each place along
    the pipeline.

    Each process holds the blocks of its stages; the first stage the embeddings, the last one the last norm
    and the head, and the embedding again where the head shares its weight. Of what the model's plan shares
    out it holds one part of tp, and of that one part of dp_shard x cp, cut along the first dimension and
    rounded up. Not counted: activations, weights while they are gathered, copies in bf16.

    Args:
        model: on the meta device, whole; what is frozen has a value only.
        degrees: of parallelism.
        blocks: numbers of the blocks of each stage; stage s is at place s % pp.
        optim: the optimizer. Default: AdamW.
    """
    optim = optim or AdamWConfig()
    splits = tensor_splits(model)
    held: list[dict[int, int]] = [{} for _ in range(degrees.pp)]
    for name, parameter in model.named_parameters(remove_duplicate=False):
        stage = stage_of(name, blocks)
        module, _, leaf = name.rpartition(".")
        split = splits.get(module, Split.whole)
        shape, dim = list(parameter.shape), None if WHOLE.get(split) == leaf else SHARED.get(split)
        if dim is not None and dim < len(shape):
            shape[dim] //= degrees.tp
        shape[0] = -(-shape[0] // (degrees.dp_shard * degrees.cp))
        size = math.prod(shape)
        if parameter.requires_grad:
            copies = 3 if optim.ema else 2  # value, gradient, average
            size = copies * size + optimizer_numbers(optim, name, parameter.shape, size)
        held[stage % degrees.pp][id(parameter)] = NUMBER * size
    return [sum(sizes.values()) for sizes in held]


def optimizer_numbers(config: OptimConfig, name: str, shape: Sequence[int], size: int) -> int:
    """Numbers that an optimizer keeps of a parameter in a process; counters of steps are left out.

    Args:
        config: of the optimizer; one of a plugin is taken to keep two moments.
        name: of the parameter.
        shape: of all of it.
        size: numbers of it that the process has.
    """
    matrix = len(shape) > 1
    if isinstance(config, AdafactorConfig):
        return shape[-2] + shape[-1] if matrix else size  # factors are whole in each process
    if isinstance(config, SGDConfig):
        return size if config.momentum else 0
    one_moment = isinstance(config, LionConfig) or (
        config.tells_hidden and matrix and block_number(name) >= 0
    )
    return size if one_moment else 2 * size


def stage_of(name: str, blocks: Sequence[range]) -> int:
    """Number of the stage that holds a parameter."""
    number = block_number(name)
    if number >= 0:
        return next(stage for stage, numbers in enumerate(blocks) if number in numbers)
    return len(blocks) - 1 if name.startswith(("head.", "backbone.norm.")) else 0


def tensor_splits(model: Assembled) -> dict[str, Split]:
    """What the plans of backbone and head say of each module, by its name; of others they say nothing."""
    found = {}
    for prefix, part in (("backbone", model.backbone), ("head", model.head)):
        for pattern, split in (part.tensor_plan() or {}).items():
            for name, _ in part.named_modules():
                if fnmatch.fnmatchcase(name, pattern):
                    found[f"{prefix}.{name}" if name else prefix] = split
    return found
