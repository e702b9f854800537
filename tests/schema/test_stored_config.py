"""A configuration survives being written and read."""

from __future__ import annotations

import pytest

from llmtrain.compose.compose import compose
from llmtrain.schema.load import build, dump
from llmtrain.schema.registry import builtin_registry
from llmtrain.schema.roots import ROOTS
from llmtrain.schema.stored import config_text, read_plain
from llmtrain.utils.errors import ConfigError


def test_round_trip() -> None:
    words = ["run.name=1e3", "optim.eps=1e-9", "extra.odd=['on', 'null', '3', 'ä: #']", "data.text_key=x"]
    (composed,) = compose("pretrain", ["data=text", "data.paths=[a]", *words])
    verb, data = read_plain(config_text("pretrain", composed.config), "here")
    assert verb == "pretrain"
    assert data == dump(composed.config)
    assert build(ROOTS[verb], data, builtin_registry()) == composed.config


@pytest.mark.parametrize("text", ["", "- 3", "verb: dance\n", "model: [", "verb: pretrain\n  x: 3"])
def test_what_is_no_config(text: str) -> None:
    with pytest.raises(ConfigError, match="stored config"):
        read_plain(text, "here")
