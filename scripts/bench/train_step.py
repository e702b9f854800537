"""The engine beside a hand-written loop: tokens per second, waiting for data, time to the first step.

GPT with 6 layers, 6 heads, width 384, rows of 256, batch 32, characters, bf16. Both train in one process,
a few steps in turn, so that whatever else happens on the machine happens to both; the table shows medians
over the rounds. Times to the first step are those of whole processes, in turn too.

    python scripts/bench/train_step.py [--text FILE] [--rounds 8] [--steps 3] [--starts 3] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from minimal_loop import BATCH, LENGTH, Loop

from llmtrain.compose.compose import compose
from llmtrain.data.prepare import prepare
from llmtrain.engine.engine import Engine, Hook
from llmtrain.recipe.context import BUILDERS, Context
from llmtrain.recipe.pretrain import set_up
from llmtrain.schema.registry import builtin_registry
from llmtrain.utils.run_directory import RunDirectory
from llmtrain.utils.signals import StopFlag

SETTINGS = [
    "model=gpt/baby",
    f"model.max_positions={LENGTH}",
    "data=text",
    "data.validation_fraction=0.1",
    "tokenizer=characters",
    f"train.batch_size={BATCH}",
    f"train.sequence_length={LENGTH}",
    "precision=bf16",
    "compile=never",
    "eval.every=0",
    "checkpoint.every=0",
]


class InTurn(Hook):
    """A hook that lets the loop train after every few steps of the engine, and times both."""

    def __init__(self, loop: Loop, steps: int) -> None:
        self.loop, self.steps = loop, steps
        self.engine_seconds: list[float] = []
        self.loop_seconds: list[float] = []
        self.waits: list[float] = []
        self.waited = 0.0
        self.started = time.perf_counter()

    def start(self, engine: Engine) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def after_step(self, engine: Engine) -> None:
        """Every `steps` steps: note the time, and give the loop as many."""
        self.waited += engine.throughput._waited
        engine.throughput._waited = 0.0
        if engine.state.step % self.steps:
            return
        seconds = time.perf_counter() - self.started
        self.engine_seconds.append(seconds / self.steps)
        self.waits.append(self.waited / seconds)
        start = time.perf_counter()
        for _ in range(self.steps):
            self.loop.one_step()
        self.loop_seconds.append((time.perf_counter() - start) / self.steps)
        self.waited, self.started = 0.0, time.perf_counter()


def interleaved(text: Path, rounds: int, steps: int, folder: Path) -> tuple[InTurn, Path, int]:
    """Train both in turn; the first round warms up and is left out."""
    words = [*SETTINGS, f"data.paths=[{text}]", f"train.steps={(rounds + 1) * steps}"]
    config = compose("pretrain", words, None, False)[0].config
    run = RunDirectory(folder / "run")
    run.path.mkdir()
    context = Context(run, builtin_registry(), BUILDERS, StopFlag())
    prepared = prepare(config.data, config.tokenizer, seed=config.run.seed)
    tokens, vocab = prepared.train.read(0, prepared.train.num_tokens), prepared.tokenizer.vocab_size
    binary = folder / "tokens.bin"
    tokens.astype("uint16").tofile(binary)
    engine, _ = set_up(config, context)
    turns = InTurn(Loop(tokens, vocab), steps)
    engine.hooks = [turns]
    engine.fit()
    engine.close()
    for series in (turns.engine_seconds, turns.loop_seconds, turns.waits):
        del series[0]
    return turns, binary, vocab


def seconds_to_first_step(command: list[str], folder: Path) -> float:
    """From starting a process to its line about step 1."""
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step=1 "):
                seconds = time.perf_counter() - start
                process.kill()
                return seconds
    raise RuntimeError(f"{command} ended before its first step")


def main() -> None:
    """Run and print the table; the numbers go to standard output as JSON besides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", type=Path, help="text file (default: Python's own prose, written to a file)"
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = options.text.resolve() if options.text else write_default_text(folder / "text.txt")
        turns, binary, vocab = interleaved(text, options.rounds, options.steps, folder)
        loop_command = [
            sys.executable,
            str(Path(__file__).parent / "minimal_loop.py"),
            str(binary),
            str(vocab),
            "1",
        ]
        ours, theirs = [], []
        for number in range(options.starts):
            words = [*SETTINGS, f"data.paths=[{text}]", "train.steps=5", "log.every=1", "log.panel=lines"]
            ours_command = [sys.executable, "-m", "llmtrain", "pretrain", *words, f"run.name=start{number}"]
            ours.append(seconds_to_first_step(ours_command, folder))
            theirs.append(seconds_to_first_step(loop_command, folder))
    report(turns, ours, theirs)


def write_default_text(path: Path) -> Path:
    """Python's prose as one file."""
    prepared = prepare(
        compose("pretrain", [], None, False)[0].config.data,
        compose("pretrain", ["tokenizer=bytes"], None, False)[0].config.tokenizer,
        seed=0,
    )
    path.write_text(prepared.tokenizer.decode(prepared.train.read(0, prepared.train.num_tokens)))
    return path


def report(turns: InTurn, ours: list[float], theirs: list[float]) -> None:
    """Medians and ratios."""
    tokens = BATCH * LENGTH
    engine, loop = statistics.median(turns.engine_seconds), statistics.median(turns.loop_seconds)
    ratio = statistics.median(b / a for a, b in zip(turns.engine_seconds, turns.loop_seconds, strict=True))
    start, loop_start = statistics.median(ours), statistics.median(theirs)
    wait = statistics.median(turns.waits)
    table = Table(
        "", "llmtrain", "minimal loop", "ratio", title="GPT 6L/6H/384, 32 x 256, bf16, not compiled"
    )
    table.add_row("ms a step", f"{1e3 * engine:.0f}", f"{1e3 * loop:.0f}", f"{engine / loop:.3f}")
    table.add_row("tokens/s", f"{tokens / engine:,.0f}", f"{tokens / loop:,.0f}", f"{ratio:.3f}")
    table.add_row("waiting for data", f"{100 * wait:.2f} %", "", "")
    table.add_row("first step done, s", f"{start:.2f}", f"{loop_start:.2f}", f"{start / loop_start:.2f}")
    Console().print(table)
    result = {
        "threads": torch.get_num_threads(),
        "engine_seconds": turns.engine_seconds,
        "loop_seconds": turns.loop_seconds,
        "tokens_per_second_ratio": ratio,
        "data_wait": wait,
        "first_step_seconds": ours,
        "loop_first_step_seconds": theirs,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
