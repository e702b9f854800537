"""What the presets of tasks choose besides the task."""

from __future__ import annotations

import pytest

from llmtrain.compose.compose import compose
from llmtrain.compose.folders import ConfigFolders

PRESETS = ConfigFolders.make().groups()["task"]


@pytest.mark.parametrize("name", PRESETS)
def test_questions_have_longer_rows_unless_they_are_asked_for_otherwise(name: str) -> None:
    words = [f"task={name}", "init_from=run", "task.paths=[a.json]"]
    (usual,), (own,) = compose("finetune", words), compose("finetune", ["train.sequence_length=99", *words])
    kind = name.partition("/")[0]
    assert usual.config.task.kind == kind
    lengths = {"question_answering": 384, "generation": 512}
    assert usual.config.train.sequence_length == lengths.get(kind, 128)
    assert own.config.train.sequence_length == 99
    size = 8 if kind == "generation" else 32  # rows with several conversations each
    assert usual.config.train.batch_size == own.config.train.batch_size == size
