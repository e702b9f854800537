"""The engine beside Hugging Face's Trainer on the same work, both bf16, a few steps in turn in one process.

    python scripts/bench/trainer.py pretrain [--text FILES] [--rounds 6] [--steps 5] [--compile]
    python scripts/bench/trainer.py finetune --examples train.tsv [--rounds 5] [--steps 50] [--compile]

`pretrain`: BERT-mini, masked tokens and next sentences, 64 rows of 128, vocabulary 30,522, against
BertForPreTraining on the very same rows. `finetune`: BERT-mini on single sentences, 32 a batch, against
BertForSequenceClassification with grouping by length; a round of the Trainer should be 50 steps, since it
goes through lengths in groups of so many. `--compile` compiles on both sides. Needs transformers and
accelerate (`pip install 'llmtrain[test]' accelerate`). The first round warms up and is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import Dataset, IterableDataset

from llmtrain.compose.compose import compose
from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.loader import Rows
from llmtrain.engine.engine import Engine, Hook
from llmtrain.recipe.context import BUILDERS, Context
from llmtrain.recipe.finetune import task_work
from llmtrain.recipe.pretrain import text_work
from llmtrain.recipe.training import Work, set_up
from llmtrain.schema.model import BERTConfig
from llmtrain.schema.registry import builtin_registry
from llmtrain.utils.run_directory import RunDirectory
from llmtrain.utils.signals import StopFlag

VOCABULARY = 30_522
COMMON = ["precision=bf16", "eval.every=0", "checkpoint.every=0", "log.panel=lines", "log.every=1000000"]


class TrainerInTurn:
    """A Trainer in a thread of its own that trains only while it is its turn."""

    def __init__(self, trainer: Any) -> None:
        from transformers import TrainerCallback

        self.orders: queue.Queue[int] = queue.Queue()
        self.answers: queue.Queue[float] = queue.Queue()
        outer = self

        class Turns(TrainerCallback):
            """Counts the steps of a turn, and waits for the next one."""

            def __init__(self) -> None:
                self.left, self.started = 0, 0.0

            def on_step_begin(self, *arguments: Any, **more: Any) -> None:
                if self.left == 0:
                    self.left, self.started = outer.orders.get(), time.perf_counter()

            def on_step_end(self, *arguments: Any, **more: Any) -> None:
                self.left -= 1
                if self.left == 0:
                    outer.answers.put(time.perf_counter() - self.started)

        trainer.add_callback(Turns())
        threading.Thread(target=trainer.train, daemon=True).start()

    def take(self, steps: int) -> float:
        """Train so many steps; returns seconds."""
        self.orders.put(steps)
        return self.answers.get()


class InTurn(Hook):
    """Lets the Trainer train after every few steps of the engine, and times both."""

    def __init__(self, other: TrainerInTurn, steps: int) -> None:
        self.other, self.steps = other, steps
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.real_tokens = self.places = 0
        self.started = 0.0

    def start(self, engine: Engine) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def after_step(self, engine: Engine) -> None:
        """Every `steps` steps: note the time, and give the Trainer as many."""
        if engine.state.step % self.steps:
            return
        self.ours.append((time.perf_counter() - self.started) / self.steps)
        self.theirs.append(self.other.take(self.steps) / self.steps)
        self.started = time.perf_counter()


class RowsOfOurs(IterableDataset[Any]):
    """The engine's own rows, for the Trainer."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        number = 0
        while True:
            yield self.rows.read(number)
            number += 1


class Lengths(Dataset[Any]):
    """Encoded sentences with their lengths, for grouping."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.samples[index].ids, "sample": self.samples[index]}


def inputs(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch in the names of transformers, labels at all positions."""
    assert batch.documents is not None
    assert batch.segments is not None
    documents = batch.documents
    lengths = (documents == documents[:, :1]).long()
    result = {"input_ids": batch.ids, "attention_mask": lengths, "token_type_ids": batch.segments}
    if batch.labels is not None and batch.selected is not None:
        labels = torch.full_like(batch.ids, IGNORE)
        result["labels"] = labels.scatter(1, batch.selected, batch.labels)
        assert batch.sample_labels is not None
        result["next_sentence_label"] = batch.sample_labels[:, 0]
    elif batch.sample_labels is not None:
        result["labels"] = batch.sample_labels[:, 0]
    return result


def hugging_face_config(config: BERTConfig, **more: Any) -> Any:
    """The same shape for transformers."""
    from transformers import BertConfig

    assert config.vocab_size is not None
    return BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.hidden_dim or 4 * config.dim,
        max_position_embeddings=config.max_positions,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        **more,
    )


def make_trainer(work: Work, batch_size: int, steps: int, compiled: bool, folder: Path) -> Any:
    """A Trainer at its best settings for a CPU: bf16, fused AdamW, no reports, no checkpoints."""
    import transformers

    assert isinstance(work.model, BERTConfig)
    pretraining = work.verb == "pretrain"
    kind = transformers.BertForPreTraining if pretraining else transformers.BertForSequenceClassification
    grouping: dict[str, Any] = {} if pretraining else {"train_sampling_strategy": "group_by_length"}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-4,
        lr_scheduler_type="linear",
        bf16=True,
        use_cpu=True,
        optim="adamw_torch_fused",
        torch_compile=compiled,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        **grouping,
    )
    data: Any = RowsOfOurs(work.rows) if pretraining else Lengths(work.rows.samples)  # type: ignore[attr-defined]

    def collate(items: Sequence[Any]) -> dict[str, torch.Tensor]:
        from llmtrain.data.samples import PackedRow

        rows = items if pretraining else [PackedRow([item["sample"]]) for item in items]
        return inputs(work.rows.collate(rows))

    return transformers.Trainer(
        kind(hugging_face_config(work.model)), arguments, train_dataset=data, data_collator=collate
    )


def words_for(options: argparse.Namespace, folder: Path) -> tuple[str, list[str], Any]:
    """Verb, command line and recipe of a work."""
    steps = f"train.steps={(options.rounds + 1) * options.steps}"
    compiled = f"compile={'always' if options.compile else 'never'}"
    if options.work == "pretrain":
        words = ["model=bert/mini", "objective=mlm_nsp", "tokenizer=wordpiece", "train.batch_size=64"]
        words += [
            "train.sequence_length=128",
            f"model.vocab_size={VOCABULARY}",
            "data.validation_fraction=0",
            *COMMON,
            steps,
            compiled,
        ]
        if options.text:
            words += ["data=text", f"data.paths=[{','.join(str(path.resolve()) for path in options.text)}]"]
        return "pretrain", words, text_work
    start = folder / "start"
    if not start.exists():
        tiny = ["pretrain", "model=bert/mini", "objective=mlm", "tokenizer=wordpiece", "train.steps=1"]
        run(folder, [*tiny[1:], *COMMON, f"run.dir={start}", f"model.vocab_size={VOCABULARY}"])
    words = [f"init_from={start}", f"task.paths=[{options.examples.resolve()}]", "train.batch_size=32"]
    words += ["task=classification/sst2", "task.validation_paths=[]", "train.epochs=null", *COMMON, steps]
    return "finetune", [*words, compiled], task_work


def run(folder: Path, words: list[str]) -> None:
    """A run by the command itself."""
    import subprocess
    import sys

    subprocess.run([sys.executable, "-m", "llmtrain", "pretrain", *words], cwd=folder, check=True)


def main() -> None:
    """Run and print the table; the numbers go to standard output as JSON besides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", choices=["pretrain", "finetune"])
    parser.add_argument("--text", type=Path, nargs="+", help="text files (default: Python's own prose)")
    parser.add_argument("--examples", type=Path, help="a file of SST-2's form, for finetune")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if options.work == "finetune" and options.examples is None:
        parser.error("finetune needs --examples")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        verb, words, make_work = words_for(options, folder)
        config = compose(verb, words, None, False)[0].config
        directory = RunDirectory(folder / "run")
        directory.path.mkdir()
        context = Context(directory, builtin_registry(), BUILDERS, StopFlag())
        engine, _, work = set_up(config, context, make_work)
        steps = (options.rounds + 1) * options.steps
        trainer = make_trainer(work, config.train.batch_size, steps + 1, options.compile, folder)
        turns = InTurn(TrainerInTurn(trainer), options.steps)
        engine.hooks = [turns]
        engine.fit()
        report(options, engine, turns)


def report(options: argparse.Namespace, engine: Engine, turns: InTurn) -> None:
    """Medians and the ratio."""
    ours, theirs = turns.ours[1:], turns.theirs[1:]
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    speed = engine.throughput.report()
    title = f"{options.work}, BERT-mini, bf16, {'compiled' if options.compile else 'not compiled'}"
    table = Table("", "llmtrain", "Trainer", "ratio", title=title)
    medians = statistics.median(ours), statistics.median(theirs)
    table.add_row("ms a step", *(f"{1e3 * value:.0f}" for value in medians), f"{ratio:.2f}")
    table.add_row("real tokens", f"{100 * speed['real_tokens']:.1f} %", "", "")
    Console().print(table)
    print(json.dumps({"ours": ours, "trainer": theirs, "ratio": ratio, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
