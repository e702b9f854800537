"""Text to ids on disk, by `llmtrain prepare` or by `datasets.map`; prints what it took as JSON.

    python scripts/bench/loops/tokenise.py llmtrain|datasets TOKENIZER.json FOLDER FILES.jsonl.gz...

The clock starts when packages are imported and ends when the ids are on the disk; peak memory is that of the
process and all its children, pages that they share counted once. `digest` is of all ids without the end of
documents, equal where the ids are.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np


class PeakMemory(threading.Thread):
    """Looks every 20 ms how much memory the process and its children have."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        """Look, until the process ends."""
        while True:
            self.peak = max(self.peak, sum(proportional(pid) for pid in family(os.getpid())))
            time.sleep(0.02)


def family(pid: int) -> list[int]:
    """A process and all below it (Linux)."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [one for child in path.read_text().split() for one in family(int(child))]
        except OSError:
            continue
    return found


def proportional(pid: int) -> int:
    """Bytes of memory of a process, its part of what it shares."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return 1024 * int(text.partition("\nPss:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        return 0


def by_llmtrain(tokenizer: str, folder: Path, files: list[str]) -> dict[str, Any]:
    """`prepare`, into an empty cache."""
    from llmtrain.data.prepare import prepare
    from llmtrain.schema.data import TextData
    from llmtrain.schema.tokenizer import FileTokenizer

    started = begin()
    prepared = prepare(TextData(paths=files), FileTokenizer(path=tokenizer), seed=0, cache=folder)
    seconds = time.perf_counter() - started
    store = prepared.trains[""].store
    ids = store.read(0, store.num_tokens)
    return {"seconds": seconds, **told(ids[ids != store.end_id])}


def by_datasets(tokenizer: str, folder: Path, files: list[str]) -> dict[str, Any]:
    """`datasets.map` with transformers' tokenizer, in two processes, as its users do."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    started = begin()
    made = transformers.PreTrainedTokenizerFast(tokenizer_file=tokenizer)
    made.model_max_length = int(1e12)  # which only keeps it from warning
    data = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(folder))
    data = data.map(
        lambda rows: {"ids": made(rows["text"], add_special_tokens=False)["input_ids"]},
        batched=True,
        num_proc=2,
        remove_columns=data.column_names,
    )
    seconds = time.perf_counter() - started
    parts = [np.array(row["ids"], np.uint32) for row in data]
    return {"seconds": seconds, **told(np.concatenate(parts))}


MEMORY = PeakMemory()


def begin() -> float:
    """Start the clock and the watch over memory."""
    MEMORY.start()
    return time.perf_counter()


def told(ids: np.ndarray) -> dict[str, Any]:
    """Of the ids; taken after the clock has stopped."""
    peak = MEMORY.peak
    digest = hashlib.sha256(np.ascontiguousarray(ids, np.uint32).tobytes()).hexdigest()
    return {"tokens": len(ids), "digest": digest[:16], "peak_bytes": peak}


if __name__ == "__main__":
    maker = {"llmtrain": by_llmtrain, "datasets": by_datasets}[sys.argv[1]]
    print(json.dumps(maker(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])))
