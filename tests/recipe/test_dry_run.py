"""What is told of a training before it starts."""

from __future__ import annotations

import pytest

from llmtrain.compose.compose import compose
from llmtrain.recipe.context import BUILDERS, Context
from llmtrain.recipe.dry_run import dry_run
from llmtrain.schema.registry import builtin_registry
from llmtrain.utils.errors import ConfigError
from llmtrain.utils.signals import StopFlag


def shown(capsys: pytest.CaptureFixture[str], processes: int, *words: str) -> str:
    (composed,) = compose("pretrain", ["experiment=gpt2_small", "tokenizer.vocab_size=50257", *words])
    composed.config.launch.num_processes = processes
    dry_run(composed.config, Context(None, builtin_registry(), BUILDERS, StopFlag()))
    return " ".join(capsys.readouterr().out.split())


def test_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, 1)
    assert "processes" not in text
    assert "stages" not in text
    assert "12 micro batch x 40 accumulation x 1 data parallel = 480 rows" in text
    assert f"about {124_475_904 * 16 / 1e6:,.1f} MB in a process" in text


def test_a_layout(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(
        capsys, 16, "parallel.pp=4", "parallel.tp=2", "parallel.dp_shard=-1", "launch.num_processes=16"
    )
    assert "16 (pp=4 dp_shard=2 tp=2)" in text
    assert "blocks 0-2 | 3-6 | 7-10 | 11, 1f1b" in text  # the head costs as much as five blocks
    assert "12 micro batch x 20 in the pipeline x 2 data parallel = 480 rows" in text
    assert "about 113.5 to 245.9 MB" in text


def test_stages_that_are_not_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["parallel.schedule=interleaved_1f1b", "parallel.cuts=[3,6,9]", "launch.device=cpu"]
    text = shown(capsys, 2, "parallel.pp=2", *words)
    assert "blocks 0-2 and 6-8 | 3-5 and 9-11, interleaved_1f1b" in text


def test_a_layout_that_cannot_work_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="needs a multiple of 2 processes, not 3"):
        shown(capsys, 3, "parallel.tp=2", "launch.device=cpu")
