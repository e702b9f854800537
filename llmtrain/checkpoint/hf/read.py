"""Reading a model directory in Hugging Face's layout: safetensors, config.json and the tokenizer.

Only data is read: no pickle is opened, nothing of the directory is executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmtrain.checkpoint.hf.families import FAMILIES, family_named
from llmtrain.checkpoint.hf.family import Family
from llmtrain.checkpoint.weights import Stored, StoredTensors
from llmtrain.data import wordpiece
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.tokenizer_settings import SETTINGS, read_settings
from llmtrain.model.build import MODELS
from llmtrain.model.layers.embedding import padded_size
from llmtrain.schema.model import ModelConfig
from llmtrain.utils.errors import ConfigError, DataError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
VOCABULARY = "vocab.txt"

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
    """

    config: ModelConfig
    tensors: StoredTensors
    tokenizer: Tokenizer
    unknown: list[str]


def is_hf_directory(path: Path) -> bool:
    """Whether a directory has a `config.json` that names a type of model."""
    try:
        return "model_type" in read_object(path / CONFIG)
    except DataError:
        return False


def read_hf(path: Path, families: Mapping[str, Family] = FAMILIES) -> HFModel:
    """Read config and tokenizer of a model directory, and what weights it has.

    Args:
        path: the directory.
        families: what can be read.

    Raises:
        ConfigError: the type of model, or one of its settings, has no counterpart here; there are no
            safetensors or no tokenizer.
        DataError: a file is broken, or weights, tokenizer and config do not fit together.
    """
    path = Path(path)
    where = str(path / CONFIG)
    theirs = read_object(path / CONFIG)
    family = family_named(theirs.get("model_type"), where, families)
    config = family.read_config(theirs, where)
    tensors, unknown = translate(read_weights(path), family)
    pad_vocabulary(tensors, config, family)
    check_backbone(tensors, config, unknown, family, where)
    tokenizer = read_tokenizer(path)
    check_tokenizer(tokenizer, config, str(path))
    return HFModel(config, StoredTensors(tensors), tokenizer, sorted(unknown))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        DataError: it does not, or cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"it cannot be read as JSON: {error}", str(path), "repair the file") from error
    if not isinstance(value, dict):
        raise DataError("it holds no JSON object", str(path), "repair the file")
    return value


def read_weights(path: Path) -> dict[str, Stored]:
    """The tensors of a model directory, which may be spread over several files.

    Raises:
        ConfigError: there are no safetensors.
        DataError: a file is missing or broken.
    """
    if (path / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif (path / INDEX).is_file():
        names = shard_names(path / INDEX)
    else:
        raise ConfigError(
            f"there is no {WEIGHTS}",
            str(path),
            "save the model as safetensors; other files could execute code and are not opened",
        )
    stored: dict[str, Stored] = {}
    for name in names:
        with opened(path / name) as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                shape = torch.Size(file.get_slice(key).get_shape())
                stored[key] = Stored(shape, partial(read_tensor, path / name, key))
    return stored


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file.

    Raises:
        DataError: it is missing or broken.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise DataError(f"weights cannot be read: {error}", str(path), "get the file again") from error


def read_tensor(path: Path, key: str) -> Tensor:
    """One tensor of a safetensors file."""
    with opened(path) as file:
        tensor: Tensor = file.get_tensor(key)
        return tensor


def shard_names(index: Path) -> list[str]:
    """Names of the files that an index lists; they lie beside it.

    Raises:
        DataError: the index names something else.
    """
    listed = read_object(index).get("weight_map")
    names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise DataError(
            "weight_map does not list safetensors files beside it", str(index), "get the file again"
        )
    return names


def translate(theirs: Mapping[str, Stored], family: Family) -> tuple[dict[str, Stored], list[str]]:
    """Tensors by our names in fp32, and the keys that have none."""
    spelled = {key: family.normalise_key(key) for key in theirs}
    by_key = {normal: theirs[key] for key, normal in spelled.items() if normal is not None}
    repeated = dict(family.repeated)
    tensors, unknown = {}, []
    for key, normal in spelled.items():
        if normal is None:
            continue
        if normal in repeated and (original := by_key.get(repeated[normal])) is not None:
            if not torch.equal(original.read(), theirs[key].read()):
                unknown.append(f"{key} (it differs from {repeated[normal]}, with which it is one here)")
            continue
        name = family.keys.ours(repeated.get(normal, normal))
        if name is None:
            unknown.append(key)
        else:
            tensors[name] = theirs[key].fp32()
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


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of `tokenizer.json`, or one that is made of `vocab.txt` (WordPiece).

    Raises:
        ConfigError: there is neither.
        DataError: it cannot be read, or is none.
    """
    file = path / TOKENIZER if (path / TOKENIZER).is_file() else path / VOCABULARY
    if not file.is_file():
        raise ConfigError(
            f"there is neither {TOKENIZER} nor {VOCABULARY}", str(path), "put the model's tokenizer there"
        )
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the tokenizer cannot be read: {error}", str(file), "get the file again") from error
    if file.name != TOKENIZER:
        text = wordpiece.from_vocab(
            wordpiece.read_vocab(text), **wordpiece.settings(file, lowercase=True)
        ).to_str()
    return Tokenizer.from_json(text, settings=read_settings(path / SETTINGS))


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
