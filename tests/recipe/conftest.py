"""Models that several tests start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.recipes import TINY, call, pretrain
from tests.helpers.tasks import write_classification


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="session")
def encoder(folder: Path, sentences: Path) -> Path:
    return pretrain(folder / "bert", sentences, "model=bert/debug", "objective=mlm_nsp")


@pytest.fixture(scope="session")
def decoder(folder: Path, sentences: Path) -> Path:
    return pretrain(folder / "gpt", sentences, "model=gpt/debug")


@pytest.fixture(scope="session")
def tuned(folder: Path, encoder: Path) -> Path:
    """A run that holds a tenth of 60 examples out."""
    examples = write_classification(folder / "train.tsv", 60)
    call("finetune", f"init_from={encoder}", f"task.paths=[{examples}]", *TINY, run=folder / "tuned")
    return folder / "tuned"
