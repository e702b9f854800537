"""Writing a model directory in Hugging Face's layout, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from llmtrain.checkpoint.disk import check_space, disk_full, durable_entry, is_disk_full
from llmtrain.checkpoint.hf.families import FAMILIES, family_of
from llmtrain.checkpoint.hf.family import Family
from llmtrain.checkpoint.hf.read import CONFIG, TOKENIZER, VOCABULARY, WEIGHTS
from llmtrain.data.tokenizer import SPECIAL
from llmtrain.data.tokenizer_settings import SETTINGS
from llmtrain.schema.model import ModelConfig
from llmtrain.utils.errors import ConfigError
from llmtrain.utils.io import fsync_directory

SPACE_MARGIN = 1.05
"""Headers and the other files, as a factor on the tensors' bytes."""


def write_hf(
    path: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    tokenizer_json: str,
    *,
    end_token: str | None = None,
    labels: Sequence[str] = (),
    problem_type: str | None = None,
    families: Mapping[str, Family] = FAMILIES,
) -> str:
    """Write a model as a directory that Hugging Face's transformers load.

    Args:
        path: the directory; nothing may be there yet.
        config: of the backbone, with `vocab_size`.
        tensors: our name -> tensor, tied ones once; the heads among them decide the architecture.
        tokenizer_json: content of a `tokenizer.json`.
        end_token: of the tokenizer, where it is not the one to be expected.
        labels: names of the classes, in the order of their numbers.
        problem_type: for classifiers: single_label_classification, multi_label_classification, regression.
        families: what can be written.

    Returns:
        the architecture, such as `BertForMaskedLM`.

    Raises:
        ConfigError: something is there already, or the model has no counterpart there.
        DiskFullError: there is no room for it.
    """
    path = Path(path)
    if path.exists():
        raise ConfigError("there is something already", str(path), "give a new directory, or remove this one")
    family = family_of(config, families)
    content = family.write_config(config)
    architecture, theirs = translate_back(tensors, config, family)
    content |= {"model_type": family.model_type, "architectures": [architecture], "torch_dtype": "float32"}
    content |= label_settings(tensors, labels, problem_type)
    texts, special = tokenizer_files(tokenizer_json, config.max_positions, end_token)
    content |= special
    texts[CONFIG] = json_text(content)
    publish(path, theirs, texts)
    return architecture


def translate_back(
    tensors: Mapping[str, Tensor], config: ModelConfig, family: Family
) -> tuple[str, dict[str, Tensor]]:
    """Architecture, and tensors by its keys without the padding of the vocabulary.

    Raises:
        ConfigError: a tensor has no counterpart there.
    """
    theirs: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        key = family.keys.theirs(name)
        if key is None:
            raise ConfigError(
                f"{name} has no counterpart in Hugging Face's {family.model_type}",
                "model",
                "export the backbone without this head",
            )
        cut = tensor[: config.vocab_size] if name in family.vocabulary else tensor
        theirs[key] = cut.detach().cpu().contiguous().clone()
    architecture = family.architecture(set(tensors))
    return architecture, family.finish(architecture, theirs)


def label_settings(
    tensors: Mapping[str, Tensor], labels: Sequence[str], problem_type: str | None
) -> dict[str, Any]:
    """What `config.json` says about the classes; without names they are numbered."""
    settings: dict[str, Any] = {} if problem_type is None else {"problem_type": problem_type}
    classifier = tensors.get("head.classifier.weight")
    if classifier is None:
        return settings
    names = list(labels) or [f"LABEL_{number}" for number in range(len(classifier))]
    assert len(names) == len(classifier), (len(names), len(classifier))
    return settings | {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def tokenizer_files(
    tokenizer_json: str, max_positions: int, end_token: str | None
) -> tuple[dict[str, str], dict[str, Any]]:
    """The files of a tokenizer by name, and what `config.json` says about it.

    Args:
        tokenizer_json: content of a `tokenizer.json`.
        max_positions: longest row of the model.
        end_token: to be named among the settings, or None.
    """
    inner = json.loads(tokenizer_json)
    vocab: dict[str, int] = {token["content"]: token["id"] for token in inner.get("added_tokens", [])}
    wordpiece = inner["model"].get("type") == "WordPiece"
    if isinstance(inner["model"].get("vocab"), dict):
        vocab = inner["model"]["vocab"] | vocab
    settings: dict[str, Any] = {
        "tokenizer_class": "BertTokenizer" if wordpiece else "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
    }
    for attribute, names in SPECIAL.items():
        if token := next((name for name in names if name in vocab), None):
            settings[attribute.removesuffix("_id") + "_token"] = token
    if unknown := inner["model"].get("unk_token"):
        settings["unk_token"] = unknown
    if end_token is not None:
        settings["eos_token"] = end_token
    texts = {TOKENIZER: tokenizer_json}
    if wordpiece:
        normalizer = inner.get("normalizer") or {}
        settings |= {
            "do_lower_case": bool(normalizer.get("lowercase")),
            "strip_accents": normalizer.get("strip_accents"),
            "tokenize_chinese_chars": bool(normalizer.get("handle_chinese_chars", True)),
        }
        texts[VOCABULARY] = "".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__))
    texts[SETTINGS] = json_text(settings)
    pad = settings.get("pad_token")
    return texts, {"pad_token_id": None if pad is None else vocab[pad]}


def json_text(value: Any) -> str:
    """JSON for people too."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def publish(path: Path, tensors: dict[str, Tensor], texts: dict[str, str]) -> None:
    """Write the files under another name, make them durable, and rename the directory.

    Raises:
        DiskFullError: there is no room for it; nothing is left behind.
    """
    needed = int(sum(tensor.nbytes for tensor in tensors.values()) * SPACE_MARGIN)
    path.parent.mkdir(parents=True, exist_ok=True)
    check_space(path.parent, needed)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    temporary.mkdir()
    try:
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        (temporary / WEIGHTS).chmod(
            (temporary / CONFIG).stat().st_mode
        )  # safetensors gives it to its owner only
        for name in (WEIGHTS, *texts):
            durable_entry(temporary / name)
        fsync_directory(temporary)
        os.rename(temporary, path)
        fsync_directory(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_disk_full(error):
            raise disk_full(path, needed) from error
        raise
