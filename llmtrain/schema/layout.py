"""Whether a layout goes together with the model, the batch and the machine, and which sizes would. No torch.

What would help is not calculated but tried: a size is offered when the same checks pass with it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from llmtrain.schema.fields import ActivationCheckpointing, Device, Precision
from llmtrain.schema.model import GPTConfig, ModelConfig, TransformerConfig
from llmtrain.schema.parallel import (
    AXES,
    Degrees,
    PipelineSchedule,
    count_processes,
    microbatch_rows,
    resolve_degrees,
    stage_blocks,
)
from llmtrain.schema.roots import FinetuneConfig, PretrainConfig, TrainingConfig
from llmtrain.utils.errors import Problem
from llmtrain.utils.machine import num_gpus

SHOWN = 4
"""Values that are offered for one key."""

Settings = Mapping[str, Any]
"""Dotted keys and their values."""


@dataclass(frozen=True)
class Case:
    """What the rules look at.

    Attributes:
        config: as composed.
        world: number of processes.
        model: None where it is not known yet.
        sequence_length: tokens in a row; None where that is not known yet.
        own: whether `world` follows from the config, and changes with it.
    """

    config: TrainingConfig
    world: int
    model: ModelConfig | None
    sequence_length: int | None
    own: bool

    @cached_property
    def resolved(self) -> tuple[Degrees, list[Problem]]:
        """The degrees, and what is wrong with them."""
        return resolve_degrees(self.config.parallel, self.world)

    @property
    def degrees(self) -> Degrees:
        """How many processes stand along each axis."""
        return self.resolved[0]

    @property
    def transformer(self) -> TransformerConfig | None:
        """The model, if it is known and a transformer."""
        return self.model if isinstance(self.model, TransformerConfig) else None

    @property
    def num_stages(self) -> int:
        """Stages of the pipeline; 1 where there is none."""
        return self.config.parallel.num_stages(self.degrees.pp)

    def told(self, *axes: str) -> str:
        """The degrees along some axes as settings; those that are 1 are left out."""
        degrees = dataclasses.asdict(self.degrees)
        return " x ".join(f"parallel.{axis}={degrees[axis]}" for axis in axes if degrees[axis] > 1)

    def changed(self, settings: Settings) -> Case:
        """The same with other settings."""
        config, model, length = self.config, self.model, self.sequence_length
        for key, value in settings.items():
            config = _with(config, key.split("."), value)
            if key.startswith("model.") and model is not None:
                model = _with(model, key.split(".")[1:], value)
            if key == "train.sequence_length":
                length = value
        world = count_processes(config.launch, config.parallel) if self.own else self.world
        return Case(config, world, model, length, self.own)


def _with(section: Any, path: list[str], value: Any) -> Any:
    """A copy of nested dataclasses with one field changed."""
    name, *rest = path
    value = _with(getattr(section, name), rest, value) if rest else value
    return dataclasses.replace(section, **{name: value})


@dataclass(frozen=True)
class Refusal:
    """Something that does not go together.

    Attributes:
        what: one sentence.
        where: key to look at first.
        cures: keys, and values of them that may help, in the order in which they are offered.
        otherwise: what to do where none of them helps by itself.
    """

    what: str
    where: str
    cures: Mapping[str, Iterable[Any]] = field(default_factory=dict)
    otherwise: str = "give other degrees, or parallel=ddp"


def layout_problems(
    config: TrainingConfig,
    world: int,
    model: ModelConfig | None = None,
    sequence_length: int | None = None,
) -> list[Problem]:
    """Everything in a layout that cannot work, each with sizes that would.

    Args:
        config: of a training.
        world: number of processes.
        model: what is trained. Default: what depends on it is not checked.
        sequence_length: tokens in a row. Default: what depends on it is not checked.
    """
    own = world == count_processes(config.launch, config.parallel)
    case = Case(config, world, model, sequence_length, own)
    refusals = _refusals(case)
    return [
        Problem(one.what, one.where, _fix(case, one, refusals.keys() - {name}))
        for name, one in refusals.items()
    ]


def _refusals(case: Case) -> dict[str, Refusal]:
    """What each rule has against it, by the rule's name."""
    found = {rule.__name__: rule(case) for rule in RULES}
    return {name: refusal for name, refusal in found.items() if refusal is not None}


def _fix(case: Case, refusal: Refusal, others: set[str]) -> str:
    """Settings with which a refusal is gone and none but the others are left; each works by itself."""
    offers = []
    for key, values in refusal.cures.items():
        tried = ((value, case.changed({key: value})) for value in values)
        working = [value for value, changed in tried if _refusals(changed).keys() <= others]
        if working:
            shown = _by_nearness(working, _value(case.config, key))[:SHOWN]
            offers.append(f"{key}={_choice([value for value in working if value in shown])}")
    if not offers:
        together = next(_pairs(case, refusal, others), None)
        return f"give {together}" if together else refusal.otherwise
    return f"give {', or '.join(offers)}"


def _pairs(case: Case, refusal: Refusal, others: set[str]) -> Iterator[str]:
    """Degrees that work together with the number of processes that they need."""
    for key, values in refusal.cures.items():
        if key.startswith("parallel.") and case.config.launch.num_processes is not None:
            for value in _by_nearness(list(values), _value(case.config, key)):
                fixed = case.changed({key: value}).config.parallel.fixed()
                for count in _near(case.world, fixed):
                    settings = {key: value, "launch.num_processes": count}
                    if _refusals(case.changed(settings)).keys() <= others:
                        yield " ".join(f"{name}={_text(one)}" for name, one in settings.items())


def _value(config: TrainingConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _by_nearness(values: Sequence[Any], present: Any) -> list[Any]:
    """Numbers with the smallest change first; other values as they are."""
    if not all(isinstance(value, int) for value in values):
        return list(values)
    present = present if isinstance(present, int) else 0
    return sorted(values, key=lambda value: abs(value - present))


def _choice(values: Sequence[Any]) -> str:
    *others, last = map(_text, values)
    return f"{', '.join(others)} or {last}" if others else last


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return str(value.value if isinstance(value, Enum) else "null" if value is None else value)


def _near(size: int, unit: int) -> list[int]:
    """Multiples of a unit around a size."""
    below = size // unit * unit
    return [number for number in (below, below + unit) if number > 0]


def _counts(case: Case) -> list[int]:
    """Numbers of processes that the machine may have."""
    gpus = num_gpus() if case.config.launch.device in (Device.auto, Device.cuda) else 0
    return list(range(1, (gpus or 2 * max(case.world, 4)) + 1))


def process_count(case: Case) -> Refusal | None:
    """The degrees multiply to the number of processes."""
    if not case.resolved[1]:
        return None
    problem = case.resolved[1][0]
    fixed = case.config.parallel.fixed()
    degrees = [getattr(case.config.parallel, axis) for axis in AXES]
    counts = _near(case.world, fixed) if None in degrees or -1 in degrees else [fixed]
    cures: dict[str, Iterable[Any]] = {"launch.num_processes": [n for n in counts if n in _counts(case)]}
    for axis in AXES:
        degree = getattr(case.config.parallel, axis)
        if degree == -1 or (degree or 1) > 1:
            cures[f"parallel.{axis}"] = range(1, max(case.world, degree) + 1)
    return Refusal(problem.what, problem.where, cures, problem.fix)


def one_device(case: Case) -> Refusal | None:
    """Torch offers no exchange between processes on mps."""
    if case.config.launch.device is not Device.mps or case.world == 1:
        return None
    cures: dict[str, Iterable[Any]] = {"launch.device": [Device.cpu], "launch.num_processes": [1]}
    where = "launch.device" if case.config.launch.num_processes is None else "launch.num_processes"
    return Refusal(f"mps takes one process, not {case.world}", where, cures, "give launch.device=cpu")


def half_precision(case: Case) -> Refusal | None:
    """The factor of the loss that fp16 needs is found by each process from whole gradients."""
    if case.config.precision is not Precision.fp16 or case.degrees.replicates_only:
        return None
    what = (
        f"precision=fp16 goes with copies of the whole model only, not with {case.told(*AXES)}: "
        "its loss scale is set by gradients that no process would have whole"
    )
    return Refusal(what, "precision", {"precision": [Precision.bf16, Precision.fp32]})


def one_backward_pass(case: Case) -> Refusal | None:
    """What is kept of a block serves one backward pass; the zero-bubble schedule makes two of it."""
    train, schedule = case.config.train, case.config.parallel.schedule
    if train.activation_checkpointing is not ActivationCheckpointing.selective or case.degrees.pp == 1:
        return None
    if schedule is not PipelineSchedule.zero_bubble:
        return None
    what = (
        f"train.activation_checkpointing=selective does not go with parallel.schedule={schedule.value}: "
        "it takes inputs and weights in backward passes of their own"
    )
    cures: dict[str, Iterable[Any]] = {
        "train.activation_checkpointing": [ActivationCheckpointing.full, ActivationCheckpointing.none],
        "parallel.schedule": [PipelineSchedule.interleaved],
    }
    return Refusal(what, "train.activation_checkpointing", cures)


def whole_rows(case: Case) -> Refusal | None:
    """Heads of most tasks take whole rows: their labels belong to rows, spans and words, not to tokens."""
    if case.degrees.cp == 1 or not isinstance(case.config, FinetuneConfig) or case.config.task.packs:
        return None
    what = f"{case.told('cp')} does not go with fine-tuning: the heads of tasks take whole rows"
    return Refusal(what, "parallel.cp", {"parallel.cp": [1]}, "give parallel=fsdp")


def shares(case: Case) -> Refusal | None:
    """Heads, hidden units, vocabulary and tokens of a row are shared out evenly."""
    tp, cp, model = case.degrees.tp, case.degrees.cp, case.transformer
    parts = []
    if model is not None:
        parts.append((model.num_heads, f"{model.num_heads} attention heads", tp * cp))
        if isinstance(model, GPTConfig) and model.num_kv_heads is not None:
            parts.append((model.num_kv_heads, f"{model.num_kv_heads} heads of keys and values", tp * cp))
        width = model.feed_forward_dim
        parts.append((width, f"a feed-forward layer of width {width}", tp))
    if case.model is not None:
        multiple, tokens = case.model.vocab_multiple, case.model.vocab_size
        rows = multiple if tokens is None else -(-tokens // multiple) * multiple
        known = "" if tokens is not None else "a multiple of "
        parts.append((rows, f"a vocabulary padded to {known}{rows}", tp))
    if case.sequence_length is not None:
        parts.append((case.sequence_length, f"rows of {case.sequence_length} tokens", tp * cp))
    uneven = [f"{name} (by {by})" for size, name, by in parts if size % by]
    if not uneven:
        return None
    most = max(tp, cp, model.num_heads if model else 8)
    cures: dict[str, Iterable[Any]] = {"parallel.tp": range(1, most + 1), "parallel.cp": range(1, most + 1)}
    if -1 in (case.config.parallel.tp, case.config.parallel.cp):
        cures["launch.num_processes"] = _counts(case)
    if case.sequence_length is not None:
        longest = case.model.max_positions if case.model is not None else case.sequence_length
        lengths = _near(case.sequence_length, tp * cp)
        cures["train.sequence_length"] = [length for length in lengths if length <= longest]
    own = isinstance(case.config, PretrainConfig) and type(case.config.model) is type(case.model)
    if own and case.model is not None and not case.config.init_from:
        cures["model.vocab_multiple"] = [math.lcm(case.model.vocab_multiple, tp)]
        if model is not None:
            cures["model.hidden_dim"] = _near(model.feed_forward_dim, tp)
    what = f"{case.told('tp', 'cp')} cannot share out evenly: {', '.join(uneven)}"
    return Refusal(what, "parallel.tp" if tp > 1 else "parallel.cp", cures)


def stages(case: Case) -> Refusal | None:
    """Each stage of a pipeline has a block."""
    model, parallel = case.transformer, case.config.parallel
    if model is None or case.degrees.pp == 1 or case.num_stages <= model.num_layers:
        return None
    each = f" x parallel.stages_per_process={parallel.stages_per_process}"
    each = each if parallel.schedule.interleaves else ""
    what = f"{case.told('pp')}{each} makes {case.num_stages} stages of a model with {model.num_layers} blocks"
    cures: dict[str, Iterable[Any]] = {"parallel.pp": range(1, model.num_layers + 1)}
    if parallel.pp == -1:
        cures["launch.num_processes"] = _counts(case)
    if each:
        cures["parallel.stages_per_process"] = range(1, parallel.stages_per_process)
    return Refusal(what, "parallel.pp", cures)


def cuts(case: Case) -> Refusal | None:
    """The cuts of a pipeline make the stages that it has, each with a block."""
    given, model = case.config.parallel.cuts, case.transformer
    if given is None or case.degrees.pp == 1:
        return None
    behind = model is not None and max(given, default=0) >= model.num_layers
    if len(given) + 1 == case.num_stages and not behind:
        return None
    what = f"parallel.cuts={_text(given)} makes {len(given) + 1} stages, the pipeline has {case.num_stages}"
    if len(given) + 1 == case.num_stages and model is not None:
        what = f"parallel.cuts={_text(given)} goes beyond the {model.num_layers} blocks of the model"
    balanced = []
    if model is not None and case.num_stages <= model.num_layers:
        balanced = [[part.start for part in stage_blocks(model.num_layers, case.num_stages)[1:]]]
    return Refusal(what, "parallel.cuts", {"parallel.cuts": [*balanced, None]}, "leave parallel.cuts out")


def batch(case: Case) -> Refusal | None:
    """The global batch splits into whole microbatches, in a pipeline into enough of them."""
    train, parallel, degrees = case.config.train, case.config.parallel, case.degrees
    if microbatch_rows(train, parallel, degrees) is not None:
        return None
    micro, pp = train.micro_batch_size, degrees.pp
    step = pp if parallel.schedule.interleaves else 1
    rows = [f"train.micro_batch_size={micro}"] if micro else []
    rows += [f"{degrees.data} processes that share it"] if degrees.data > 1 else []
    what = f"train.batch_size={train.batch_size} does not split evenly by {' x '.join(rows)}"
    if train.batch_size % (degrees.data * (micro or 1)) == 0:
        many = f"a multiple of {pp} microbatches" if step > 1 else f"{pp} microbatches or more"
        number = train.batch_size // degrees.data // (micro or 1)
        what = f"{case.told('pp')} needs {many}, not {number}"
        what += f" (train.batch_size={train.batch_size} by {' x '.join(rows)})" if rows else ""
    unit = degrees.data * (micro or 1) * step
    share = train.batch_size // degrees.data
    least = degrees.data * (micro or 1) * pp
    near = sorted({max(size, least) for size in _near(train.batch_size, unit)})
    cures: dict[str, Iterable[Any]] = {"train.batch_size": near}
    if micro:
        cures["train.micro_batch_size"] = [rows for rows in range(1, share + 1) if share % rows == 0]
    if degrees.data > 1:
        cures["launch.num_processes"] = _counts(case)
        given = [
            f"dp_{kind}" for kind in ("replicate", "shard") if (getattr(parallel, f"dp_{kind}") or 0) > 1
        ]
        cures |= {f"parallel.{axis}": range(1, getattr(parallel, axis)) for axis in given}
    if pp > 1:
        cures["parallel.pp"] = range(1, pp)
    counted = case.config.launch.num_processes is not None
    where = "train.micro_batch_size" if micro else "launch.num_processes" if counted else "train.batch_size"
    return Refusal(what, where, cures, "give another train.batch_size, or other degrees")


RULES: tuple[Callable[[Case], Refusal | None], ...] = (
    process_count,
    one_device,
    half_precision,
    one_backward_pass,
    whole_rows,
    shares,
    stages,
    cuts,
    batch,
)
"""All that is checked, in the order in which it is reported."""
