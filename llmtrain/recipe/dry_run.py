"""`--dry-run` of the verbs that train: the arithmetic of a run. Texts are not read, examples are."""

from __future__ import annotations

import dataclasses

from rich.table import Table

from llmtrain.adapt.lora import add_adapters
from llmtrain.data.tokenizer_build import file_tokenizer
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model
from llmtrain.model.layers.lora import is_adapter
from llmtrain.objective.build import build_objective
from llmtrain.optim.optimizer import freeze, frozen_names
from llmtrain.recipe.checkpointed import CARRIED, open_base, open_pretrained
from llmtrain.recipe.context import Context
from llmtrain.recipe.finetune import adapted_model, data_line, read_examples, skipped, training_rows
from llmtrain.recipe.memory import state_bytes
from llmtrain.recipe.resolve import (
    DEFAULT_EPOCHS,
    head_in_blocks,
    micro_batch_size,
    resolve_layout,
    resolve_precision,
    total_steps,
)
from llmtrain.recipe.terminal import make_console
from llmtrain.schema.parallel import Degrees, stage_blocks
from llmtrain.schema.roots import FinetuneConfig, PretrainConfig, TrainingConfig
from llmtrain.schema.tokenizer import (
    BytesTokenizer,
    FileTokenizer,
    TokenizerConfig,
    TrainedTokenizer,
)
from llmtrain.task.base import TaskKind
from llmtrain.utils import dist
from llmtrain.utils.device import pick_device

SHOWN_LABELS = 12
"""Labels that are listed."""


def dry_run(config: PretrainConfig, context: Context) -> int:
    """Print batch arithmetic and parameter counts."""
    train = config.train
    vocab_size = config.model.vocab_size or expected_vocab_size(config.tokenizer)
    sized = dataclasses.replace(config.model, vocab_size=vocab_size or 1)
    objective = build_objective(config.objective, config.data, context.builders)
    model = build_model(sized, objective.build_head, context.builders)
    if config.adapt is not None:
        add_adapters(model, config.adapt)
        freeze(model, {name for name, _ in model.named_parameters() if not is_adapter(name)})
    table = Table(box=None, show_header=False)
    tokens = train.batch_size * train.sequence_length
    flops = model.flops_per_token(train.sequence_length, objective.labelled_share)
    degrees = resolve_layout(config, num_processes(config), config.model, train.sequence_length)
    share = head_in_blocks(model, objective.labelled_share)
    rows = {
        **layout(config, degrees, model, share, vocab_size is not None),
        "tokens per step": f"{train.batch_size} rows x {train.sequence_length} = {tokens:,}",
        "length": length(config, tokens),
        "vocabulary": vocabulary(vocab_size, config.tokenizer),
        "parameters": parameters(model, vocab_size is not None),
        "precision": resolve_precision(config.precision, pick_device(config.launch.device.value)).value,
        "FLOPs per token": f"{flops:.3e} (6 N + 12 L d T)",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    make_console().print(table)
    return 0


def dry_run_task(config: FinetuneConfig, context: Context) -> int:
    """Read the examples and the pretrained model's config, and print what the training would be.

    Raises:
        UserError: what training would find wrong before its first step.
    """
    assert config.init_from is not None
    pretrained = open_pretrained(config.init_from, context)
    shape, limit = adapted_model(pretrained.model, config), config.train.sequence_length
    kind: TaskKind = context.builders[type(config.task)]
    poll = context.stop.poll
    settled, training, validation = read_examples(kind, config.task, config.run.seed, poll)
    task = kind.build(settled, shape.causal)
    samples = task.encode(training.items, pretrained.tokenizer, limit, poll)
    model = build_model(shape, task.build_head, context.builders)
    add_adapters(model, config.adapt)
    base = open_base(config, pretrained, None, context, CARRIED)
    given = set() if base is None else base.names({name for name, _ in model.named_parameters()})
    freeze(model, frozen_names(model, config.optim.freeze) | given)
    degrees = resolve_layout(config, num_processes(config), shape, limit)
    share = head_in_blocks(model, task.labelled_share)
    learning = sum(one.numel() for one in model.parameters() if one.requires_grad)
    rows_per_epoch = training_rows(
        config, task, samples, degrees, pretrained.tokenizer.fill_id
    ).rows_per_epoch
    steps = total_steps(config.train, rows_per_epoch)
    labels = list(getattr(settled, "labels", []))
    rows = {
        "data": data_line(settled, training, validation, samples),
        "labels": ", ".join(labels[:SHOWN_LABELS]) + (", ..." if len(labels) > SHOWN_LABELS else ""),
        **layout(config, degrees, model, share),
        "length": f"{steps:,} steps, {rows_per_epoch / config.train.batch_size:.1f} in an epoch",
        "parameters": f"{model.num_parameters():,}, {learning:,} of them learn",
        "precision": resolve_precision(config.precision, pick_device(config.launch.device.value)).value,
        "metric": settled.metric,
    }
    table = Table(box=None, show_header=False)
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    console = make_console()
    console.print(table)
    for line in skipped("training", training) + skipped("validation", validation):
        console.print(f"warning: {line}", markup=False, soft_wrap=True)
    return 0


def num_processes(config: TrainingConfig) -> int:
    """Of the training, not of the dry run."""
    return config.launch.num_processes or dist.world_size()


def layout(
    config: TrainingConfig, degrees: Degrees, model: Assembled, share: float, whole: bool = True
) -> dict[str, str]:
    """How processes, batch, blocks and memory are shared out.

    Args:
        config: of the training.
        degrees: of parallelism.
        model: on the meta device.
        share: what the head costs, in blocks.
        whole: whether the vocabulary is known, and with it the size of the model.
    """
    train, parallel = config.train, config.parallel
    blocks = stage_blocks(len(model.backbone.blocks), parallel.num_stages(degrees.pp), parallel.cuts, share)
    micro = micro_batch_size(train, parallel, degrees)
    rows = {
        "processes": f"{degrees.world} ({degrees})" if degrees.world > 1 else "",
        "stages": "",
        "batch": f"{micro} micro batch x {train.batch_size // (micro * degrees.data)} "
        f"{'in the pipeline' if degrees.pp > 1 else 'accumulation'} x {degrees.data} data parallel"
        f" = {train.batch_size} rows",
        "memory": "",
    }
    if degrees.pp > 1:
        texts = [f"{part.start}" + (f"-{part[-1]}" if len(part) > 1 else "") for part in blocks]
        own = [" and ".join(texts[place :: degrees.pp]) for place in range(degrees.pp)]
        rows["stages"] = f"blocks {' | '.join(own)}, {parallel.schedule.value}"
    if whole:
        sizes = state_bytes(model, degrees, blocks, config.optim)
        ends = dict.fromkeys(f"{size / 1e6:,.1f}" for size in (min(sizes), max(sizes)))
        average = " and the moving average" if config.optim.ema else ""
        rows["memory"] = (
            f"about {' to '.join(ends)} MB in a process, for weights, gradients, the state of "
            f"{config.optim.kind}{average}"
        )
    return {name: value for name, value in rows.items() if value}


def expected_vocab_size(config: TokenizerConfig) -> int | None:
    """Tokens of the tokenizer as far as they are known without the data."""
    if isinstance(config, BytesTokenizer):
        return 257
    if isinstance(config, TrainedTokenizer):
        return config.vocab_size
    if isinstance(config, FileTokenizer):
        return file_tokenizer(config).vocab_size
    return None


def vocabulary(vocab_size: int | None, config: TokenizerConfig) -> str:
    """How many tokens, and how certain that is."""
    if vocab_size is None:
        return "known when the data is read"
    return f"at most {vocab_size:,}" if isinstance(config, TrainedTokenizer) else f"{vocab_size:,}"


def length(config: PretrainConfig, tokens_per_step: int) -> str:
    """The length as it was given, in steps where that is known before the data is read."""
    train = config.train
    if train.steps is not None:
        return f"{train.steps:,} steps = {train.steps * tokens_per_step:,} tokens"
    if train.tokens is not None:
        return f"{-(-train.tokens // tokens_per_step):,} steps = {train.tokens:,} tokens"
    return f"{train.epochs or DEFAULT_EPOCHS:g} epochs (steps are known when the data is read)"


def parameters(model: Assembled, whole: bool) -> str:
    """Number of parameters; without a vocabulary, of the blocks alone."""
    blocks = sum(parameter.numel() for parameter in model.backbone.blocks.parameters())
    if not whole:
        return f"{blocks:,} in the blocks; the embedding depends on the data"
    return f"{model.num_parameters():,} ({blocks:,} in the blocks)"
