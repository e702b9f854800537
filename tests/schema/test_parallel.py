"""Degrees of parallelism, and how the batch and the blocks are shared out by them."""

from __future__ import annotations

import itertools
import re
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.compose.compose import compose
from llmtrain.schema import parallel
from llmtrain.schema.fields import Device, LaunchConfig, TrainConfig
from llmtrain.schema.parallel import (
    AXES,
    Degrees,
    ParallelConfig,
    PipelineSchedule,
    Reshard,
    count_processes,
    layout_warnings,
    microbatch_rows,
    resolve_degrees,
    stage_blocks,
)

SIZES = st.sampled_from([1, 1, 1, 2, 3, 4])
LAYOUTS = st.builds(
    ParallelConfig,
    **{axis: st.one_of(SIZES, st.just(-1)) for axis in AXES[2:]},
    pp=st.one_of(SIZES, st.just(-1)),
    dp_replicate=st.one_of(st.none(), SIZES, st.just(-1)),
)
SCHEDULES = st.sampled_from(list(PipelineSchedule))


@given(LAYOUTS, st.integers(1, 96))
def test_degrees_multiply_to_the_processes_and_keep_what_is_given(config: ParallelConfig, world: int) -> None:
    degrees, problems = resolve_degrees(config, world)
    open_axes = [axis for axis in AXES if getattr(config, axis) == -1]
    kept = {axis: size for axis in AXES if (size := getattr(config, axis)) not in (None, -1)}
    assert asdict(degrees).items() >= kept.items()
    if not problems:
        assert degrees.world == world
        assert len(open_axes) <= 1
    else:
        assert len(open_axes) > 1 or world % config.fixed() or config.fixed() != world


@given(LAYOUTS, st.integers(1, 96))
def test_what_is_told_to_do_works(config: ParallelConfig, world: int) -> None:
    problems = resolve_degrees(config, world)[1]
    if not problems:
        return
    (problem,) = problems
    if "-1" in problem.what:
        settings = re.findall(r"parallel\.(\w+)=(\d+)", problem.fix)
        single = replace(config, **{axis: int(size) for axis, size in settings})
        assert resolve_degrees(single, single.fixed())[1] == []
    else:
        counts = re.findall(r"\d+", problem.fix)
        assert counts
        for count in counts:
            assert resolve_degrees(config, int(count))[1] == []


@pytest.mark.parametrize(
    ("config", "world", "expected"),
    [
        ({}, 1, "single"),
        ({}, 4, "dp_replicate=4"),
        ({"tp": 2}, 8, "dp_replicate=4 tp=2"),
        ({"tp": 2, "pp": 2, "dp_shard": -1}, 8, "pp=2 dp_shard=2 tp=2"),
        ({"dp_shard": 2, "dp_replicate": -1}, 4, "dp_replicate=2 dp_shard=2"),
        ({"cp": -1}, 1, "single"),
    ],
)
def test_degrees(config: dict[str, int], world: int, expected: str) -> None:
    degrees, problems = resolve_degrees(ParallelConfig(**config), world)
    assert (str(degrees), problems) == (expected, [])
    assert degrees.replicates_only == (expected in ("single", "dp_replicate=4"))


@pytest.mark.parametrize(
    ("choice", "processes", "expected"),
    [
        ("ddp", 2, "dp_replicate=2"),
        ("fsdp", 2, "dp_shard=2"),
        ("hsdp", 4, "dp_replicate=2 dp_shard=2"),
        ("tp", 4, "tp=4"),
        ("pp", 2, "pp=2"),
        ("cp", 2, "cp=2"),
        ("fsdp parallel.tp=2", 4, "dp_shard=2 tp=2"),
        ("tp parallel.tp=2", 4, "dp_replicate=2 tp=2"),
        ("ddp parallel.tp=2 parallel.pp=2 parallel.dp_shard=-1", 4, "pp=2 tp=2"),
    ],
)
def test_presets_mix_with_numbers(choice: str, processes: int, expected: str) -> None:
    (composed,) = compose("pretrain", [*f"parallel={choice}".split(), f"launch.num_processes={processes}"])
    degrees, _ = resolve_degrees(composed.config.parallel, processes)
    assert str(degrees) == expected


@pytest.mark.parametrize(
    ("launch", "layout", "gpus", "torchrun", "expected"),
    [
        ({}, {}, 0, None, 1),
        ({}, {"tp": 2}, 0, None, 2),
        ({}, {"dp_shard": -1}, 0, None, 1),
        ({}, {"tp": 2, "dp_replicate": 2, "pp": -1}, 0, None, 4),
        ({"num_processes": 3}, {"tp": 2}, 8, None, 3),
        ({}, {"tp": 2}, 8, None, 8),
        ({"device": Device.cpu}, {"tp": 2}, 8, None, 2),
        ({"num_processes": 3}, {"tp": 2}, 8, 4, 4),
    ],
)
def test_number_of_processes(
    monkeypatch: pytest.MonkeyPatch,
    launch: dict[str, Any],
    layout: dict[str, int],
    gpus: int,
    torchrun: int | None,
    expected: int,
) -> None:
    monkeypatch.setattr(parallel, "num_gpus", lambda: gpus)
    monkeypatch.setattr(parallel, "torchrun_processes", lambda: torchrun)
    assert count_processes(LaunchConfig(**launch), ParallelConfig(**layout)) == expected


@given(st.integers(1, 96), st.integers(1, 4), st.integers(1, 4), SCHEDULES)
def test_microbatches_split_the_batch_and_keep_a_pipeline_busy(
    batch: int, data: int, pp: int, schedule: PipelineSchedule
) -> None:
    def fits(rows: int) -> bool:
        number, rest = divmod(batch, data * rows)
        whole = number % pp == 0 or not schedule.interleaves
        return rest == 0 and number >= pp and whole

    config, degrees = ParallelConfig(schedule=schedule), Degrees(pp=pp, dp_shard=data)
    fitting = {rows for rows in range(1, batch + 1) if fits(rows)}
    for rows in range(1, batch + 2):
        train = TrainConfig(batch_size=batch, micro_batch_size=rows)
        assert microbatch_rows(train, config, degrees) == (rows if rows in fitting else None)
    rows = microbatch_rows(TrainConfig(batch_size=batch), config, degrees)
    busy = {one for one in fitting if pp == 1 or batch // (data * one) >= 2 * pp}
    assert rows == (max(busy or fitting) if fitting else None)


@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from([0.0, 0.3, 1.0, 2.5, 7.0]))
def test_stages_are_balanced(num_blocks: int, num_stages: int, head: float) -> None:
    if num_stages > num_blocks:
        return

    def slowest(sizes: list[int]) -> float:
        return max([*sizes[:-1], sizes[-1] + head])

    stages = stage_blocks(num_blocks, num_stages, head=head)
    assert [number for stage in stages for number in stage] == list(range(num_blocks))
    assert len(stages) == num_stages
    assert all(stages)
    ways = (
        [b - a for a, b in itertools.pairwise([0, *cuts, num_blocks])]
        for cuts in itertools.combinations(range(1, num_blocks), num_stages - 1)
    )
    assert slowest([len(stage) for stage in stages]) == min(map(slowest, ways))


def test_given_cuts_are_taken() -> None:
    assert stage_blocks(6, 3, [1, 4]) == [range(1), range(1, 4), range(4, 6)]


@pytest.mark.parametrize(("schedule", "expected"), [("1f1b", 4), ("gpipe", 4), ("interleaved_1f1b", 12)])
def test_number_of_stages(schedule: str, expected: int) -> None:
    config = ParallelConfig(schedule=PipelineSchedule(schedule), stages_per_process=3)
    assert config.num_stages(4) == expected
    assert config.num_stages(1) == 1


@pytest.mark.parametrize(
    "wrong", [{"tp": 0}, {"pp": -2}, {"dp_replicate": 0}, {"cuts": [2, 1]}, {"cuts": [0]}, {"cuts": [1, 1]}]
)
def test_numbers_that_mean_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ParallelConfig(**wrong)


@pytest.mark.parametrize(
    ("config", "world", "expected"),
    [
        (ParallelConfig(), 1, []),
        (ParallelConfig(dp_replicate=-1), 1, []),
        (ParallelConfig(dp_shard=-1), 2, []),
        (ParallelConfig(dp_shard=-1), 1, ["dp_shard=-1 gets 1 of 1 processes"]),
        (ParallelConfig(dp_replicate=2, dp_shard=-1), 2, ["dp_shard=-1 gets 1 of 2"]),
        (ParallelConfig(schedule=PipelineSchedule.gpipe, cuts=[1]), 2, ["cuts=[1] is", "schedule=gpipe is"]),
        (ParallelConfig(schedule=PipelineSchedule.gpipe, cuts=[1], pp=2), 2, []),
        (ParallelConfig(stages_per_process=3, pp=2), 2, ["stages_per_process=3 is ignored: parallel.sched"]),
        (ParallelConfig(stages_per_process=3), 2, ["stages_per_process=3 is ignored: there is no pipe"]),
        (ParallelConfig(reshard=Reshard.never), 2, ["reshard=never is ignored"]),
        (ParallelConfig(reshard=Reshard.never, dp_shard=2), 2, []),
        (ParallelConfig(tp=2, schedule=PipelineSchedule.gpipe), 3, []),  # refused anyway
    ],
)
def test_settings_without_effect_are_told(config: ParallelConfig, world: int, expected: list[str]) -> None:
    warnings = layout_warnings(config, world)
    assert len(warnings) == len(expected)
    for warning, words in zip(warnings, expected, strict=True):
        assert f"parallel.{words}" in warning
