"""What all trainings have in common: from a work at hand to a trained checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from llmtrain.adapt.lora import add_adapters
from llmtrain.checkpoint.read import read_state
from llmtrain.checkpoint.state import training_tensors
from llmtrain.checkpoint.store import CheckpointStore
from llmtrain.data.loader import Loader, Rows
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.engine.engine import Engine, Hook
from llmtrain.engine.hooks import CheckpointHook, EvaluateHook, Evaluation, Evaluator, LogHook
from llmtrain.engine.step import Step
from llmtrain.metrics.sinks import Sink
from llmtrain.metrics.throughput import Throughput
from llmtrain.metrics.trackers import check_packages
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model
from llmtrain.model.compile import compile_blocks
from llmtrain.model.recompute import keep_products
from llmtrain.objective.build import Objective
from llmtrain.optim.average import Average, standing
from llmtrain.optim.optimizer import build_optimizer, freeze, frozen_names
from llmtrain.optim.schedule import Schedule
from llmtrain.parallel.apply import lay_out
from llmtrain.parallel.layout import Layout
from llmtrain.parallel.mesh import Mesh
from llmtrain.recipe.adapters import BASE, Base
from llmtrain.recipe.checkpointed import load_base
from llmtrain.recipe.context import Context
from llmtrain.recipe.resolve import (
    head_in_blocks,
    micro_batch_size,
    resolve_compile,
    resolve_layout,
    resolve_precision,
    total_steps,
)
from llmtrain.recipe.samples import why_no_samples
from llmtrain.recipe.terminal import announce, open_sinks, print_summary
from llmtrain.recipe.watching import report_run, watching_hooks
from llmtrain.schema.fields import ActivationCheckpointing, Compile
from llmtrain.schema.model import ModelConfig
from llmtrain.schema.roots import TrainingConfig
from llmtrain.schema.stored import config_text
from llmtrain.utils import dist, garbage
from llmtrain.utils.device import peak_flops, peak_memory_bytes, pick_device
from llmtrain.utils.errors import ConfigError
from llmtrain.utils.io import atomic_write, write_json
from llmtrain.utils.machine import keep_to_own_cores


@dataclass
class Work:
    """What makes one training different from another.

    Attributes:
        verb: of the command.
        model: with its vocabulary.
        tokenizer: saved with each checkpoint.
        objective: what is learned.
        rows: what is learned from.
        mean_length: real tokens in a row, about.
        first_weights: fills the parameters of a new run, given the part of the model that is here and the
            names of all parameters; what it returns is told to the user.
        evaluator: makes the evaluation of a model in its layout, or gives None where there is nothing to
            validate on.
        identity: hashes of the data; a run goes on with the same data only.
        data_line: says in one line what there is to learn from.
        metric: score by which the best checkpoint is chosen.
        warnings: for the user.
        show_scores: called on rank 0 at the end, with the summary.
        next_commands: what one may want to type after the run, given its quoted path.
        base: the model that adapters learn for, where there are any.
    """

    verb: str
    model: ModelConfig
    tokenizer: Tokenizer
    objective: Objective
    rows: Rows
    mean_length: float
    first_weights: Callable[[Assembled, Set[str]], list[str]]
    evaluator: Callable[[Layout], Evaluator | None]
    identity: Mapping[str, str | None]
    data_line: str
    metric: str = "loss"
    warnings: list[str] = field(default_factory=list)
    show_scores: Callable[[dict[str, Any]], None] = lambda summary: None
    next_commands: Callable[[str], list[str]] = lambda path: []
    base: Base | None = None


MakeWork = Callable[[Any, Context, Path | None], Work]
"""Config, surroundings and the checkpoint that the run goes on from, if any -> the work. It may settle
what the config left open."""


def train(config: TrainingConfig, context: Context, make_work: MakeWork) -> int:
    """Train as the config says; goes on from the newest checkpoint of the run directory.

    Returns:
        exit code: 0, or that of the signal that stopped the run.
    """
    engine, work, num_parameters = set_up(config, context, make_work)
    keep_to_own_cores(dist.local_rank())
    garbage.as_usual()
    try:
        exit_code = engine.fit()
    finally:
        engine.close()
    finish(config, context, engine, work, num_parameters, exit_code)
    return exit_code


def set_up(config: TrainingConfig, context: Context, make_work: MakeWork) -> tuple[Engine, Work, int]:
    """Prepare the data, build the model, restore or initialise it: all that comes before the first step.

    Returns:
        the engine, its work, and the number of parameters of the whole model.
    """
    check_packages(config.log)
    device = pick_device(config.launch.device.value)
    notes: list[dict[str, Any]] = []
    store = CheckpointStore(
        context.directory.checkpoints,
        keep=config.checkpoint.keep,
        report=lambda event, details: notes.append({"event": event, **details}),
    )
    found = store.find()
    work = make_work(config, context, found)
    length = config.train.sequence_length
    mesh = Mesh.here(resolve_layout(config, dist.world_size(), work.model, length), device)
    micro = micro_batch_size(config.train, config.parallel, mesh.degrees)
    steps = total_steps(config.train, work.rows.rows_per_epoch)
    model = build_model(work.model, work.objective.build_head, context.builders)
    add_adapters(model, config.adapt)
    flops = model.flops_per_token(round(work.mean_length), work.objective.labelled_share)
    decide(config, context, work, device, flops * steps * config.train.batch_size * work.mean_length)
    num_parameters, names = model.num_parameters(), {name for name, _ in model.named_parameters()}
    num_blocks, head = len(model.backbone.blocks), type(model.head)
    given = set() if work.base is None else work.base.names(names)
    frozen = frozen_names(model, config.optim.freeze) | given
    learning = sum(one.numel() for name, one in model.named_parameters() if name not in frozen)
    if config.train.activation_checkpointing is ActivationCheckpointing.selective:
        keep_products(model)
    if config.compile is Compile.always:
        compile_blocks(model)
    head_share = head_in_blocks(model, work.objective.labelled_share)
    model.backbone.recompute = config.train.activation_checkpointing is ActivationCheckpointing.full
    layout = lay_out(model, mesh, config.parallel, config.precision.value, head_share)
    freeze(model, frozen)
    optimizer = build_optimizer(config.optim, model, context.builders, num_blocks)

    own = {name: one for name, one in layout.parameters.items() if name not in given}
    average = Average(own, config.optim.ema) if config.optim.ema else None
    state, tensors = None, training_tensors(own, optimizer, average)
    if found is not None:
        if work.base is not None:
            load_base(model, work.base, given)
        state = store.load(found, tensors)
    weights = work.first_weights(model, names) if state is None else []
    if average is not None and state is None:
        average.start()
    sinks = open_sinks(context.directory, config, state)
    announce(
        sinks,
        notes,
        config,
        mesh.degrees,
        work.data_line,
        weights,
        [*work.warnings, *why_no_samples(config.log, layout, head)],
        (num_parameters, learning),
        steps,
        state,
    )
    layout.start()
    clip_norm, seed = config.optim.clip_norm, config.run.seed
    step = Step(layout, optimizer, work.objective, clip_norm=clip_norm, seed=seed, average=average)
    step.settle(work.rows.collate([work.rows.filler()] * micro))
    throughput = Throughput(flops, lambda: all_peak_flops(device, layout.precision))
    hooks = make_hooks(config, work, layout, tensors, store, average)
    positions = work.model.max_positions
    hooks[1:1] = watching_hooks(
        config, context.directory, layout, head, names, work.tokenizer, work.rows, positions, average
    )
    engine = assemble(config, context, work.rows, step, micro, throughput, steps, state, sinks, hooks)
    return engine, work, num_parameters


def decide(config: TrainingConfig, context: Context, work: Work, device: torch.device, flops: float) -> None:
    """Settle what the config left open, and store it with the run."""
    config.precision = resolve_precision(config.precision, device)
    config.optim.settle(config.precision)
    config.compile = resolve_compile(config.compile, device, flops / dist.world_size())
    if dist.rank() == 0:
        atomic_write(context.directory.config, config_text(work.verb, config))


def check_same_data(checkpoint: Path, now: Mapping[str, str | None]) -> None:
    """Compare the data with those that a checkpoint was trained on.

    Raises:
        ConfigError: a token, a border between documents or the tokenizer is another.
    """
    then = read_state(checkpoint)["data"]
    changed = [name for name in now if then[name] != now[name]]
    if changed:
        raise ConfigError(
            f"the data have changed since this run was started: {', '.join(changed)}",
            str(checkpoint),
            "bring the old files back, or start a new run with run.name=...",
        )


def make_hooks(
    config: TrainingConfig,
    work: Work,
    layout: Layout,
    tensors: dict[str, torch.Tensor],
    store: CheckpointStore,
    average: Average | None,
) -> list[Hook]:
    """Reports, evaluation (of the average, where one is kept) and checkpoints, in the order in which they
    follow a step."""
    hooks: list[Hook] = [LogHook(config.log.every)]
    evaluator = work.evaluator(layout)
    if evaluator is not None:
        every = config.eval.every
        if every is None:
            # Rounded up, so that the last evaluation is the one after the last step.
            every = math.ceil(work.rows.rows_per_epoch / config.train.batch_size)
        measure = of_average(evaluator, average)
        hooks.append(EvaluateHook(every, measure, work.metric, config.eval.patience))
    saving = CheckpointHook(
        config.checkpoint.every,
        config.checkpoint.best,
        config.checkpoint.background,
        store,
        tensors,
        checkpoint_texts(config, work),
        {"layout": asdict(layout.mesh.degrees), "data": dict(work.identity)},
    )
    return [*hooks, saving]


def of_average(evaluator: Evaluator, average: Average | None) -> Evaluator:
    """An evaluator that measures the moving average of the weights, where there is one."""

    def evaluate(stopped: Callable[[], bool]) -> Evaluation | None:
        with standing(average):
            return evaluator(stopped)

    return evaluate


def checkpoint_texts(config: TrainingConfig, work: Work) -> dict[str, str]:
    """The files of a checkpoint besides tensors and state."""
    texts = {"config.yaml": config_text(work.verb, config), **work.tokenizer.files()}
    return texts if work.base is None else texts | {BASE: work.base.record.text()}


def assemble(
    config: TrainingConfig,
    context: Context,
    rows: Rows,
    step: Step,
    micro: int,
    throughput: Throughput,
    steps: int,
    state: dict[str, Any] | None,
    sinks: list[Sink],
    hooks: list[Hook],
) -> Engine:
    """Put the engine together, and set it to where the saved state left off."""
    train, mesh = config.train, step.layout.mesh
    engine = Engine(
        step=step,
        loader=Loader(
            rows,
            batch_size=train.batch_size,
            micro_batch_size=micro,
            rank=mesh.data_rank,
            world=mesh.degrees.data,
            start_row=state["train"]["row"] if state else 0,
            pin=step.device.type == "cuda",
        ),
        schedule=Schedule(config.schedule, steps, context.builders),
        base_rate=config.optim.lr,
        total_steps=steps,
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
    config: TrainingConfig,
    context: Context,
    engine: Engine,
    work: Work,
    num_parameters: int,
    exit_code: int,
) -> None:
    """Write `summary.json` and tell the user what was reached and what can be done next."""
    state = engine.state
    state.seconds += engine.throughput.take_seconds()
    peak_memory = max(dist.gather(torch.tensor([peak_memory_bytes(engine.step.device)])).flatten().tolist())
    if dist.rank() != 0:
        return
    summary = {
        "finished": state.step >= engine.total_steps and not state.evaluation_due,
        "ended_early": engine.ended_early,
        "exit_code": exit_code,
        "steps": state.step,
        "total_steps": engine.total_steps,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9), 1),
        "metric": work.metric,
        f"validation_{work.metric}": None,
        **{f"validation_{name}": value for name, value in state.validation.items()},
        f"best_validation_{work.metric}": state.best_score,
        "best_step": state.best_step,
        "bad_steps": state.bad_steps,
        "parameters": num_parameters,
        "peak_memory_bytes": peak_memory,
        "processes": dist.world_size(),
        "precision": config.precision.value,
        "compile": config.compile.value,
    }
    write_json(context.directory.summary, summary)
    notes = report_run(context.directory)
    plugins = f" 'run.plugins=[{','.join(config.run.plugins)}]'" if config.run.plugins else ""

    def next_commands(path: str) -> list[str]:
        return [command + plugins for command in work.next_commands(path)]

    print_summary(context.directory, summary, work.show_scores, next_commands, notes)
