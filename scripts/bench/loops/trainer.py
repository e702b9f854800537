"""Hugging Face's Trainer in turns: bf16, fused AdamW, compile and grouping by length by option.

    python scripts/bench/loops/trainer.py gpt TOKENS.bin SHAPE.json [--bf16] [--compile]
    python scripts/bench/loops/trainer.py pretrain|finetune FOLDER [--bf16] [--compile] WORDS...

`gpt` is GPT2LMHeadModel on random windows of a token file. `pretrain` is BertForPreTraining on the very rows
of the engine for these words, `finetune` BertForSequenceClassification on its examples, grouped by length.
But for fine-tuning, batches are made before the clock starts, so that they cost nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import Dataset, IterableDataset

sys.path.insert(0, str(Path(__file__).parents[1]))
from turns import Turn

BATCHES = 16
"""Batches that are made beforehand, and taken again and again."""

Inputs = dict[str, torch.Tensor]


class TurnsOfTrainer(transformers.TrainerCallback):
    """Trains only while it is its turn."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn

    def on_step_begin(self, *arguments: Any, **more: Any) -> None:
        """Wait for the turn."""
        self.turn.before()

    def on_step_end(self, *arguments: Any, **more: Any) -> None:
        """Count the step."""
        self.turn.after()


class Made(IterableDataset[Inputs]):
    """Batches that are there already, for ever."""

    def __init__(self, batches: Sequence[Inputs]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Inputs]:
        return itertools.cycle(self.batches)


class Examples(Dataset[dict[str, Any]]):
    """Encoded sentences; `input_ids` shows their lengths, for grouping."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.samples[index].ids, "sample": self.samples[index]}


def inputs(batch: Any) -> Inputs:
    """A batch of ours in the names of transformers, labels at all positions."""
    same = (batch.documents == batch.documents[:, :1]).long()
    result = {"input_ids": batch.ids, "attention_mask": same, "token_type_ids": batch.segments}
    if batch.selected is None:
        return result | {"labels": batch.sample_labels[:, 0]}
    labels = torch.full_like(batch.ids, -100).scatter(1, batch.selected, batch.labels)
    return result | {"labels": labels, "next_sentence_label": batch.sample_labels[:, 0]}


def gpt(tokens_path: Path, shape_path: Path) -> tuple[Any, Any, int, Any]:
    """GPT-2's model and windows of the token file."""
    shape = json.loads(shape_path.read_text())
    config = transformers.GPT2Config(
        vocab_size=shape["vocab"],
        n_positions=shape["length"],
        n_embd=shape["dim"],
        n_layer=shape["layers"],
        n_head=shape["heads"],
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    tokens, length = np.memmap(tokens_path, dtype=np.uint16, mode="r"), shape["length"]
    generator = np.random.default_rng(0)
    made = []
    for _ in range(BATCHES):
        starts = generator.integers(len(tokens) - length - 1, size=shape["batch"])
        ids = torch.from_numpy(np.stack([tokens[i : i + length] for i in starts]).astype(np.int64))
        made.append({"input_ids": ids, "labels": ids})  # the model shifts them itself
    return transformers.GPT2LMHeadModel(config), Made(made), 1, lambda items: items[0]


def bert(verb: str, folder: Path, words: Sequence[str]) -> tuple[Any, Any, int, Any]:
    """BERT's model, and the rows or examples that the engine would train on."""
    from llmtrain.compose.compose import compose
    from llmtrain.data.samples import PackedRow
    from llmtrain.recipe.context import BUILDERS, Context
    from llmtrain.recipe.finetune import task_work
    from llmtrain.recipe.pretrain import text_work
    from llmtrain.schema.registry import builtin_registry
    from llmtrain.utils.run_directory import RunDirectory
    from llmtrain.utils.signals import StopFlag

    config = compose(verb, list(words), None, False)[0].config
    run = RunDirectory(folder)
    run.path.mkdir()
    context = Context(run, builtin_registry(), BUILDERS, StopFlag())
    work: Any = (text_work if verb == "pretrain" else task_work)(config, context, None)
    shape, size = work.model, config.train.batch_size
    model_config = transformers.BertConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.dim,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.hidden_dim or 4 * shape.dim,
        max_position_embeddings=shape.max_positions,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=shape.dropout,
    )
    if verb == "finetune":
        collate = lambda items: inputs(work.rows.collate([PackedRow([item["sample"]]) for item in items]))  # noqa: E731
        return (
            transformers.BertForSequenceClassification(model_config),
            Examples(work.rows.samples),
            size,
            collate,
        )
    numbers = itertools.count()
    made = [
        inputs(work.rows.collate([work.rows.read(next(numbers)) for _ in range(size)]))
        for _ in range(BATCHES)
    ]
    return transformers.BertForPreTraining(model_config), Made(made), 1, lambda items: items[0]


def main() -> None:
    """Set up, and train in turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["gpt", "pretrain", "finetune"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("words", nargs="*")
    options = parser.parse_intermixed_args()
    turn = Turn()
    if options.work == "gpt":
        model, data, size, collate = gpt(options.path, Path(options.words[0]))
    else:
        model, data, size, collate = bert(options.work, options.path, options.words)
    grouping = {"train_sampling_strategy": "group_by_length"} if options.work == "finetune" else {}
    arguments = transformers.TrainingArguments(
        output_dir=str(options.path.parent / "trainer"),
        max_steps=1_000_000,
        per_device_train_batch_size=size,
        learning_rate=1e-4,
        bf16=options.bf16,
        use_cpu=True,
        optim="adamw_torch_fused",
        torch_compile=options.compile,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        **grouping,
    )
    trainer = transformers.Trainer(
        model, arguments, train_dataset=data, data_collator=collate, callbacks=[TurnsOfTrainer(turn)]
    )
    turn.ready(precision="bf16" if options.bf16 else "fp32", compile=options.compile)
    trainer.train()


if __name__ == "__main__":
    main()
