"""Reading a model directory in Hugging Face's layout: weights, config.json and the tokenizer.

Only data is read: nothing of the directory is executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from llmtrain.checkpoint.hf.families import FAMILIES, family_named, is_early_bert
from llmtrain.checkpoint.hf.family import Family, Settings
from llmtrain.checkpoint.hf.files import read_object, read_weights
from llmtrain.checkpoint.hf.tokenizer import read_tokenizer
from llmtrain.checkpoint.weights import Stored, StoredTensors
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.model.build import MODELS
from llmtrain.model.layers.embedding import padded_size
from llmtrain.schema.model import ModelConfig
from llmtrain.utils.errors import ConfigError, DataError

CONFIG = "config.json"
CARD = "README.md"

MOST_TOLD = 8
"""Names that one message lists."""


@dataclass
class HFModel:
    """A model that was made elsewhere.

    Attributes:
        config: of the backbone, with `vocab_size`.
        tensors: our name -> tensor, fp32 on the CPU, read when it is asked for; rows of the vocabulary are
            padded as the config says.
        tokenizer: with the end token that its settings name, if any.
        unknown: keys of the file that stand for nothing here.
        licence: that the file names.
    """

    config: ModelConfig
    tensors: StoredTensors
    tokenizer: Tokenizer
    unknown: list[str]
    licence: str | None = None


def is_hf_directory(path: Path) -> bool:
    """Whether a directory has a `config.json` that names a type of model, or is of an early BERT."""
    try:
        theirs = read_object(path / CONFIG)
    except DataError:
        return False
    return "model_type" in theirs or is_early_bert(theirs)


def read_hf(path: Path, families: Mapping[str, Family] = FAMILIES, allow_bin: bool = False) -> HFModel:
    """Read config and tokenizer of a model directory, and what weights it has.

    Args:
        path: the directory.
        families: what can be read.
        allow_bin: open PyTorch's own files where there are no safetensors.

    Raises:
        ConfigError: the type of model, or one of its settings, has no counterpart here; there are no
            weights that may be opened, or no tokenizer.
        DataError: a file is broken, or weights, tokenizer and config do not fit together.
    """
    path = Path(path)
    where = str(path / CONFIG)
    theirs = read_object(path / CONFIG)
    family = family_named(theirs, where, families)
    if theirs.get("quantization_config"):
        what = "the weights are quantised, in a form that is not known here"
        raise ConfigError(what, where, "get the original model, or a GGUF file of it")
    config = family.read_config(theirs, where)
    model = assemble(family, config, theirs, read_weights(path, allow_bin), read_tokenizer(path), where)
    model.licence = read_licence(path / CARD)
    return model


def read_licence(card: Path) -> str | None:
    """The licence that the metadata in front of a model card name, if they do."""
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    named = re.search(r"^license: *([\w.-]+) *$", front[1], re.MULTILINE) if front else None
    return named[1] if named and named[1] != "unknown" else None


def assemble(
    family: Family,
    config: ModelConfig,
    theirs: Settings,
    weights: Mapping[str, Stored],
    tokenizer: Tokenizer,
    where: str,
) -> HFModel:
    """Put together what was read.

    Args:
        family: how names and values are translated.
        config: of the backbone, with `vocab_size`.
        theirs: settings there.
        weights: key there -> tensor.
        tokenizer: of the model.
        where: the settings stand.

    Raises:
        DataError: weights, tokenizer and config do not fit together.
    """
    tensors, unknown = translate(weights, family, config, theirs)
    pad_vocabulary(tensors, config, family)
    check_backbone(tensors, config, unknown, family, where)
    check_tokenizer(tokenizer, config, where)
    return HFModel(config, StoredTensors(tensors), tokenizer, sorted(unknown))


def translate(
    theirs: Mapping[str, Stored], family: Family, config: ModelConfig, settings: Settings
) -> tuple[dict[str, Stored], list[str]]:
    """Tensors by our names in fp32, and the keys that have none."""
    by_key: dict[str, Stored] = {}
    spelled: dict[str, str] = {}
    for key, stored in theirs.items():
        normal = family.normalise_key(key)
        for part, values in ({} if normal is None else family.parts(normal, stored)).items():
            by_key[part], spelled[part] = values, key
    repeated = dict(family.repeated) if getattr(config, "tie_embeddings", True) else {}
    tensors: dict[str, Stored] = {}
    unknown = []
    for normal, stored in by_key.items():
        key = spelled[normal]
        if normal in repeated and (original := by_key.get(repeated[normal])) is not None:
            if not torch.equal(original.read(), stored.read()):
                unknown.append(f"{key} (it differs from {repeated[normal]}, with which it is one here)")
            continue
        name = family.keys.ours(repeated.get(normal, normal))
        if name is not None:
            tensors[name] = family.ours(name, stored, settings).fp32()
        elif key not in unknown:
            unknown.append(key)
    return tensors, unknown


def pad_vocabulary(tensors: dict[str, Stored], config: ModelConfig, family: Family) -> None:
    """Add rows of zeros up to the multiple of the config, in place."""
    for name in family.vocabulary:
        if name in tensors:
            tensors[name] = tensors[name].padded(padded_size(tensors[name].shape[0], config.vocab_multiple))


def check_backbone(
    tensors: dict[str, Stored], config: ModelConfig, unknown: list[str], family: Family, where: str
) -> None:
    """Compare the tensors with the model that the config describes; those of no parameter become unknown.

    Raises:
        DataError: parameters of the backbone are missing or have another shape.
    """
    with torch.device("meta"):
        wanted = {f"backbone.{name}": p for name, p in MODELS[type(config)](config).named_parameters()}
    for name in [name for name in tensors if name.startswith("backbone.") and name not in wanted]:
        unknown.append(family.keys.theirs(name) or name)
        del tensors[name]
    wrong = [
        f"{name} is missing" if name not in tensors
        else f"{name} is {tuple(tensors[name].shape)} and should be {tuple(parameter.shape)}"
        for name, parameter in wanted.items()
        if name not in tensors or tensors[name].shape != parameter.shape
    ]  # fmt: skip
    if wrong:
        more = f" and {len(wrong) - MOST_TOLD} more" if len(wrong) > MOST_TOLD else ""
        raise DataError(
            f"the weights are not those of the model that {CONFIG} describes: "
            + "; ".join(wrong[:MOST_TOLD]) + more,
            where,
            "get config.json and the weights from the same model",
        )  # fmt: skip


def check_tokenizer(tokenizer: Tokenizer, config: ModelConfig, where: str) -> None:
    """Compare the tokenizer with the embedding.

    Raises:
        DataError: it has ids that the embedding has not.
    """
    size = tokenizer.vocab_size
    if config.vocab_size is not None and size > config.vocab_size:
        raise DataError(
            f"the tokenizer has {size} tokens, and the embedding only {config.vocab_size}",
            where,
            "get the tokenizer and the weights from the same model",
        )
