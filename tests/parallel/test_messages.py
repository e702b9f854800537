"""What each layout sends in a step, counted and held against the formulas that the documentation states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from llmtrain.data.batch import Batch
from llmtrain.data.loader import Loader
from llmtrain.engine.engine import Engine, Hook
from llmtrain.engine.evaluate import evaluate
from llmtrain.metrics.throughput import Throughput
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model
from llmtrain.model.plan import Split
from llmtrain.objective.causal import Causal
from llmtrain.optim.schedule import Schedule
from llmtrain.recipe.memory import stage_of, tensor_splits
from llmtrain.schema.optim import ConstantSchedule
from llmtrain.schema.parallel import resolve_degrees, stage_blocks
from llmtrain.utils.signals import StopFlag
from tests.helpers.layouts import SETUPS, Setup, part, prepare, share
from tests.helpers.messages import MessageCounter, expected, table
from tests.helpers.models import random_batch
from tests.helpers.paths import ROOT
from tests.helpers.processes import run_ranks
from tests.helpers.works import LENGTH, ROWS, VOCAB, Work, gpt, works

STEPS = 3
LAYOUTS = ["ddp2", "fsdp2", "fsdp2_kept", "tp2", "cp2", "pp2"]
MORE = ["hsdp2x2", "dp2_tp2", "dp2_pp2", "fsdp2_tp2", "cp2_tp2", "tp2_pp2", "fsdp2_pp2", "fsdp2_pp2_always"]


def labelled_works() -> dict[str, Work]:
    """Trainings in which every microbatch has labels: where there are none, nobody asks for a softmax."""

    def batch(number: int) -> Batch:
        return random_batch(VOCAB, ROWS, LENGTH, number)

    return {
        "gpt": Work(gpt(), Causal(False), batch),
        "deep": Work(gpt(num_layers=4), Causal(False), batch),
        "bert": works()["bert"],
    }


class Batches:
    """The rows of a training's batches, one after another."""

    sequence_length = LENGTH
    rows_per_epoch = 1000 * ROWS

    def __init__(self, work: Work) -> None:
        self.work = work

    def read(self, global_row: int) -> int:
        return global_row

    def collate(self, rows: Sequence[int]) -> Batch:
        number, first = divmod(rows[0], ROWS)
        return part(self.work.batch(number), slice(first, first + len(rows)))

    def filler(self) -> int:
        raise AssertionError("there is no end")

    def limit(self, row: int, tokens: int) -> int:
        return row


class Counts(Hook):
    """What was sent in each step, and for a report after the last one."""

    def __init__(self, counter: MessageCounter) -> None:
        self.counter = counter
        self.steps: list[dict[str, int]] = []

    def after_step(self, engine: Engine) -> None:
        self.steps.append(self.take())

    def take(self) -> dict[str, int]:
        counts = dict(self.counter.counts)
        self.counter.counts.clear()
        return counts


def sent(rank: int, chosen: list[tuple[str, str]]) -> list[list[dict[str, int]]]:
    """Messages of the last step, of a report, and of an evaluation batch, for each training and layout."""
    return [counted(labelled_works()[work], SETUPS[layout]) for work, layout in chosen]


def counted(work: Work, how: Setup) -> list[dict[str, int]]:
    step = prepare(work, how)
    mesh = step.layout.mesh
    counter = MessageCounter()
    hook = Counts(counter)
    engine = Engine(
        step=step,
        loader=Loader(
            Batches(work),
            batch_size=ROWS,
            micro_batch_size=ROWS // mesh.degrees.data // how.microbatches,
            rank=mesh.data_rank,
            world=mesh.degrees.data,
        ),
        schedule=Schedule(ConstantSchedule(), STEPS),
        base_rate=1e-3,
        total_steps=STEPS,
        max_bad_steps=1,
        minutes=None,
        stop=StopFlag(),
        throughput=Throughput(1.0, lambda: None),
        sinks=[],
        hooks=[hook],
    )
    with counter:
        engine.fit()
        hook.take()
        engine.tracker.report()
        report = hook.take()
        evaluate(step.layout, work.objective, share(work.batch(0), mesh, how.microbatches)[:1])
        batch = Counter(hook.take()) - Counter({"all-gather": 1, "all-reduce": 1})  # at its end
    engine.close()
    return [hook.steps[-1], report, dict(batch)]


def numbers(model: Assembled, how: Setup, rank: int) -> dict[str, int]:
    """What the letters of the formulas stand for in a process."""
    pp = resolve_degrees(how.parallel, how.world)[0].pp
    place = rank * pp // how.world
    blocks = stage_blocks(len(model.backbone.blocks), how.parallel.num_stages(pp))
    stages = range(place, len(blocks), pp)
    splits = tensor_splits(model)
    own = {
        name
        for name, _ in model.named_parameters()
        if splits[name.rpartition(".")[0]] in (Split.own_tokens, Split.own_lookup)
        and stage_of(name, blocks) in stages
    }
    return {
        "L": sum(len(blocks[stage]) for stage in stages),
        "S": len(stages),
        "M": how.microbatches,
        "W": len(own),
        "first": int(0 in stages),
        "last": int(len(blocks) - 1 in stages),
        "tied": int(model.backbone.tie_embeddings),
        "correct": int("correct" in model.head.sum_names),
    }


def check(world: int, chosen: list[tuple[str, str]], directory: Path) -> None:
    """Count in real processes, and compare."""
    by_rank = run_ranks(sent, world, directory, chosen, timeout=60 + 10 * world * len(chosen))
    for rank, answers in enumerate(by_rank):
        for (name, layout), (step, report, batch) in zip(chosen, answers, strict=True):
            work, how = labelled_works()[name], SETUPS[layout]
            model = build_model(work.model, work.objective.build_head)
            degrees, _ = resolve_degrees(how.parallel, world)
            formulas = expected(degrees, how.parallel, numbers(model, how, rank))
            assert [step, batch] == formulas, (name, layout, rank)
            assert report == {"all-gather": 1}


def test_two_processes_send_what_is_documented(tmp_path: Path) -> None:
    chosen = [("gpt", layout) for layout in LAYOUTS]
    check(2, [*chosen, ("bert", "tp2"), ("deep", "fsdp2"), ("deep", "pp2_interleaved")], tmp_path)


@pytest.mark.equivalence
def test_four_processes_send_what_is_documented(tmp_path: Path) -> None:
    check(4, [("gpt", layout) for layout in MORE], tmp_path)


def test_the_documentation_states_the_formulas() -> None:
    assert table() in (ROOT / "docs/layouts.md").read_text(encoding="utf-8")
