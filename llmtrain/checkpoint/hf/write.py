"""Writing a model directory in Hugging Face's layout, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmtrain.checkpoint.disk import SPACE_MARGIN, new_directory, write_tensors
from llmtrain.checkpoint.hf.families import FAMILIES, family_for
from llmtrain.checkpoint.hf.family import Family
from llmtrain.checkpoint.hf.files import INDEX, WEIGHTS
from llmtrain.checkpoint.hf.read import CARD, CONFIG
from llmtrain.checkpoint.hf.tokenizer import TOKENIZER, VOCABULARY
from llmtrain.checkpoint.weights import Stored, StoredTensors
from llmtrain.data.tokenizer import SPECIAL, Tokenizer
from llmtrain.data.tokenizer_settings import GENERATION, SETTINGS, token_in
from llmtrain.schema.model import ModelConfig
from llmtrain.utils.errors import ConfigError

OF_ONE_MACHINE = ("name_or_path", "tokenizer_file", "special_tokens_map_file", "auto_map")
"""Settings of a foreign tokenizer that mean something only where it was made."""


@dataclass(frozen=True)
class Form:
    """How a model is written.

    Attributes:
        dtype: of the tensors.
        shard_bytes: of tensors in one file at most; a tensor is never cut.
        card: content of the model card, given the architecture; None writes none.
        check: called with the directory before it gets its name; what it raises leaves nothing behind.
    """

    dtype: torch.dtype = torch.float32
    shard_bytes: int = 5_000_000_000
    card: Callable[[str], str] | None = None
    check: Callable[[Path], None] = lambda path: None


@dataclass(frozen=True)
class Classes:
    """What transformers should know about the classes of a task.

    Attributes:
        labels: names, in the order of their numbers.
        problem_type: for classifiers: single_label_classification, multi_label_classification, regression.
    """

    labels: Sequence[str] = ()
    problem_type: str | None = None


@dataclass
class Files:
    """What is to be written besides tensors.

    Attributes:
        texts: content by name.
        settings: what `config.json` says about it.
    """

    texts: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def write_hf(
    path: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    *,
    form: Form | None = None,
    classes: Classes | None = None,
    families: Mapping[str, Family] = FAMILIES,
) -> str:
    """Write a model as a directory that Hugging Face's transformers load.

    Args:
        path: the directory; nothing may be there yet.
        config: of the backbone, with `vocab_size`.
        tensors: our name -> tensor, tied ones once; the heads among them decide the architecture.
        tokenizer: of the model.
        form: how it is written. Default: fp32, in files of 5 GB, without a card.
        classes: of a task, where the model has a head for one.
        families: what can be written.

    Returns:
        the architecture, such as `BertForMaskedLM`.

    Raises:
        ConfigError: something is there already, or the model has no counterpart there.
        DiskFullError: there is no room for it.
    """
    path, form = Path(path), form or Form()
    if path.exists():
        raise ConfigError("there is something already", str(path), "give a new directory, or remove this one")
    files = tokenizer_files(tokenizer, config)
    family = family_for(config, set(tensors), files.settings, families)
    content = family.write_config(config, files.settings)
    architecture = family.architecture(set(tensors))
    content |= {"model_type": family.model_type, "architectures": [architecture]}
    content |= {"torch_dtype": str(form.dtype).removeprefix("torch."), **files.settings}
    content |= label_settings(tensors, classes or Classes())
    theirs = family.theirs(without_padding(tensors, config, family), content)
    files.texts[CONFIG] = json_text(content)
    if form.card is not None:
        files.texts[CARD] = form.card(architecture)
    publish(path, family.finish(architecture, theirs), files.texts, form)
    return architecture


def without_padding(tensors: Mapping[str, Tensor], config: ModelConfig, family: Family) -> dict[str, Stored]:
    """Our tensors without the rows that pad the vocabulary; they are read when they are written."""
    held = tensors.stored if isinstance(tensors, StoredTensors) else in_memory(tensors)
    vocab = config.vocab_size
    return {
        name: stored.changed(lambda tensor: tensor[:vocab]) if name in family.vocabulary else stored
        for name, stored in held.items()
    }


def in_memory(tensors: Mapping[str, Tensor]) -> dict[str, Stored]:
    """Tensors that are at hand, as if they had to be read."""
    return {name: Stored(tensor.shape, tensor.detach) for name, tensor in tensors.items()}


def label_settings(tensors: Mapping[str, Tensor], classes: Classes) -> dict[str, Any]:
    """What `config.json` says about the classes; without names they are numbered."""
    settings: dict[str, Any] = {}
    if classes.problem_type is not None:
        settings["problem_type"] = classes.problem_type
    classifier = tensors.get("head.classifier.weight")
    if classifier is None:
        return settings
    names = list(classes.labels) or [f"LABEL_{number}" for number in range(len(classifier))]
    assert len(names) == len(classifier), (len(names), len(classifier))
    return settings | {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def tokenizer_files(tokenizer: Tokenizer, config: ModelConfig) -> Files:
    """The files of a tokenizer, and what `config.json` says about it.

    What a foreign tokenizer came with is kept; the rest is told as far as it is known.
    """
    inner = json.loads(tokenizer.to_json())
    wordpiece = inner["model"].get("type") == "WordPiece"
    token_id = tokenizer.inner.token_to_id
    settings: dict[str, Any] = {
        "tokenizer_class": "BertTokenizer" if wordpiece else "PreTrainedTokenizerFast",
    }
    for attribute, names in SPECIAL.items():
        if token := next((name for name in names if token_id(name) is not None), None):
            settings[attribute.removesuffix("_id") + "_token"] = token
    if unknown := inner["model"].get("unk_token"):
        settings["unk_token"] = unknown
    texts = {TOKENIZER: tokenizer.to_json()}
    if wordpiece:
        normalizer = inner.get("normalizer") or {}
        settings |= {
            "do_lower_case": bool(normalizer.get("lowercase")),
            "strip_accents": normalizer.get("strip_accents"),
            "tokenize_chinese_chars": bool(normalizer.get("handle_chinese_chars", True)),
        }
        vocab = tokenizer.inner.get_vocab()
        texts[VOCABULARY] = "".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__))
    kept = {key: value for key, value in tokenizer.settings.values.items() if key not in OF_ONE_MACHINE}
    settings |= {**kept, "model_max_length": config.max_positions}
    if config.causal or tokenizer.unusual_end is not None:
        settings["eos_token"] = tokenizer.end_token
    texts[SETTINGS] = json_text(settings)
    named = {name: token_in(settings, f"{name}_token") for name in ("pad", "bos", "eos")}
    ids = {f"{name}_token_id": None if token is None else token_id(token) for name, token in named.items()}
    if not config.causal:
        return Files(texts, {"pad_token_id": ids["pad_token_id"]})
    ids["eos_token_id"] = tokenizer.end_id
    generation = {key: value for key, value in ids.items() if value is not None}
    texts[GENERATION] = json_text(generation | tokenizer.settings.generation)
    return Files(texts, ids)


def json_text(value: Any) -> str:
    """JSON for people too."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def shards(tensors: Mapping[str, Stored], itemsize: int, limit: int) -> dict[str, list[str]]:
    """Names of files and the keys of their tensors, in order, each file as full as the limit allows.

    Args:
        tensors: by their keys.
        itemsize: bytes of a number.
        limit: bytes of tensors in a file; a larger tensor gets a file of its own.
    """
    parts: list[list[str]] = [[]]
    room = limit
    for key, stored in tensors.items():
        size = stored.shape.numel() * itemsize
        if parts[-1] and size > room:
            parts.append([])
            room = limit
        parts[-1].append(key)
        room -= size
    if len(parts) == 1:
        return {WEIGHTS: parts[0]}
    stem = WEIGHTS.removesuffix(".safetensors")
    return {
        f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors": keys
        for number, keys in enumerate(parts, start=1)
    }


def publish(path: Path, tensors: Mapping[str, Stored], texts: dict[str, str], form: Form) -> None:
    """Write the files and check them, whole or not at all.

    Raises:
        DiskFullError: there is no room for it; nothing is left behind.
    """
    itemsize = form.dtype.itemsize
    size = sum(stored.shape.numel() for stored in tensors.values()) * itemsize
    files = shards(tensors, itemsize, form.shard_bytes)
    if len(files) > 1:
        placed = {key: name for name, keys in files.items() for key in keys}
        texts = {**texts, INDEX: json_text({"metadata": {"total_size": size}, "weight_map": placed})}
    with new_directory(path, int(size * SPACE_MARGIN)) as temporary:
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        for name, keys in files.items():
            part = {key: plain(tensors[key].read(), form.dtype) for key in keys}
            write_tensors(temporary / name, part, METADATA)
            del part  # before the next one is made
        form.check(temporary)


METADATA = {"format": "pt"}
"""Told in each file; transformers ask for it."""


def plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy with memory of its own, on the CPU."""
    return tensor.to("cpu", dtype).clone(memory_format=torch.contiguous_format)
