"""How fast text becomes a token store, and with how much memory.

    python scripts/bench/prepare_novels.py FILES... [--vocab-size N]

Prepares the files with a BPE tokenizer of 8,192 tokens into an empty cache (training the tokenizer and
tokenising are timed apart), then opens the finished store once more. Speeds are MB of UTF-8 text a second.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from llmtrain.data.prepare import Progress, prepare
from llmtrain.schema.data import TextData
from llmtrain.schema.tokenizer import BPETokenizer


def main() -> None:
    """Run the benchmark and print its numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--vocab-size", type=int, default=8192)
    arguments = parser.parse_args()
    data = TextData(paths=arguments.files)
    config = BPETokenizer(vocab_size=arguments.vocab_size)
    first_tokens: list[float] = []

    def note(progress: Progress) -> None:
        if progress.stage == "tokens" and not first_tokens:
            first_tokens.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        start = time.perf_counter()
        prepared = prepare(data, config, seed=0, cache=cache, report=note)
        total = time.perf_counter() - start
        (tokenizer_file,) = (cache / "tokenizers").glob("*.json")
        training = tokenizer_file.stat().st_mtime - (time.time() - (time.perf_counter() - start))
        start = time.perf_counter()
        again = prepare(data, config, seed=0, cache=cache)
        reopened = time.perf_counter() - start
    assert again.report.cached
    megabytes = prepared.report.bytes / 1e6
    tokenising = total - training
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    print(f"text                 {megabytes:8.1f} MB in {prepared.report.documents} documents")
    print(
        f"tokens               {prepared.report.tokens:8d} ({prepared.report.bytes_per_token:.2f} bytes each)"
    )
    print(f"training tokenizer   {training:8.2f} s")
    print(f"tokenising           {tokenising:8.2f} s  {megabytes / tokenising:6.2f} MB/s")
    print(f"all                  {total:8.2f} s  {megabytes / total:6.2f} MB/s")
    print(f"opening it again     {reopened:8.3f} s")
    print(f"peak memory          {peak:8.0f} MB")


if __name__ == "__main__":
    main()
