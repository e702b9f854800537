"""A preparation from a slow source, to be killed: `slow_prepare.py CACHE SECONDS` (run by test_prepare)."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from llmtrain.data import fill, writer
from llmtrain.data.corpus import Corpus, Document, Source
from llmtrain.data.prepare import Prepared, prepare
from llmtrain.data.tokenizer_build import TOKENIZERS
from llmtrain.schema.data import DataConfig, OnError
from llmtrain.schema.tokenizer import BPETokenizer
from llmtrain.utils.errors import DataError

NUM = 300


@dataclass
class SlowData(DataConfig):
    """Documents with a pause before each."""

    kind: str = "slow"
    seconds: float = 0.0


class SlowCorpus(Corpus):
    name = "slow"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def fingerprint(self, hash_file) -> str:
        return "slow"

    def documents(self):
        for i in range(NUM):
            time.sleep(self.seconds)
            if i % 50 == 3:
                yield Document(f"slow:{i}", error=DataError("broken", f"slow:{i}"))
            elif i % 50 == 4:
                yield Document(f"slow:{i}")
            elif i % 50 == 7:  # a document of many pieces
                yield Document(f"slow:{i}", (f"part {j} of a long document\n" for j in range(3000)))
            else:
                yield Document(f"slow:{i}", (f"This is document {i}, it says {i * i}. " * (1 + i % 9),))


def run(cache: Path, seconds: float, **callbacks) -> Prepared:
    """Prepare into a cache, in small batches, with a journal entry after each."""
    fill.BATCH_CHARACTERS = 2000
    fill.JOURNAL_SECONDS = 0.0
    writer.SHARD_TOKENS = 5000
    data = SlowData(seconds=seconds, on_error=OnError.skip)
    builders = {SlowData: lambda config: Source(SlowCorpus(config.seconds)), **TOKENIZERS}
    tokenizer = BPETokenizer(vocab_size=300, train_bytes=10_000)
    return prepare(data, tokenizer, seed=0, builders=builders, cache=cache, **callbacks)


if __name__ == "__main__":
    prepared = run(Path(sys.argv[1]), float(sys.argv[2]))
    print(prepared.report.cached, prepared.report.path)
