"""Names of layouts: `ddp2-tp2` -> degrees of parallelism, and the words that ask for them."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmtrain.schema.load import dump
from llmtrain.schema.parallel import AXES, Degrees, ParallelConfig, PipelineSchedule, resolve_degrees
from llmtrain.utils.errors import Problem

SINGLE, OWN, ALL = "single", "own", "all"
"""One process; the degrees of the user's config; a selection of every kind, and own."""

SELECTION = (
    "ddp2",
    "fsdp2",
    "fsdp4",
    "hsdp2x2",
    "tp2",
    "pp2",
    "pp2-gpipe",
    "pp2-interleaved",
    "pp2-zero-bubble",
    "cp2",
    "ddp2-tp2",
    "ddp2-pp2",
    "ddp2-tp2-pp2",
    "cp2-tp2-ddp2",
)
"""What `all` stands for."""

AXIS_OF = {"ddp": "dp_replicate", "fsdp": "dp_shard", "tp": "tp", "pp": "pp", "cp": "cp"}
SCHEDULE_OF = {
    "gpipe": PipelineSchedule.gpipe,
    "1f1b": PipelineSchedule.one_forward_one_backward,
    "interleaved": PipelineSchedule.interleaved,
    "zero-bubble": PipelineSchedule.zero_bubble,
}
TERM = re.compile(
    rf"(?:(?P<axis>{'|'.join(AXIS_OF)})(?P<degree>\d+)|hsdp(?P<copies>\d+)x(?P<shards>\d+)"
    rf"|(?P<schedule>{'|'.join(SCHEDULE_OF)}))(?:-(?=.)|$)"
)
GRAMMAR = (
    "join axes with their degrees by hyphens, such as ddp2-tp2: ddp, fsdp, tp, pp, cp, and hsdp2x2 for "
    f"copies x shards; with pp also one of {', '.join(SCHEDULE_OF)}; or give own, or all"
)


@dataclass(frozen=True)
class Layout:
    """A layout that a training is to be compared under.

    Attributes:
        name: as it was asked for.
        processes: how many take part.
        parallel: degrees and schedule.
    """

    name: str
    processes: int
    parallel: ParallelConfig

    @property
    def degrees(self) -> Degrees:
        """Processes along each axis."""
        return resolve_degrees(self.parallel, self.processes)[0]

    def words(self, base: ParallelConfig) -> list[str]:
        """What has to be said beside a config whose section `parallel` is `base` to get this layout."""
        before, after = dump(base), dump(self.parallel)
        changed = [f"parallel.{key}={word_of(after[key])}" for key in after if after[key] != before[key]]
        return [*changed, f"launch.num_processes={self.processes}"]


def word_of(value: Any) -> str:
    """A plain value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(word_of, value))}]" if isinstance(value, list) else str(value)


def read_terms(name: str) -> tuple[dict[str, int], PipelineSchedule | None]:
    """Degrees by axis, and the schedule, that a name spells.

    Raises:
        ValueError: it spells none; the text says why.
    """
    degrees: dict[str, int] = {}
    schedules: list[PipelineSchedule] = []
    position = 0
    while position < len(name) or not name:
        term = TERM.match(name, position)
        if term is None:
            raise ValueError(f"there is no layout {name!r}")
        position = term.end()
        if term["schedule"]:
            schedules.append(SCHEDULE_OF[term["schedule"]])
            continue
        found = {"dp_replicate": term["copies"], "dp_shard": term["shards"]}
        if term["axis"]:
            found = {AXIS_OF[term["axis"]]: term["degree"]}
        for axis, degree in found.items():
            if axis in degrees:
                raise ValueError(f"{name!r} gives parallel.{axis} twice")
            if int(degree) < 2:
                raise ValueError(f"{name!r} has a degree of {degree}: leave out what is not split")
            degrees[axis] = int(degree)
    if len(schedules) > 1 or (schedules and "pp" not in degrees):
        raise ValueError(f"{name!r} needs {'one schedule only' if 'pp' in degrees else 'a degree of pp'}")
    return degrees, schedules[0] if schedules else None


def named_layout(name: str, base: ParallelConfig) -> Layout:
    """The layout of a name; `single` is one process.

    Args:
        name: axes with their degrees.
        base: the user's section `parallel`: what no name speaks of (stages, resharding) stays as it is.

    Raises:
        ValueError: there is no such layout; the text says why.
    """
    degrees, schedule = ({}, None) if name == SINGLE else read_terms(name)
    sizes: dict[str, Any] = {axis: degrees.get(axis, 1) for axis in AXES}
    processes = math.prod(sizes.values())
    if "pp" in degrees:
        sizes["schedule"] = schedule or PipelineSchedule.one_forward_one_backward
    return Layout(name, processes, replace(base, **sizes, cuts=None))  # cuts fit one number of stages only


def choose_layouts(
    names: Sequence[str], base: ParallelConfig, own: Layout | None
) -> tuple[list[Layout], list[Problem]]:
    """The layouts that are asked for, each once.

    Args:
        names: as given; none at all means own where there is one, else all.
        base: the user's section `parallel`.
        own: the layout of the user's config, or None where it takes one process.

    Returns:
        layouts, and a problem for each name that is none.
    """
    names = list(names) or ([ALL] if own is None else [OWN])
    wanted: dict[str, None] = {}
    for name in names:
        wanted |= dict.fromkeys(
            ([OWN] if own is not None else []) + list(SELECTION) if name == ALL else [name]
        )
    layouts: list[Layout] = []
    problems: list[Problem] = []
    for name in wanted:
        try:
            if name == OWN:
                if own is None:
                    raise ValueError("your config has no layout of its own: it takes one process")
                layout = own
            elif name == SINGLE:
                raise ValueError("single is what the others are compared with: it runs anyway")
            else:
                layout = named_layout(name, base)
        except ValueError as error:
            problems.append(Problem(str(error), "verify.layouts", _fix(name)))
            continue
        if all(layout.parallel != other.parallel for other in layouts):
            layouts.append(layout)
    return layouts, problems


def _fix(name: str) -> str:
    """What to write in place of a name that is none."""
    if name == OWN:
        return "give degrees, such as parallel.tp=2 launch.num_processes=2, or verify.layouts=all"
    close = closest(name, [*SELECTION, ALL])
    return f"did you mean {close!r}?" if close else GRAMMAR


def closest(word: str, known: Iterable[str]) -> str | None:
    """The name that was likely meant, if any."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.75)), None)
