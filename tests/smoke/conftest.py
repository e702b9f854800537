"""Small pretrained models that several tests start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.command import succeed
from tests.helpers.tasks import SMALL


def pretrain(folder: Path, text: Path, *more: str) -> Path:
    """A short run on a small text; returns its directory."""
    words = ["data=text", f"data.paths=[{text}]", "data.documents=paragraph", "tokenizer=wordpiece"]
    words += ["tokenizer.vocab_size=120", "train.steps=100", "optim.lr=3e-3", f"run.dir={folder / 'run'}"]
    succeed("pretrain", *words, *SMALL, *more, cwd=folder)
    return folder / "run"


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory, sentences: Path) -> Path:
    """A BERT with both of its tasks."""
    words = ["model=bert/debug", "objective=mlm_nsp"]
    return pretrain(tmp_path_factory.mktemp("encoder"), sentences, *words)


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory, sentences: Path) -> Path:
    """A GPT."""
    return pretrain(tmp_path_factory.mktemp("decoder"), sentences, "model=gpt/debug")
