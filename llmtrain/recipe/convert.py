"""`llmtrain convert`: a checkpoint as a Hugging Face model directory, or a foreign model as a checkpoint."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmtrain.checkpoint.hf.foreign import is_foreign
from llmtrain.checkpoint.hf.locate import locate
from llmtrain.checkpoint.hf.peft import is_peft
from llmtrain.checkpoint.hf.read import read_hf
from llmtrain.checkpoint.hf.write import Form, write_hf
from llmtrain.checkpoint.read import SavedWeights, resolve
from llmtrain.checkpoint.state import MODEL_PREFIX
from llmtrain.checkpoint.store import CheckpointStore
from llmtrain.recipe.card import model_card
from llmtrain.recipe.context import Context
from llmtrain.recipe.conversion import Source, foreign_source, largest_deviation, outputs, own_source
from llmtrain.recipe.foreign import model_words
from llmtrain.recipe.peft import has_adapters, peft_source, to_peft
from llmtrain.recipe.terminal import make_console
from llmtrain.schema.roots import ConvertConfig, Format, WeightFormat
from llmtrain.schema.stored import config_text
from llmtrain.utils.errors import ConfigError
from llmtrain.utils.io import fsync_directory

DTYPES = {WeightFormat.fp32: torch.float32, WeightFormat.bf16: torch.bfloat16}

TOLERANCE = {WeightFormat.fp32: 1e-5, WeightFormat.bf16: 0.05}
"""Largest difference of outputs, as a share of the largest output. In fp32 all bits are kept; bf16 rounds
weights to 8 bits."""


def convert(config: ConvertConfig, context: Context) -> int:
    """Write the model, read it back, and compare what both say; nothing is left where they differ."""
    assert config.source is not None
    assert config.target is not None
    target = Path(config.target)
    if target.exists():
        raise ConfigError(f"{target} is there already", "target", "give a directory that is to be made")
    located = locate(config.source, config.allow_bin)
    foreign = is_foreign(located) or is_peft(located)
    others = "; or a Hugging Face model directory, a .gguf file, a name on the hub"
    path = located if foreign else resolve(located, "source", others)
    adapted = is_peft(located) or (not foreign and has_adapters(path, context))
    form = config.format or default_format(config, foreign, adapted)
    check_adapters(form, config.merge, foreign, adapted, path)
    if form is Format.peft:
        return to_peft(path, target, context)
    if form is Format.llmtrain and not foreign:
        raise ConfigError(f"{path} is a checkpoint already", "format", "give format=hf")
    if is_peft(located):
        source = peft_source(path, config.base, context)
    else:
        source = foreign_source(path, context) if foreign else own_source(path, context)
    expected = outputs(source.model, source.build_head(context), source.tensors, context)
    if form is Format.hf:
        compared = to_hf(source, target, expected, config, context)
    else:
        compared = to_checkpoint(source, target, expected, context)
    console = make_console()
    for line in source.told:
        console.print(f"warning: {line}", markup=False)
    if source.note:
        console.print(source.note, markup=False)
    deviation, largest = compared
    console.print(
        f"{target}: {len(source.tensors)} tensors of {path.name}, read back; its outputs deviate by at most "
        f"{deviation:.3g} (the largest output is {largest:.3g})",
        markup=False,
    )
    if form is Format.llmtrain and (words := model_words(source.model)):
        tokenizer = ["tokenizer=file", f"tokenizer.path={resolve(target)}"]
        command = shlex.join(["llmtrain", "pretrain", f"init_from={target}", *tokenizer, *words])
        console.print(f"to pretrain it further: {command} data=...", markup=False, soft_wrap=True)
    return 0


def default_format(config: ConvertConfig, foreign: bool, adapted: bool) -> Format:
    """What is made where nobody says: of adapters adapters, unless they are to be folded in."""
    if foreign:
        return Format.llmtrain
    return Format.peft if adapted and not config.merge else Format.hf


def check_adapters(form: Format, merge: bool, foreign: bool, adapted: bool, path: Path) -> None:
    """What is asked for of adapters can be done.

    Raises:
        ConfigError: there are none, or they are to be both folded in and written by themselves.
    """
    if merge and not adapted:
        raise ConfigError(f"{path} has no adapters to fold in", "merge", "leave merge out")
    if form is not Format.peft:
        return
    if merge:
        what = "format=peft writes adapters by themselves, and merge=true folds them in"
        raise ConfigError(what, "merge", "leave one of them out")
    if foreign or not adapted:
        fix = "give a run that was trained with adapt=lora"
        raise ConfigError(f"{path} is not a checkpoint with adapters", "format", fix)


def to_hf(
    source: Source, target: Path, expected: Tensor, config: ConvertConfig, context: Context
) -> tuple[float, float]:
    """Write a Hugging Face model directory; returns the largest deviation, and the largest output."""
    compared: list[tuple[float, float]] = []
    dtype = DTYPES[config.dtype]

    def check(written: Path) -> None:
        found = read_hf(written)
        wrong = [
            name
            for name, tensor in source.tensors.items()
            if not same_rows(tensor, found.tensors[name], dtype)
        ]
        assert not wrong, f"not as they were: {wrong}"
        said = outputs(found.config, source.build_head(context), found.tensors, context)
        compared.append(largest_deviation(expected, said, TOLERANCE[config.dtype], source.path))

    form = Form(
        dtype,
        max(1, int(config.shard_size * 1e9)),
        card=lambda architecture: model_card(source, architecture),
        check=check,
    )
    write_hf(target, source.model, source.tensors, source.tokenizer, form=form, classes=source.classes)
    return compared[0]


def same_rows(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Whether tensors are the same in a number format; one may have more rows of zeros, which pad a
    vocabulary."""
    rows = min(len(one), len(other))
    same = one[:rows].to(dtype).equal(other[:rows].to(dtype))
    return same and not one[rows:].any() and not other[rows:].any()


def to_checkpoint(source: Source, target: Path, expected: Tensor, context: Context) -> tuple[float, float]:
    """Write a directory with one checkpoint; returns the largest deviation, and the largest output.

    The directory is made under another name; whatever goes wrong leaves nothing behind.
    """
    temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    try:
        store = CheckpointStore(temporary / "checkpoints", keep=1, report=ignore)
        files = {"config.yaml": config_text("pretrain", source.config), **source.tokenizer.files()}
        tensors = {f"{MODEL_PREFIX}{name}": tensor for name, tensor in source.tensors.items()}
        written = store.save(0, tensors, source.state, files)
        tensors.clear()
        said = outputs(
            source.model, source.build_head(context), SavedWeights(written, MODEL_PREFIX).read(), context
        )
        compared = largest_deviation(expected, said, TOLERANCE[WeightFormat.fp32], source.path)
        os.rename(temporary, target)
        fsync_directory(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return compared


def ignore(event: str, details: dict[str, Any]) -> None:
    """A new store has nothing to tell."""
