"""`llmtrain pretrain`: from config to a trained checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from llmtrain.checkpoint.read import read_state, resolve
from llmtrain.checkpoint.state import training_tensors
from llmtrain.checkpoint.store import CheckpointStore
from llmtrain.data.batch import Batch
from llmtrain.data.loader import Loader, evaluation_batches, filler_row
from llmtrain.data.prepare import Prepared
from llmtrain.data.rows import StreamRows
from llmtrain.data.store import View
from llmtrain.engine.engine import Engine, Hook
from llmtrain.engine.hooks import CheckpointHook, EvaluateHook, LogHook
from llmtrain.engine.step import PlainStep
from llmtrain.metrics.sinks import Sink
from llmtrain.metrics.throughput import Throughput
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model, materialise
from llmtrain.model.compile import compile_blocks
from llmtrain.model.initialise import initialise
from llmtrain.objective.build import build_objective
from llmtrain.optim.optimizer import build_optimizer
from llmtrain.optim.schedule import Schedule
from llmtrain.parallel.data import Replicated
from llmtrain.recipe.checkpointed import load_weights
from llmtrain.recipe.context import Context
from llmtrain.recipe.data import open_data
from llmtrain.recipe.resolve import (
    micro_batch_size,
    resolve_compile,
    resolve_model,
    resolve_precision,
    total_steps,
)
from llmtrain.recipe.terminal import announce, open_sinks, print_summary
from llmtrain.schema.fields import Compile
from llmtrain.schema.roots import PretrainConfig
from llmtrain.schema.stored import config_text
from llmtrain.utils import dist
from llmtrain.utils.device import peak_flops, peak_memory_bytes, pick_device
from llmtrain.utils.errors import ConfigError
from llmtrain.utils.io import atomic_write, write_json


def pretrain(config: PretrainConfig, context: Context) -> int:
    """Train a model as the config says; goes on from the newest checkpoint of the run directory.

    Returns:
        exit code: 0, or that of the signal that stopped the run.
    """
    engine, model = set_up(config, context)
    try:
        exit_code = engine.fit()
    finally:
        engine.close()
    finish(config, context, engine, model, exit_code)
    return exit_code


def set_up(config: PretrainConfig, context: Context) -> tuple[Engine, Assembled]:
    """Prepare the data, build the model, restore or initialise it: all that comes before the first step."""
    device = pick_device(config.launch.device.value)
    micro = micro_batch_size(config.train, dist.world_size())
    prepared = open_data(config.data, config.tokenizer, config.run.seed, context)
    notes: list[dict[str, Any]] = []
    store = CheckpointStore(
        context.directory.checkpoints,
        keep=config.checkpoint.keep,
        report=lambda event, details: notes.append({"event": event, **details}),
    )
    found = store.find()
    if found is not None:
        check_same_data(found, prepared)
    rows = stream_rows(config, prepared.train, shuffle=True)
    steps = total_steps(config.train, rows.rows_per_epoch)
    model = decide(config, context, prepared, device, steps)
    objective = build_objective(config.objective, config.data, context.builders)
    materialise(model, device)
    optimizer = build_optimizer(config.optim, model, context.builders)

    state = None
    if found is not None:
        state = store.load(found, training_tensors(model, optimizer))
    else:
        first_weights(model, config)
    sinks = open_sinks(context.directory, config, state)
    announce(sinks, notes, config, prepared, model, steps, state)
    if config.compile is Compile.always:
        compile_blocks(model)
    step = PlainStep(
        Replicated(model, device),
        optimizer,
        objective,
        device=device,
        precision=config.precision.value,
        clip_norm=config.optim.clip_norm,
        seed=config.run.seed,
    )
    if dist.world_size() > 1:
        step.settle(objective.collate([filler_row(config.train.sequence_length)] * micro))
    flops = model.flops_per_token(config.train.sequence_length)
    throughput = Throughput(flops, lambda: all_peak_flops(device, step.precision))
    hooks = make_hooks(config, prepared, model, step, store)
    return assemble(config, context, rows, step, throughput, steps, state, sinks, hooks), model


def stream_rows(config: PretrainConfig, view: View, *, shuffle: bool) -> StreamRows:
    """The packed rows of a view: in random order for training, in order for evaluation."""
    return StreamRows(
        view,
        sequence_length=config.train.sequence_length,
        seed=config.run.seed,
        shuffle=shuffle,
    )


def decide(
    config: PretrainConfig, context: Context, prepared: Prepared, device: torch.device, steps: int
) -> Assembled:
    """Settle what the config left open, store it with the run; returns the model on the meta device."""
    config.model = resolve_model(config.model, prepared.tokenizer.vocab_size)
    config.precision = resolve_precision(config.precision, device)
    model = build_model(config.model, context.builders)
    config.compile = resolve_compile(config, device, model, steps, dist.world_size())
    if dist.rank() == 0:
        atomic_write(context.directory.config, config_text("pretrain", config))
    return model


def check_same_data(checkpoint: Path, prepared: Prepared) -> None:
    """Compare the data with those that a checkpoint was trained on.

    Raises:
        ConfigError: a token, a border between documents or the tokenizer is another.
    """
    then, now = read_state(checkpoint)["data"], prepared.identity()
    changed = [name for name in now if then[name] != now[name]]
    if changed:
        raise ConfigError(
            f"the data have changed since this run was started: {', '.join(changed)}",
            str(checkpoint),
            "bring the old files back, or start a new run with run.name=...",
        )


def first_weights(model: Assembled, config: PretrainConfig) -> None:
    """Weights to start from: drawn anew, or those of `init_from`."""
    initialise(model, config.run.seed)
    if config.init_from is not None:
        load_weights(model, resolve(Path(config.init_from)))


def make_hooks(
    config: PretrainConfig, prepared: Prepared, model: Assembled, step: PlainStep, store: CheckpointStore
) -> list[Hook]:
    """Reports, evaluation and checkpoints, in the order in which they follow a step."""
    hooks: list[Hook] = [LogHook(config.log.every)]
    if prepared.validation is not None:
        rows = stream_rows(config, prepared.validation, shuffle=False)
        size = config.eval.batch_size or micro_batch_size(config.train, dist.world_size())

        def batches() -> Iterator[Batch]:
            collate, tokens = step.objective.collate, config.eval.max_tokens
            return evaluation_batches(rows, collate, size, dist.rank(), dist.world_size(), tokens)

        hooks.append(EvaluateHook(config.eval.every, model, step.objective, batches))
    saving = CheckpointHook(
        config.checkpoint.every,
        config.checkpoint.best,
        store,
        lambda: training_tensors(model, step.optimizer),
        {"config.yaml": config_text("pretrain", config), "tokenizer.json": prepared.tokenizer.to_json()},
        {"layout": {"dp_replicate": dist.world_size()}, "data": prepared.identity()},
    )
    return [*hooks, saving]


def assemble(
    config: PretrainConfig,
    context: Context,
    rows: StreamRows,
    step: PlainStep,
    throughput: Throughput,
    steps: int,
    state: dict[str, Any] | None,
    sinks: list[Sink],
    hooks: list[Hook],
) -> Engine:
    """Put the engine together, and set it to where the saved state left off."""
    train = config.train
    engine = Engine(
        step=step,
        loader=Loader(
            rows,
            step.objective.collate,
            batch_size=train.batch_size,
            micro_batch_size=micro_batch_size(train, dist.world_size()),
            rank=dist.rank(),
            world=dist.world_size(),
            start_row=state["train"]["row"] if state else 0,
            pin=step.device.type == "cuda",
        ),
        schedule=Schedule(config.schedule, steps, context.builders),
        base_rate=config.optim.lr,
        total_steps=steps,
        tokens_per_step=train.batch_size * train.sequence_length,
        max_bad_steps=train.max_bad_steps,
        minutes=train.minutes,
        stop=context.stop,
        throughput=throughput,
        sinks=sinks,
        hooks=hooks,
    )
    if state is not None:
        engine.load_state_dict(state)
    return engine


def all_peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak of all processes together, which are taken to be alike."""
    peak = peak_flops(device, precision)
    return None if peak is None else peak * dist.world_size()


def finish(
    config: PretrainConfig, context: Context, engine: Engine, model: Assembled, exit_code: int
) -> None:
    """Write `summary.json` and tell the user what was reached and what can be done next."""
    state = engine.state
    state.seconds += engine.throughput.take_seconds()
    peak_memory = max(dist.gather(torch.tensor([peak_memory_bytes(engine.step.device)])).flatten().tolist())
    if dist.rank() != 0:
        return
    summary = {
        "finished": state.step >= engine.total_steps and not state.evaluation_due,
        "exit_code": exit_code,
        "steps": state.step,
        "total_steps": engine.total_steps,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9), 1),
        "validation_loss": state.validation_loss,
        "best_validation_loss": state.best_loss,
        "best_step": state.best_step,
        "bad_steps": state.bad_steps,
        "parameters": model.num_parameters(),
        "peak_memory_bytes": peak_memory,
        "processes": dist.world_size(),
        "precision": config.precision.value,
        "compile": config.compile.value,
    }
    write_json(context.directory.summary, summary)
    print_summary(context.directory, summary)
