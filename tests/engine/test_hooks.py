"""Evaluation between steps: the best score, patience, and what a restart goes on with."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from llmtrain.engine.engine import Engine
from llmtrain.engine.hooks import EvaluateHook, Evaluation
from llmtrain.engine.state import TrainState


class Stage(SimpleNamespace):
    """As much of an engine as the hook looks at."""

    end_early = Engine.end_early

    def __init__(self, total_steps: int = 10, state: TrainState | None = None) -> None:
        super().__init__(
            state=state or TrainState(),
            total_steps=total_steps,
            ended_early=False,
            records=[],
            events=[],
            tracker=SimpleNamespace(reduce=lambda: None),
            throughput=SimpleNamespace(paused=contextlib.nullcontext),
            stop_requested=lambda: False,
        )

    def report(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def event(self, event: str, text: str, **details: Any) -> None:
        self.events.append(event)


def train(stage: Stage, hook: EvaluateHook, stop_at: int | None = None) -> None:
    hook.start(stage)
    while stage.state.step < stage.total_steps and stage.state.step != stop_at:
        stage.state.step += 1
        hook.after_step(stage)


def scored(scores: list[float], kept: list[float], metric: str = "accuracy", **settings: Any) -> EvaluateHook:
    """A hook that finds these scores, one after the other, and what it keeps."""
    left = list(scores)

    def evaluate(stopped: object) -> Evaluation:
        score = left.pop(0)
        return Evaluation(
            {"loss": 1.0, metric: score}, {"weight": 1.5, "words": 3.0}, lambda: kept.append(score)
        )

    return EvaluateHook(1, evaluate, metric, **settings)


def test_the_best_score_is_the_highest_and_of_losses_the_lowest():
    for metric, best, step in (("accuracy", 0.9, 3), ("loss", 0.2, 2)):
        stage, kept = Stage(4), []
        train(stage, scored([0.5, 0.2, 0.9, float("nan")], kept, metric))
        assert (stage.state.best_score, stage.state.best_step) == (best, step)
        assert kept[-1] == best
        assert stage.state.stale_evaluations == 4 - step


def test_of_equal_scores_the_one_with_the_lower_loss_is_the_best():
    found = iter([(0.5, 0.9), (0.8, 0.7), (0.8, 0.7), (0.8, 0.6), (0.8, float("nan")), (0.7, 0.1)])

    def evaluate(stopped: object) -> Evaluation:
        accuracy, loss = next(found)
        return Evaluation({"loss": loss, "accuracy": accuracy}, {})

    stage = Stage(6)
    train(stage, EvaluateHook(1, evaluate, "accuracy"))
    assert (stage.state.best_score, stage.state.best_loss, stage.state.best_step) == (0.8, 0.6, 4)
    assert stage.state.stale_evaluations == 4, "patience is for the score"


def test_sums_of_weights_are_told_as_they_are_and_counts_without_a_point():
    stage = Stage(1)
    train(stage, scored([0.5], []))
    (record,) = stage.records
    assert record["validation_weight"] == 1.5
    assert type(record["validation_words"]) is int


def test_patience_ends_the_training():
    stage, kept = Stage(10), []
    train(stage, scored([0.1, 0.3, 0.2, 0.3, 0.9], kept, patience=2))
    assert stage.state.step == stage.total_steps == 4
    assert stage.ended_early
    assert stage.events == ["ended_early"]
    assert kept == [0.1, 0.3]


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_patience_goes_on_counting_after_a_restart(stop_at):
    scores = [0.3, 0.2, 0.1, 0.2, 0.9]
    first = Stage(10)
    train(first, scored(scores, [], patience=3), stop_at)
    state = TrainState()
    state.load_state_dict(first.state.state_dict())
    second = Stage(10, state)
    train(second, scored(scores[stop_at:], [], patience=3))
    assert second.state.step == second.total_steps == 4


def test_an_ended_training_stays_ended_unless_it_is_given_more_patience():
    state = TrainState(step=4, best_score=0.5, best_step=1, stale_evaluations=3)
    stage = Stage(10, state)
    train(stage, scored([], [], patience=3))
    assert stage.state.step == stage.total_steps == 4
    stage = Stage(6, state)
    train(stage, scored([0.1, 0.6], [], patience=5))
    assert stage.state.step == 6
    assert not stage.ended_early


def test_an_evaluation_that_was_cut_off_is_made_up_for():
    state = TrainState(step=4, evaluation_due=True, best_score=0.5, best_step=1, stale_evaluations=2)
    stage = Stage(10, state)
    train(stage, scored([0.4], [], patience=3))
    assert not stage.state.evaluation_due
    assert stage.state.step == stage.total_steps == 4
