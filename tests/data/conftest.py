"""What the tests of `llmtrain.data` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from llmtrain.data.corpus import Corpus, Document, HashFile, hash_texts
from llmtrain.data.fill import fill
from llmtrain.data.store import TokenStore
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.tokenizer_build import bytes_tokenizer
from llmtrain.data.writer import StoreWriter
from llmtrain.schema.data import DataConfig
from llmtrain.schema.tokenizer import BytesTokenizer


class ListCorpus(Corpus):
    """Documents from a list."""

    name = "list"

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)

    def documents(self):
        for i, text in enumerate(self.texts):
            yield Document(f"list:{i + 1}", (text,))

    def fingerprint(self, hash_file: HashFile) -> str:
        return hash_texts(*self.texts)


MakeStore = Callable[..., TokenStore]


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """Make a token store of some texts; of bytes, with small shards, unless told otherwise."""
    number = 0

    def make(
        texts: Sequence[str],
        *,
        tokenizer: Tokenizer | None = None,
        max_tokens: int | None = None,
        shard_tokens: int = 1 << 20,
    ) -> TokenStore:
        nonlocal number
        number += 1
        path = tmp_path / f"store-{number}"
        tokenizer = tokenizer or bytes_tokenizer(BytesTokenizer())
        with StoreWriter(path.with_suffix(".partial"), tokenizer, {}, shard_tokens) as writer:
            fill(writer, ListCorpus(texts), DataConfig(), max_tokens=max_tokens)
            writer.publish(path)
        return TokenStore.open(path)

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets beside the checkout; tests that want them are skipped where there are none."""
    folder = Path(__file__).parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data sets (../shared/data) are not on this machine")
    return folder
