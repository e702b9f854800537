"""Works that are steps of training: every contender trains a few steps in turn."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import LOOPS, Bench, allocator_label
from table import Result
from turns import Contender, take_turns

from llmtrain.compose.compose import compose
from llmtrain.data.prepare import prepare

QUIET = ["eval.every=0", "checkpoint.every=0", "log.panel=lines", "log.every=1000000", "train.steps=100000"]
"""Words of all trainings: steps alone; so many that defaults are those of a long run."""

SMALL = {"layers": 6, "heads": 6, "dim": 384, "length": 256, "batch": 32, "bias": True}
GPT2 = {"layers": 12, "heads": 12, "dim": 768, "length": 512, "batch": 4, "bias": True}

GOOD = ["moving and graceful", "funny , warm and wise", "one of the best this year", "a delight"]
BAD = ["dull and clumsy", "loud , long and empty", "not worth the ticket", "a bore"]
REST = [
    "from the first scene",
    "in spite of its length",
    "and so is the music",
    "as i expected",
    "to the end",
]


def gpt_words(bench: Bench, shape: dict[str, Any], tokenizer: list[str]) -> list[str]:
    """A GPT of this shape as words of `llmtrain pretrain`."""
    words = ["model=gpt/small", *bench.data_words(), *tokenizer, *QUIET, "data.validation_fraction=0.1"]
    words += [f"model.num_layers={shape['layers']}", f"model.num_heads={shape['heads']}"]
    words += [f"model.dim={shape['dim']}", f"model.max_positions={shape['length']}", "model.dropout=0"]
    words += [f"model.bias={shape['bias']}", "model.activation=gelu"]  # the exact GELU, as in nanoGPT
    return [*words, f"train.batch_size={shape['batch']}", f"train.sequence_length={shape['length']}"]


def write_tokens(folder: Path, words: list[str], shape: dict[str, Any]) -> tuple[Path, Path]:
    """Ids of the training text for the peers, and the shape of the model with its vocabulary."""
    config = compose("pretrain", words, None, False)[0].config
    prepared = prepare(config.data, config.tokenizer, seed=0)
    view = prepared.train
    tokens, described = folder / "tokens.bin", folder / "shape.json"
    parts = [view.read(int(a), int(b)) for a, b in zip(*view.spans, strict=True)]
    np.concatenate(parts).astype(np.uint16).tofile(tokens)
    vocab = config.model.vocab_size or prepared.tokenizer.vocab_size
    described.write_text(json.dumps({**shape, "vocab": vocab}))
    return tokens, described


def ours(bench: Bench, verb: str, words: list[str], name: str = "llmtrain", **more: str) -> Contender:
    """The engine, by its defaults."""
    command = [sys.executable, str(LOOPS / "ours.py"), verb, str(bench.new_folder("run")), *words]
    return Contender(name, command, bench.environment() | more, bench.allocator_label)


def peer(
    bench: Bench, loop: str, arguments: list[str], name: str, flags: str, plain: bool = False
) -> Contender:
    """A loop of the folder `loops`; `plain` is without the allocator that the others get."""
    python = bench.litgpt_python if loop == "litgpt_loop" else sys.executable
    allocator = "system" if plain else bench.allocator
    flags = flags.replace("--compile", "") if bench.tiny else flags  # which takes longer than all the rest
    command = [python, str(LOOPS / f"{loop}.py"), *arguments, *flags.split()]
    return Contender(name, command, bench.environment(allocator), allocator_label(allocator))


def gpt(bench: Bench, shape: dict[str, Any], tokenizer: list[str], folder: Path) -> list[Contender]:
    """A GPT: ours, the minimal loop, the Trainer, litgpt."""
    shape = bench.shape(shape)
    words = gpt_words(bench, shape, tokenizer)
    tokens, described = write_tokens(folder, words, shape)
    files = [str(tokens), str(described)]
    contenders = [
        ours(bench, "pretrain", words),
        peer(bench, "minimal", files, "minimal loop", "--turns --bf16 --compile"),
    ]
    if shape["bias"]:  # which transformers' GPT-2 always has
        contenders += [
            peer(bench, "trainer", ["gpt", *files], "HF Trainer", "--bf16"),
            peer(bench, "trainer", ["gpt", *files], "HF Trainer, compiled", "--bf16 --compile"),
        ]
    if bench.short:
        return contenders
    contenders.append(peer(bench, "litgpt_loop", files, "litgpt, compiled", "--turns --compile"))
    bf16 = "--turns --bf16 --compile"
    contenders.append(peer(bench, "minimal", files, "minimal loop, plain allocator", bf16, plain=True))
    if shape["bias"]:
        trainer = ["gpt", *files]
        contenders += [
            peer(bench, "trainer", trainer, "HF Trainer, plain allocator", "--bf16", plain=True),
            peer(
                bench,
                "trainer",
                trainer,
                "HF Trainer, compiled, plain allocator",
                "--bf16 --compile",
                plain=True,
            ),
        ]
    return contenders


def gpt_characters(bench: Bench, folder: Path) -> list[Contender]:
    """nanoGPT's baby GPT, without biases; also as nanoGPT ships: fp32."""
    contenders = gpt(bench.on_shakespeare(), SMALL | {"bias": False}, ["tokenizer=characters"], folder)
    if bench.short:
        return contenders[:2]
    files = [str(folder / "tokens.bin"), str(folder / "shape.json")]
    shipped = peer(bench, "minimal", files, "minimal loop, as shipped", "--turns --compile", plain=True)
    return [*contenders, shipped]


def large_vocabulary(bench: Bench) -> list[str]:
    """GPT-2's 50,304 places for tokens; which tokens they are makes no difference to the speed."""
    tokenizer = ["tokenizer=bpe", "tokenizer.vocab_size=4096"]
    if bench.gpt2:
        tokenizer = ["tokenizer=file", f"tokenizer.path={bench.gpt2}"]
    return [*tokenizer, "model.vocab_size=50304"]


def gpt_50k(bench: Bench, folder: Path) -> list[Contender]:
    return gpt(bench, SMALL, large_vocabulary(bench), folder)


def gpt2_124m(bench: Bench, folder: Path) -> list[Contender]:
    return gpt(bench, GPT2, large_vocabulary(bench), folder)


def documents(bench: Bench, folder: Path) -> list[Contender]:
    """Rows of many short documents (Python's docstrings), each attending to itself only, and all to all."""
    words = gpt_words(
        replace(bench, texts=[]), bench.shape(SMALL), ["tokenizer=bpe", "tokenizer.vocab_size=4096"]
    )
    return [
        ours(bench, "pretrain", [*words, "data.isolate_documents=true"], "llmtrain, inside documents"),
        ours(bench, "pretrain", words, "llmtrain, causal mask alone"),
    ]


def bert(bench: Bench, size: str) -> list[Contender]:
    """BERT on masked tokens and next sentences: ours and the Trainer, on the same rows."""
    size = "debug" if bench.tiny else size
    words = [f"model=bert/{size}", "objective=mlm_nsp", "tokenizer=wordpiece", *bench.data_words(), *QUIET]
    batch, length = (4, 32) if bench.tiny else (64, 128)
    words += [f"train.batch_size={batch}", f"train.sequence_length={length}", "model.vocab_size=30522"]
    words += ["data.validation_fraction=0"]

    def trainer(name: str, flags: str, plain: bool = False) -> Contender:
        return peer(bench, "trainer", ["pretrain", str(bench.new_folder("run")), *words], name, flags, plain)

    contenders = [
        ours(bench, "pretrain", words),
        trainer("HF Trainer, compiled", "--bf16 --compile"),
        trainer("HF Trainer", "--bf16"),
    ]
    if bench.short:
        return contenders
    return [
        *contenders,
        trainer("HF Trainer, plain allocator", "--bf16", plain=True),
        trainer("HF Trainer, its defaults", "", plain=True),
    ]


def bert_mini(bench: Bench, folder: Path) -> list[Contender]:
    return bert(bench, "mini")


def bert_small(bench: Bench, folder: Path) -> list[Contender]:
    return bert(bench, "small")


def write_reviews(folder: Path, rows: int = 8000) -> Path:
    """Sentences of various lengths in the form of SST-2's files, positive (1) and negative (0)."""
    chooser = random.Random(0)
    folder.mkdir(exist_ok=True)
    for name, number in (("train.tsv", rows), ("dev.tsv", 100)):
        lines = ["sentence\tlabel"]
        for _ in range(number):
            label = chooser.randrange(2)
            parts = [chooser.choice((BAD, GOOD)[label])]
            parts += chooser.choices(REST, k=min(9, int(chooser.expovariate(0.7))))
            lines.append(f"{' '.join(parts)}\t{label}")
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def sst2(bench: Bench, folder: Path) -> list[Contender]:
    """Fine-tuning BERT-small by length; the weights that it starts from make no difference to the speed."""
    start = bench.new_folder("start")
    size = "debug" if bench.tiny else "small"
    tiny = [f"model=bert/{size}", "objective=mlm", "tokenizer=wordpiece", "data=python_prose"]
    tiny += ["model.vocab_size=30522", "eval.every=0", "train.steps=1", "train.batch_size=2"]
    bench.run(["pretrain", *tiny, f"run.dir={start}", "log.panel=lines"])
    reviews = bench.sst2 or write_reviews(folder / "reviews")
    words = ["task=classification/sst2", f"task.folder={reviews}", f"init_from={start}"]
    words += ["train.batch_size=32", "train.epochs=null", *QUIET]
    run = str(bench.new_folder("grouped"))
    contenders = [
        ours(bench, "finetune", words),
        peer(bench, "trainer", ["finetune", run, *words], "HF Trainer, by length", "--bf16"),
    ]
    if not bench.short:
        for more, flags, plain in ((", compiled", " --compile", False), (", plain allocator", "", True)):
            arguments = ["finetune", str(bench.new_folder("grouped")), *words]
            name = f"HF Trainer, by length{more}"
            contenders.append(peer(bench, "trainer", arguments, name, f"--bf16{flags}", plain))
    return contenders


@dataclass(frozen=True)
class Work:
    """A work whose contenders train in turns.

    Attributes:
        title: of the table.
        unit: of an amount in a second.
        make: its contenders, ours first.
        amount: in a step; 0 is as many as there are tokens.
        steps: of a turn; 0 is as asked for.
        together: contenders that are in memory at the same time; ours is in every group.
    """

    title: str
    unit: str
    make: Callable[[Bench, Path], list[Contender]]
    amount: int = 0
    steps: int = 0
    together: int = 6


WORKS = {
    "gpt_characters": Work("GPT, 6 layers of 384, characters, 32 x 256", "tokens/s", gpt_characters),
    "gpt_50k": Work(
        "GPT, 6 layers of 384, vocabulary 50,304, 32 x 256", "tokens/s", gpt_50k, together=3
    ),  # whose logits alone take some gigabytes in each of the others
    "gpt2_124m": Work("GPT-2 124M, 4 x 512", "tokens/s", gpt2_124m, together=5),
    "documents": Work("Documents in rows: GPT, 6 layers of 384, 32 x 256", "tokens/s", documents),
    "bert_mini": Work("BERT-mini, masked tokens and next sentences, 64 x 128", "rows/s", bert_mini, 64),
    "bert_small": Work("BERT-small, masked tokens and next sentences, 64 x 128", "rows/s", bert_small, 64),
    # The Trainer goes through lengths in groups of 50 batches.
    "sst2": Work("SST-2 fine-tuning of BERT-small, 32 a batch", "sentences/s", sst2, 32, 50),
}


def run(name: str, bench: Bench, peak: float) -> Result:
    """Let the contenders of a work train in turns."""
    work = WORKS[name]
    steps, warm_up = work.steps or bench.steps, work.steps or 3
    groups: list[list[Contender]] = []
    contenders: list[Contender] = []
    done = 1
    while not groups or done < len(contenders):
        folder = bench.new_folder(name)
        folder.mkdir()
        contenders = work.make(bench, folder)
        group = [contenders[0], *contenders[done : done + work.together - 1]]
        take_turns(group, rounds=bench.rounds, steps=steps, warm_up=warm_up, folder=folder)
        groups.append(group)
        done += work.together - 1
    about = groups[0][0].about
    rows = [row(groups[0][0], [seconds for group in groups for seconds in group[0].seconds])]
    for ours, *others in groups:
        rows += [row(one, one.seconds) | {"reference": ours.seconds} for one in others]
    return {
        "title": work.title,
        "unit": work.unit,
        "amount": work.amount or about.get("tokens", 0),
        "flops": about.get("flops") if name != "sst2" else None,
        "peak_flops": peak,
        "parameters": about.get("parameters"),
        "how": f"{bench.rounds} rounds of {steps} steps in turn",
        "rows": rows,
    }


def row(one: Contender, seconds: list[float]) -> dict[str, Any]:
    """A contender in the table."""
    return {
        "name": one.name,
        "precision": one.about.get("precision", ""),
        "compile": "yes" if one.about.get("compile") else "no",
        "allocator": one.allocator,
        "seconds": seconds,
        "failed": one.failed,
    }
