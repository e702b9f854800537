"""RoBERTa in Hugging Face's layout: a BERT whose positions are counted from behind the padding token's id,
and whose classifier of samples has the pooler inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmtrain.checkpoint.hf import bert
from llmtrain.checkpoint.hf.family import Change, Family, KeyTable, Settings
from llmtrain.checkpoint.hf.settings import check_fixed
from llmtrain.checkpoint.weights import Stored
from llmtrain.schema.model import Activation, BERTConfig

KEYS = KeyTable(
    (
        ("roberta.embeddings.word_embeddings", "backbone.embedding"),
        ("roberta.embeddings.position_embeddings", "backbone.position"),
        ("roberta.embeddings.token_type_embeddings", "backbone.segment"),
        ("roberta.embeddings.LayerNorm", "backbone.embedding_norm"),
        *(
            (f"roberta.encoder.layer.{{}}.{theirs}", f"backbone.blocks.{{}}.{ours}")
            for theirs, ours in bert.BLOCK
        ),
        ("roberta.pooler.dense", "head.pooler.dense"),
        ("lm_head.dense", "head.masked.dense"),
        ("lm_head.layer_norm", "head.masked.norm"),
        ("lm_head.bias", "head.masked.projection.bias"),
        ("classifier", "head.classifier"),
        ("qa_outputs", "head.span"),
    )
)
"""Every parameter that both sides have."""

PAD = 1
"""`pad_token_id` where a file does not say."""


def first_position(settings: Settings) -> int:
    """Row of the table of positions that stands for the first token; those before it are for padding."""
    return int(settings.get("pad_token_id", PAD)) + 1


def _without_padding(rows: Tensor, settings: Settings) -> Tensor:
    return rows[first_position(settings) :]


def _with_padding(rows: Tensor, settings: Settings) -> Tensor:
    return torch.cat([rows.new_zeros(first_position(settings), rows.shape[1]), rows])


def read_config(theirs: Settings, where: str) -> BERTConfig:
    """Our config for a `config.json`.

    Raises:
        ConfigError: a setting has no counterpart here, or a value makes no sense.
    """
    check_fixed(theirs, {"hidden_act": "gelu"}, "RoBERTa", where)  # the head has the exact GELU in any case
    longest = theirs.get("max_position_embeddings", 512) - first_position(theirs)
    return bert.read_config({**theirs, "max_position_embeddings": longest}, where)


def write_config(config: BERTConfig, tokenizer: Settings) -> dict[str, Any]:
    """Content of `config.json`."""
    longest = config.max_positions + first_position(tokenizer)
    return bert.write_config(config, tokenizer) | {"max_position_embeddings": longest}


def misfits(config: BERTConfig, tokenizer: Settings) -> list[str]:
    """Settings that RoBERTa has not."""
    found = bert.misfits(config, tokenizer)
    if config.num_segments != 1:  # it knows one; with more of them, or none, a model is called a BERT
        found.append(f"num_segments={config.num_segments}")
    if config.activation in (Activation.gelu_tanh, Activation.relu_squared):
        found.append(f"activation={config.activation.value}")
    if tokenizer.get("pad_token_id") is None:
        found.append("tokenizer without a padding token")
    return found


def normalise_key(key: str) -> str | None:
    """A key with `roberta.`; the classifier of samples by the names that other classes have."""
    if key.startswith(("embeddings.", "encoder.", "pooler.")):
        key = f"roberta.{key}"
    if key in ("roberta.embeddings.position_ids", "roberta.embeddings.token_type_ids"):
        return None
    key = key.replace("classifier.out_proj.", "classifier.")
    return key.replace("classifier.dense.", "roberta.pooler.dense.")


def architecture(names: set[str]) -> str:
    """The class of Hugging Face that has the heads of a model."""
    return bert.architecture(names).replace("Bert", "Roberta")


def finish(architecture: str, tensors: dict[str, Stored]) -> dict[str, Stored]:
    """Tensors under the names of a class."""
    if architecture == "RobertaModel":
        return {key.removeprefix("roberta."): tensor for key, tensor in tensors.items()}
    if architecture != "RobertaForSequenceClassification":
        return tensors
    renamed = {"classifier.": "classifier.out_proj.", "roberta.pooler.dense.": "classifier.dense."}
    return {
        next(
            (new + key.removeprefix(old) for old, new in renamed.items() if key.startswith(old)), key
        ): tensor
        for key, tensor in tensors.items()
    }


ROBERTA_FAMILY = Family(
    model_type="roberta",
    config=BERTConfig,
    keys=KEYS,
    vocabulary=bert.BERT_FAMILY.vocabulary,
    read_config=read_config,
    write_config=write_config,
    misfits=misfits,
    normalise_key=normalise_key,
    repeated=(
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ),
    architecture=architecture,
    finish=finish,
    changes={"backbone.position.weight": Change(_without_padding, _with_padding)},
)
