"""The machine and what runs on it: versions, peak of matrix products, allocators, environments."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from turns import without_allocator

from llmtrain.command.allocator import JEMALLOC_KEEPS, choose
from llmtrain.schema.fields import Allocator
from llmtrain.utils.machine import processor_name

HERE = Path(__file__).parent
LOOPS = HERE / "loops"
CHECKOUT = HERE.parents[1]

PACKAGES = ("llmtrain", "torch", "transformers", "accelerate", "datasets", "tokenizers")

TINY = {"layers": 2, "heads": 2, "dim": 64, "length": 32, "batch": 4}
"""Sizes for `--tiny`."""


@dataclass
class Bench:
    """How to run.

    Attributes:
        folder: for all files that come and go.
        rounds: of each work.
        steps: of a turn.
        threads: of each process.
        texts: files to pretrain on; none means Python's own prose.
        sst2: folder of SST-2's files; else sentences of our own making.
        shakespeare: tiny-shakespeare's one file.
        wikitext: folder of WikiText-2: train.txt.gz, valid.txt.
        gpt2: tokenizer of GPT-2, a folder; else byte-level BPE is learned from the text.
        litgpt_python: an interpreter that has litgpt.
        allocator: that both sides get, as `launch.allocator` or the path of a library.
        short: fewer contenders and smaller runs.
        tiny: tiny models, to try out the scripts.
    """

    folder: Path
    rounds: int = 5
    steps: int = 5
    threads: int = 2
    texts: list[Path] = field(default_factory=list)
    sst2: Path | None = None
    shakespeare: Path | None = None
    wikitext: Path | None = None
    gpt2: Path | None = None
    litgpt_python: str = sys.executable
    allocator: str = "auto"
    short: bool = False
    tiny: bool = False

    @property
    def allocator_label(self) -> str:
        """Of the allocator that both sides get."""
        return allocator_label(self.allocator)

    def shape(self, shape: dict[str, Any]) -> dict[str, Any]:
        """Sizes of a GPT and its batch, or tiny ones."""
        return {**shape, **TINY} if self.tiny else shape

    def environment(self, allocator: str | None = None) -> dict[str, str]:
        """Of a process with this allocator (default: the one that both sides get)."""
        path = os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
        common = {"OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        common |= {"TOKENIZERS_PARALLELISM": "true"}
        return common | allocator_environment(allocator or self.allocator)

    def on_shakespeare(self) -> Bench:
        """The same, with tiny-shakespeare (of 65 characters) as the text where it is given."""
        return replace(self, texts=[self.shakespeare]) if self.shakespeare else self

    def data_words(self) -> list[str]:
        """Of an llmtrain command: what to pretrain on."""
        if not self.texts:
            return ["data=python_prose"]
        return ["data=text", f"data.paths=[{','.join(str(path) for path in self.texts)}]"]

    def wikitext_words(self) -> list[str]:
        """The same, of WikiText-2 where it is given."""
        if self.wikitext is None:
            return ["data=python_prose"]
        train, valid = self.wikitext / "train.txt.gz", self.wikitext / "valid.txt"
        return ["data=text", f"data.paths=[{train}]", f"data.validation_paths=[{valid}]"]

    def new_folder(self, name: str) -> Path:
        """A path that nobody else has or gets, in a folder that is there."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder)) / name

    def run(self, words: list[str], **environment: str) -> float:
        """Run `llmtrain`; returns seconds.

        Raises:
            RuntimeError: it failed.
        """
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "llmtrain", *words],
            env={**without_allocator(os.environ), **self.environment(), **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-8:]
            raise RuntimeError(
                f"llmtrain {' '.join(words)} ended with {done.returncode}:\n" + "\n".join(last)
            )
        return time.perf_counter() - start


def allocator_environment(name: str) -> dict[str, str]:
    """What a process needs in its environment to have an allocator: what llmtrain gives its own workers.

    Raises:
        ValueError: there is none of this name here.
    """
    if "/" in name:
        if not Path(name).exists():
            raise ValueError(f"there is no library {name}")
        return {"LD_PRELOAD": name, "MALLOC_CONF": JEMALLOC_KEEPS if "jemalloc" in name else ""}
    if name not in [one.value for one in Allocator]:
        raise ValueError(
            f"there is no allocator {name!r}; there are {', '.join(one.value for one in Allocator)}"
        )
    choice = choose(Allocator(name), False, {})
    if choice.problem:
        raise ValueError(choice.problem)
    return dict(choice.variables)


def allocator_label(name: str) -> str:
    """For a table."""
    return {"auto": "glibc, tuned", "glibc": "glibc, tuned", "system": "glibc"}.get(name, Path(name).stem)


def describe(bench: Bench) -> dict[str, Any]:
    """Date, machine, versions and the peak of products of matrices."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found = subprocess.run(
        [bench.litgpt_python, "-c", "import importlib.metadata as m; print(m.version('litgpt'))"],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode == 0:
        versions["litgpt"] = found.stdout.strip()
    peak = subprocess.run(
        [sys.executable, str(HERE / "peak.py")],
        env={**without_allocator(os.environ), **bench.environment()},
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = json.loads(peak.stdout)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor_name(),
        "threads": bench.threads,
        "peak_fp32": peaks["fp32"],
        "peak_bf16": peaks["bf16"],
        "versions": versions,
    }
