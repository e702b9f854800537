"""Works that ask how much is learned in a time: decoders to a loss, encoders in equal minutes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import LOOPS, Bench
from table import Result, log, median
from training import write_reviews, write_tokens
from wholes import BABY, make, row, seconds_until, shakespeare

from llmtrain.compose.compose import compose
from llmtrain.data.prepare import prepare
from llmtrain.utils.io import read_json, read_json_lines

NANOGPT = {"bias": False, "rate": 1e-3, "least": 1e-4, "beta2": 0.99}
"""nanoGPT's learning rates for small models."""

RECIPE = NANOGPT | {"layers": 4, "heads": 4, "dim": 128, "length": 64, "batch": 12, "steps": 2000}
"""nanoGPT's recipe for a CPU, of 4 layers of 128 and rows of 64."""

WORDS = NANOGPT | {"layers": 4, "heads": 4, "dim": 256, "length": 128, "batch": 32, "steps": 1000}
"""The same of the size of `speedrun_wikitext`."""


def write_validation(folder: Path, words: list[str]) -> Path:
    """The validation text's ids for the minimal loop."""
    config = compose("pretrain", words, None, False)[0].config
    held_out = prepare(config.data, config.tokenizer, seed=0).validation
    assert held_out is not None
    path = folder / "validation.bin"
    parts = [held_out.read(int(a), int(b)) for a, b in zip(*held_out.spans, strict=True)]
    np.concatenate(parts).astype(np.uint16).tofile(path)
    return path


def until_loss(bench: Bench, command: list[str], target: float) -> tuple[float, str]:
    """Seconds until a validation loss is reached, or to the end; and the lowest that was seen."""
    seen: list[float] = []
    taken, reached = seconds_until(bench, command, lambda line: reaches(line, target, seen))
    return taken, f"{min(seen, default=float('nan')):.3f}" + ("" if reached else " only, at its end")


def reaches(line: str, target: float, seen: list[float]) -> bool:
    """Whether a line tells of a validation loss (`val=...`) that is low enough; notes those that are told."""
    found = [float(word[4:]) for word in line.split() if word.startswith("val=")]
    seen += found
    return any(loss <= target for loss in found)


def speedrun(bench: Bench, experiment: str, text: list[str], seed: int) -> list[str]:
    """A command of ours that tells its validation losses."""
    told = [f"run.seed={seed}", "log.panel=lines", f"run.dir={bench.new_folder('speedrun')}"]
    told += ["eval.every=100", "checkpoint.every=0"] + (["train.steps=200"] if bench.short else [])
    return [sys.executable, "-m", "llmtrain", "pretrain", f"experiment={experiment}", *text, *told]


def time_to_loss(bench: Bench, _peak: float) -> Result:
    """From the shell command to a validation loss of 1.88, median of 3 seeds, evaluation every 100 steps."""
    folder = bench.new_folder("loss")
    folder.mkdir()
    text = shakespeare(bench)
    tokens, described = write_tokens(folder, [*BABY, *text], RECIPE)
    valid = write_validation(folder, [*BABY, *text])
    target = 1.88 if bench.shakespeare else 2.2
    steps = 200 if bench.short else RECIPE["steps"]
    minimal = [sys.executable, str(LOOPS / "minimal.py"), str(tokens), str(described)]
    minimal += ["--steps", str(steps), "--validation", str(valid)]
    commands: dict[str, Callable[[int], list[str]]] = {
        "llmtrain, speedrun_shakespeare": lambda seed: speedrun(bench, "speedrun_shakespeare", text, seed),
        "minimal loop, nanoGPT's recipe": lambda seed: [*minimal, "--seed", str(seed)],
    }
    rows = []
    for name, command in commands.items():
        found = [until_loss(bench, command(seed), target) for seed in range(1 if bench.short else 3)]
        log(f"  {name}: {found}")
        seconds, notes = zip(*found, strict=True)
        note = f"losses {', '.join(notes)}"
        rows.append(row(name, list(seconds), note, allocator=bench.allocator_label))
    rows[0] |= {"precision": "auto", "compile": "auto"}
    rows[1] |= {"precision": "fp32", "compile": "no"}
    how = f"from the shell command to a validation loss of {target}, start-up and evaluations included"
    return make("Time to a validation loss on tiny-shakespeare", how, "time", rows)


def time_to_loss_words(bench: Bench, _peak: float) -> Result:
    """WikiText-2 by byte-level BPE: until the loss that the minimal loop has at its end."""
    folder = bench.new_folder("words")
    folder.mkdir()
    text = bench.wikitext_words()
    words = ["experiment=speedrun_wikitext", *text]
    shape = WORDS | ({"steps": 200} if bench.short else {})
    tokens, described = write_tokens(folder, words, shape)
    minimal = [sys.executable, str(LOOPS / "minimal.py"), str(tokens), str(described), "--bf16"]
    minimal += ["--steps", str(shape["steps"]), "--validation", str(write_validation(folder, words))]
    theirs, told = until_loss(bench, minimal, 0.0)
    target = float(told.split()[0])
    log(f"  minimal loop: {told}, {theirs:.1f} s")
    ours, reached = until_loss(bench, speedrun(bench, "speedrun_wikitext", text, 0), target)
    log(f"  llmtrain: {reached}, {ours:.1f} s")
    rows = [
        row("llmtrain, speedrun_wikitext", [ours], f"loss {reached}", precision="auto", compile="auto"),
        row("minimal loop, nanoGPT's rates", [theirs], f"loss {target}", precision="bf16", compile="no"),
    ]
    rows = [one | {"allocator": bench.allocator_label} for one in rows]
    how = "from the shell command to the validation loss that the minimal loop ends with, tokens prepared"
    return make("Time to a validation loss on WikiText-2, 4,096 byte pairs", how, "time", rows)


ENCODERS = {
    "llmtrain, speedrun_bert": ["experiment=speedrun_bert"],
    "llmtrain, bert_mini (AdamW, rotary positions)": ["experiment=bert_mini"],
    "llmtrain, BERT-mini as published": ["model=bert/mini", "optim.lr=5e-4", "schedule.warmup=0.06"],
}
"""Recipes of an encoder of 4 layers of 256; all learn the same masked tokens."""


def encoders(bench: Bench, _peak: float) -> Result:
    """Encoders trained for as many minutes: loss of masked tokens, then SST-2 after one epoch."""
    minutes = 0.2 if bench.short else 4.0
    common = ["objective=mlm", "objective.mask_rate=0.3", "tokenizer=wordpiece", *bench.data_words()]
    common += ["tokenizer.vocab_size=8192", "model.vocab_size=null", "checkpoint.every=0"]
    common += ["train.batch_size=32", "train.sequence_length=128", "log.panel=lines"]
    reviews = bench.sst2
    if reviews is None:
        reviews = write_reviews(bench.folder / "reviews")
    rows, curves = [], {}
    for name, words in ENCODERS.items():
        trial = bench.new_folder("trial")
        bench.run(["pretrain", *words, *common, "train.steps=40", "eval.every=0", f"run.dir={trial}"])
        speeds = [
            one["tokens_per_second"] for one in read_json_lines(trial / "metrics.jsonl") if "mfu" in one
        ]
        steps = max(20, round(60 * minutes * median(speeds[len(speeds) // 2 :]) / (32 * 128)))
        run = bench.new_folder("encoder")
        told = [f"train.steps={steps}", f"eval.every={max(1, steps // 20)}", f"run.dir={run}"]
        seconds = bench.run(["pretrain", *words, *common, *told])
        found = [one for one in read_json_lines(run / "metrics.jsonl") if one["kind"] == "validation"]
        curves[name] = [(one["step"] / steps * seconds, one["validation_loss"]) for one in found]
        tuned = bench.new_folder("tuned")
        task = ["task=classification/sst2", f"task.folder={reviews}", f"init_from={run}", "train.epochs=1"]
        bench.run(["finetune", *task, "train.batch_size=32", "optim.lr=3e-4", f"run.dir={tuned}"])
        accuracy = read_json(tuned / "summary.json")["validation_accuracy"]
        note = f"{steps} steps, {seconds / 60:.1f} minutes in all; SST-2 {100 * accuracy:.1f} %"
        log(f"  {name}: {curves[name][-1][1]:.3f}; {note}")
        rows.append(row(name, [curves[name][-1][1]], note, unit="nats", allocator=bench.allocator_label))
    ours = curves[rows[0]["name"]]
    for one in rows[1:]:
        reached = next((seconds for seconds, loss in ours if loss <= curves[one["name"]][-1][1]), None)
        if reached is not None:
            one["note"] += f"; the speedrun has this loss after {reached:.0f} s"
    how = f"{minutes:g} minutes each, 32 x 128, 30 % masked, 8,192 word pieces; then an epoch of SST-2"
    return make("BERT-mini's size: loss of masked tokens after equal time", how, "loss", rows)


QUALITY: dict[str, Callable[[Bench, float], Result]] = {
    "time_to_loss": time_to_loss,
    "time_to_loss_words": time_to_loss_words,
    "encoders": encoders,
}
