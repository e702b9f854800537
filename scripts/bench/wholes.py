"""Works that are whole runs: tokenising, start-up, processes, saves, faithfulness."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import LOOPS, Bench
from table import Result, log, median
from training import GPT2, SMALL, gpt_words, large_vocabulary, write_tokens
from turns import without_allocator

from llmtrain.compose.compose import compose
from llmtrain.data.prepare import prepare
from llmtrain.utils.io import read_json, read_json_lines

BABY = ["experiment=shakespeare_characters", "log.panel=lines"]
"""nanoGPT's recipe for a CPU, of 4 layers of 128 and rows of 64."""


def row(name: str, values: list[float], note: str = "", **told: Any) -> dict[str, Any]:
    """A row of a table; less is better."""
    return {"name": name, "values": values, "note": note, **told}


def make(title: str, how: str, measure: str, rows: list[dict[str, Any]], **more: Any) -> Result:
    """A result without amounts."""
    return {"title": title, "how": how, "unit": "", "measure": measure, "rows": rows, **more}


def tokenise(bench: Bench, _peak: float) -> Result:
    """Byte-level BPE and WordPiece, with tokenizers that are there already; about 24 MB of text."""
    folder = bench.new_folder("tokenise")
    folder.mkdir()
    words = bench.data_words()
    files = [str(path) for path in bench.texts]
    if not files or any(".jsonl" not in name for name in files):
        config = compose("pretrain", [*words, "tokenizer=bytes"], None, False)[0].config
        files = [
            str(write_documents(prepare(config.data, config.tokenizer, seed=0), folder / "text.jsonl.gz"))
        ]
    bpe = ["tokenizer=bpe", "tokenizer.vocab_size=32000"]
    if bench.gpt2:
        bpe = ["tokenizer=file", f"tokenizer.path={bench.gpt2}"]
    piece = ["tokenizer=wordpiece", "tokenizer.vocab_size=16000"]
    rows = []
    for kind, chosen in {"byte-level BPE": bpe, "WordPiece": piece}.items():
        config = compose("pretrain", [*words, *chosen], None, False)[0].config
        tokenizer = folder / f"{kind.split()[-1]}.json"
        tokenizer.write_text(prepare(config.data, config.tokenizer, seed=0).tokenizer.to_json())
        found: dict[str, list[dict[str, Any]]] = {"llmtrain": [], "datasets": []}
        for _ in range(bench.rounds):
            for tool, runs in found.items():
                runs.append(
                    loop_json(bench, "tokenise", [tool, str(tokenizer), str(bench.new_folder(tool)), *files])
                )
                log(f"  {kind}, {tool}: {runs[-1]['seconds']:.2f} s, {runs[-1]['peak_bytes'] / 1e6:.0f} MB")
        equal = len({run["digest"] for runs in found.values() for run in runs}) == 1
        size = sum(len(line.encode()) for line in read_texts(files)) / 1e6
        for tool, runs in found.items():
            seconds = [run["seconds"] for run in runs]
            memory = median([run["peak_bytes"] for run in runs]) / 1e6
            note = f"{size / median(seconds):.1f} MB/s, {memory:.0f} MB of memory"
            note += f", {'equal' if equal else 'DIFFERENT'} ids, {runs[0]['tokens']:,}"
            name = f"{'llmtrain prepare' if tool == 'llmtrain' else 'datasets.map, 2 processes'}, {kind}"
            rows.append(row(name, seconds, note, peak_bytes=memory * 1e6, allocator=bench.allocator_label))
            rows[-1]["reference"] = [run["seconds"] for run in found["llmtrain"]]
    how = "from the start of reading (packages imported) to the ids on disk, documents of a JSONL file"
    return make(f"Tokenising {size:.0f} MB", how, "all", rows)


def read_texts(files: list[str]) -> list[str]:
    """The texts of JSONL files."""
    contents = (Path(file).read_bytes() for file in files)
    plain = (
        gzip.decompress(one) if file.endswith(".gz") else one
        for file, one in zip(files, contents, strict=True)
    )
    return [json.loads(line)["text"] for one in plain for line in one.splitlines()]


def write_documents(prepared: Any, path: Path) -> Path:
    """The documents of a store as JSONL."""
    view = prepared.train
    with gzip.open(path, "wt", 1) as file:
        for start, end in zip(*(one.tolist() for one in view.spans), strict=True):
            file.write(json.dumps({"text": prepared.tokenizer.decode(view.read(start, end))}) + "\n")
    return path


def loop_json(bench: Bench, loop: str, arguments: list[str]) -> dict[str, Any]:
    """What a script of `loops` prints."""
    done = subprocess.run(
        [sys.executable, str(LOOPS / f"{loop}.py"), *arguments],
        env={**without_allocator(os.environ), **bench.environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{loop}.py {' '.join(arguments)}:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def seconds_until(bench: Bench, command: list[str], found: Callable[[str], bool]) -> tuple[float, bool]:
    """From starting a process to the line that is looked for, or to its end where there is none."""
    start = time.perf_counter()
    environment = {**without_allocator(os.environ), **bench.environment(), "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # bytecode is there, as pip leaves it
    errors = bench.folder / "last_error.log"
    with (
        errors.open("w") as file,
        subprocess.Popen(
            command, cwd=bench.folder, stdout=subprocess.PIPE, stderr=file, text=True, env=environment
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if found(line):
                seconds = time.perf_counter() - start
                process.terminate()
                return seconds, True
    if process.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {process.returncode}:\n{errors.read_text()[-1500:]}"
        )
    return time.perf_counter() - start, False


def startup(bench: Bench, _peak: float) -> Result:
    """From the shell command to the end of the first step; data are prepared already."""
    folder = bench.new_folder("startup")
    folder.mkdir()
    shape = bench.shape(SMALL)
    words = gpt_words(bench.on_shakespeare(), shape, ["tokenizer=characters"])
    tokens, described = write_tokens(folder, words, shape)
    minimal = [
        sys.executable,
        str(LOOPS / "minimal.py"),
        str(tokens),
        str(described),
        "--bf16",
        "--steps",
        "3",
    ]
    seconds: dict[str, list[float]] = {"llmtrain": [], "minimal loop": []}
    for _ in range(bench.rounds):
        run = [f"run.dir={bench.new_folder('first')}", "train.steps=5", "log.every=1"]
        ours = [sys.executable, "-m", "llmtrain", "pretrain", *words, *run]
        for name, command in (("llmtrain", ours), ("minimal loop", minimal)):
            taken, reached = seconds_until(bench, command, lambda line: line.lstrip().startswith("step=1 "))
            assert reached, f"{command} told of no first step"
            seconds[name].append(taken)
        log("  " + ", ".join(f"{name} {taken[-1]:.2f} s" for name, taken in seconds.items()))
    told = {"precision": "bf16", "compile": "no", "allocator": bench.allocator_label}
    rows = [row(name, taken, **told) for name, taken in seconds.items()]
    return make("Start-up: the first step of the small GPT is done", "whole processes", "time", rows)


def processes(bench: Bench, _peak: float) -> Result:
    """The small GPT in one process with two threads and in two with one thread each."""
    shape = bench.shape(SMALL)
    words = [*gpt_words(bench.on_shakespeare(), shape, ["tokenizer=characters"]), "log.every=1"]
    steps = 3 * bench.steps
    layouts = {
        "llmtrain, 1 process of 2 threads": (1, 2, True),
        "2 processes of 1 thread": (2, 1, True),
        "2 processes, not bound to cores": (2, 1, False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    for _ in range(bench.rounds):
        for name, (number, threads, bind) in layouts.items():
            run = bench.new_folder("processes")
            told = [f"launch.num_processes={number}", f"launch.threads={threads}", f"launch.bind={bind}"]
            told += [f"train.steps={steps}"]
            bench.run(["pretrain", *words, *told, f"run.dir={run}"], OMP_NUM_THREADS=str(threads))
            records = [one for one in read_json_lines(run / "metrics.jsonl") if one["kind"] == "train"]
            amount = shape["batch"] * shape["length"]
            seconds[name].append(median([amount / one["tokens_per_second"] for one in records[2:]]))
            log(f"  {name}: {seconds[name][-1]:.3f} s a step")
    config = read_json(run / "summary.json")
    told = {"precision": config["precision"], "allocator": bench.allocator_label}
    told["compile"] = "yes" if config["compile"] == "always" else "no"
    rows = [row(name, taken, **told) for name, taken in seconds.items()]
    return make(
        "One process and two, small GPT, same global batch", f"median of {steps} steps", "a step", rows
    )


def shakespeare(bench: Bench) -> list[str]:
    """Tiny-shakespeare as words, or Python's prose where it is not given."""
    if bench.shakespeare is None:
        return ["data=python_prose", "data.max_tokens=1200000"]
    return ["data=text", f"data.paths=[{bench.shakespeare}]"]


def saves(bench: Bench, _peak: float) -> Result:
    """What ten saves of GPT-2 124M cost: the same training with and without them."""
    words = gpt_words(bench, bench.shape(GPT2), large_vocabulary(bench))
    words += ["data.validation_fraction=0", "log.every=1"]
    steps, number = (4, 2) if bench.short else (60, 10)
    seconds: dict[str, list[float]] = {"llmtrain, one save at the end": [], f"{number} saves": []}
    step = math.inf
    for _ in range(min(2, bench.rounds)):
        for name, taken in seconds.items():
            run = bench.new_folder("saves")
            every = 0 if name.startswith("llmtrain") else steps // number
            told = [f"run.dir={run}", f"train.steps={steps}", f"checkpoint.every={every}"]
            taken.append(bench.run(["pretrain", *words, *told, "checkpoint.keep=1"]))
            records = [one for one in read_json_lines(run / "metrics.jsonl") if one["kind"] == "train"]
            if every == 0:
                tokens = records[-1]["tokens"] / steps
                step = min(step, median([tokens / one["tokens_per_second"] for one in records]))
            log(f"  {name}: {taken[-1]:.1f} s, {step:.2f} s a step")
            shutil.rmtree(run / "checkpoints", ignore_errors=True)
    plain, saved = (median(taken) for taken in seconds.values())
    share = (saved - plain) / (number - 1) * 10 / (step * 500)
    rows = [row(name, taken, allocator=bench.allocator_label) for name, taken in seconds.items()]
    rows[1]["note"] = f"ten saves take {100 * share:.1f} % of 500 steps of {step:.2f} s"
    return make("Checkpoints of GPT-2 124M", f"whole runs of {steps} steps", "time", rows)


def optimised_vs_plain(bench: Bench, _peak: float) -> Result:
    """Validation loss after 500 steps: by default against plain fp32 without own kernels or compilation."""
    steps, seeds = (50, 1) if bench.short else (500, 3)
    words = [*BABY, *shakespeare(bench), f"train.steps={steps}", f"eval.every={steps}", "checkpoint.every=0"]
    words += ["schedule.warmup=0.1"]
    kinds = {"llmtrain, defaults": [], "plain": ["precision=fp32", "compile=never"]}
    losses: dict[str, list[float]] = {name: [] for name in kinds}
    for seed in range(seeds):
        for name, more in kinds.items():
            run = bench.new_folder("plain")
            kernels = {"LLMTRAIN_KERNELS": "0"} if more else {}
            bench.run(["pretrain", *words, *more, f"run.seed={seed}", f"run.dir={run}"], **kernels)
            summary = read_json(run / "summary.json")
            losses[name].append(summary["validation_loss"])
            log(f"  {name}, seed {seed}: {losses[name][-1]:.4f} ({summary['precision']})")
    ours, plain = losses.values()
    apart = max(abs(a / b - 1) for a, b in zip(ours, plain, strict=True))
    rows = [row(name, found, unit="nats") for name, found in losses.items()]
    rows[0]["note"] = f"at most {100 * apart:.2f} % from plain with the same seed"
    rows[0] |= {"precision": "auto", "compile": "auto", "allocator": bench.allocator_label}
    rows[1] |= {"precision": "fp32", "compile": "no", "allocator": bench.allocator_label}
    how = f"4 layers of 128, 12 x 64, {seeds} seeds"
    return make(f"Validation loss after {steps} steps", how, "loss", rows)


WHOLES: dict[str, Callable[[Bench, float], Result]] = {
    "tokenise": tokenise,
    "startup": startup,
    "processes": processes,
    "saves": saves,
    "optimised_vs_plain": optimised_vs_plain,
}
