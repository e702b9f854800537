"""A tokenizer goes through a run, fine-tuning and conversion as it is, with the token that ends documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmtrain.checkpoint.hf.read import read_hf
from llmtrain.checkpoint.read import resolve
from llmtrain.data import wordpiece
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.recipe.checkpointed import open_checkpoint, open_pretrained
from llmtrain.utils.errors import ConfigError
from tests.helpers.recipes import TINY, call, context
from tests.helpers.tasks import NAMES, THINGS, VERBS, write_classification

WORDS = sorted({word for phrase in NAMES + VERBS + THINGS for word in phrase.split()} | {"."})


@pytest.fixture
def own_end(tmp_path: Path) -> Tokenizer:
    """A tokenizer whose end token is not the one that would be taken for it."""
    inner = wordpiece.from_vocab([*wordpiece.SPECIAL_TOKENS, "<stop>", "</s>", *WORDS], lowercase=True)
    (tmp_path / "own.json").write_text(inner.to_str())
    return Tokenizer(inner, kind="file", end_token="<stop>")


def test_its_own_end_token_is_not_lost(own_end, sentences, tmp_path):
    assert own_end.unusual_end == "<stop>"
    words = ["data=text", f"data.paths=[{sentences}]", "data.documents=paragraph", *TINY]
    words += [
        "model=bert/debug",
        "objective=mlm",
        "tokenizer=file",
        f"tokenizer.path={tmp_path / 'own.json'}",
    ]
    call("pretrain", *words, "tokenizer.end_token=<stop>", run=tmp_path / "bert")
    opened = open_checkpoint(str(tmp_path / "bert"), context(), torch.device("cpu")).tokenizer
    assert (opened.end_token, opened.sha256) == ("<stop>", own_end.sha256)

    examples = write_classification(tmp_path / "train.tsv", 30)
    call(
        "finetune",
        f"init_from={tmp_path / 'bert'}",
        f"task.paths=[{examples}]",
        *TINY,
        run=tmp_path / "tuned",
    )
    assert open_pretrained(str(tmp_path / "tuned"), context()).tokenizer.sha256 == own_end.sha256

    call("convert", f"source={tmp_path / 'tuned'}", f"target={tmp_path / 'hf'}")
    assert read_hf(tmp_path / "hf").tokenizer.sha256 == own_end.sha256


def test_pretraining_goes_on_with_the_vocabulary_of_the_weights_only(decoder, sentences, tmp_path, capsys):
    """Both vocabularies have 120 tokens, so that the shapes of the weights tell nothing."""
    other = tmp_path / "other.txt"
    other.write_text(sentences.read_text().replace("e", "o"))
    words = ["model=gpt/debug", "data=text", f"data.paths=[{other}]", f"init_from={decoder}", *TINY]
    with pytest.raises(ConfigError, match="not that of init_from") as caught:
        call("pretrain", "tokenizer=wordpiece", "tokenizer.vocab_size=120", *words, run=tmp_path / "no")
    advice = caught.value.problems[0].fix.removeprefix("give ").split()
    call("pretrain", *advice, *words, run=tmp_path / "run")
    assert "other settings" not in capsys.readouterr().out

    settings = json.loads((resolve(decoder) / "tokenizer.json").read_text())
    settings["normalizer"]["lowercase"] = False
    (tmp_path / "cased.json").write_text(json.dumps(settings))
    cased = ["tokenizer=file", f"tokenizer.path={tmp_path / 'cased.json'}"]
    call("pretrain", *cased, *words, run=tmp_path / "cased")
    assert f"has the vocabulary of {resolve(decoder).name}, but other settings" in capsys.readouterr().out
