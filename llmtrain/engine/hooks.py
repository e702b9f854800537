"""What happens between steps: reports, evaluation, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from llmtrain.checkpoint.saving import Content
from llmtrain.checkpoint.store import CheckpointStore
from llmtrain.engine.engine import Engine, Hook
from llmtrain.engine.state import TrainState
from llmtrain.utils.device import peak_memory_bytes


class LogHook(Hook):
    """Reports every `every` steps and after the last one.

    What a stop leaves unreported is saved, and reported after the restart.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def after_step(self, engine: Engine) -> None:
        """Report if it is time."""
        if engine.state.step % self.every == 0 or engine.state.step == engine.total_steps:
            self.report(engine)

    def finish(self, engine: Engine) -> None:
        """Report what an early end has left."""
        if engine.state.step >= engine.total_steps:
            self.report(engine)

    def report(self, engine: Engine) -> None:
        """Mean statistics since the last report, speed and memory. Collective."""
        stats = engine.tracker.report()
        if not stats:
            return
        speed = engine.throughput.report()
        state = engine.state
        left = (engine.total_steps - state.step) * state.tokens / state.step
        engine.report(
            {
                "kind": "train",
                "step": state.step,
                "total_steps": engine.total_steps,
                **stats,
                "learning_rate": engine.learning_rate,
                "tokens": state.tokens,
                **speed,
                "memory_bytes": peak_memory_bytes(engine.step.device),
                "eta_seconds": left / max(speed["tokens_per_second"], 1e-9),
            }
        )


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        scores: `loss` among them.
        counts: what they were measured on.
        keep: called, in every process, when these are the best scores so far.
    """

    scores: dict[str, float]
    counts: dict[str, float]
    keep: Callable[[], None] = lambda: None


Evaluator = Callable[[Callable[[], bool]], Evaluation | None]
"""Evaluates, collectively; asks its argument now and then whether to stop, and then gives None."""


class EvaluateHook(Hook):
    """Evaluates every `every` steps and after the last one, and remembers the best score.

    Args:
        every: 0 evaluates after the last step only.
        evaluate: finds the scores.
        metric: score by which the best step is chosen: of `loss` the lowest, of others the highest, and of
            equal ones that with the lower loss.
        patience: end the training after so many evaluations without a better score, or None.
    """

    def __init__(self, every: int, evaluate: Evaluator, metric: str, patience: int | None = None) -> None:
        self.every = every
        self.evaluator = evaluate
        self.metric = metric
        self.patience = patience

    def start(self, engine: Engine) -> None:
        """Make up for an evaluation that a stop has cut off; stay ended where patience has ended it."""
        if engine.state.evaluation_due:
            self.evaluate(engine)
        self._end_early(engine)

    def after_step(self, engine: Engine) -> None:
        """Evaluate if it is time."""
        step = engine.state.step
        if (self.every and step % self.every == 0) or step == engine.total_steps:
            self.evaluate(engine)
            self._end_early(engine)

    def evaluate(self, engine: Engine) -> None:
        """Evaluate, report, remember the best. Given up as soon as the run is asked to stop."""
        state = engine.state
        engine.tracker.reduce()  # waits for the device, so that its work is not counted as a pause
        with engine.throughput.paused():
            result = self.evaluator(engine.stop_requested)
        state.evaluation_due = result is None
        if result is None:
            return
        state.validation = result.scores
        before = state.best_score
        if self._better(result.scores, state):
            state.best_score, state.best_loss = result.scores[self.metric], result.scores["loss"]
            state.best_step = state.step
            result.keep()
        state.stale_evaluations = 0 if state.best_score != before else state.stale_evaluations + 1
        record: dict[str, Any] = {"kind": "validation", "step": state.step}
        record |= {f"validation_{name}": value for name, value in result.scores.items()}
        record |= {f"validation_{name}": _plain(value) for name, value in result.counts.items()}
        engine.report(record)

    def _better(self, scores: dict[str, float], state: TrainState) -> bool:
        """Whether these scores are the best so far; of two equal ones that with the lower loss."""
        score, best = scores[self.metric], state.best_score
        if best is None or not math.isfinite(score):
            return math.isfinite(score)
        if score == best:
            return state.best_loss is not None and scores["loss"] < state.best_loss
        return score < best if self.metric == "loss" else score > best

    def _end_early(self, engine: Engine) -> None:
        stale = engine.state.stale_evaluations
        if self.patience is None or stale < self.patience or engine.state.step >= engine.total_steps:
            return
        text = f"no better {self.metric} in {stale} evaluations: the training ends here"
        engine.event("ended_early", text, step=engine.state.step)
        engine.end_early()


def _plain(count: float) -> float:
    """A count as people write it: whole numbers (all but sums of weights) without a point."""
    return int(count) if count == int(count) else count


class CheckpointHook(Hook):
    """Saves every `every` steps, after an evaluation that was the best so far, and at the end.

    Args:
        every: 0 saves at the end only.
        best: keep the checkpoint with the best validation score.
        background: write while the training goes on.
        store: writes checkpoints.
        tensors: all tensors of the run, by name.
        files: texts that belong to each checkpoint, by file name.
        notes: plain values that are saved beside the counters.
    """

    def __init__(
        self,
        every: int,
        best: bool,
        background: bool,
        store: CheckpointStore,
        tensors: dict[str, torch.Tensor],
        files: dict[str, str],
        notes: dict[str, Any],
    ) -> None:
        self.every = every
        self.best = best
        self.background = background
        self.store = store
        self.tensors = tensors
        self.files = files
        self.notes = notes
        self.saved_step = -1

    def start(self, engine: Engine) -> None:
        """Point `best` at this step where it belongs but a kill or a stop came before."""
        state = engine.state
        self.saved_step = state.step
        if self.best and state.step and state.best_step == state.step:
            self.store.mark_best(state.step)

    def after_step(self, engine: Engine) -> None:
        """Save if it is time or if this is the best model so far."""
        self._tell(engine)
        step = engine.state.step
        best = self.best and engine.state.best_step == step
        last = step >= engine.total_steps
        if best or last or (self.every and step % self.every == 0):
            self.save(engine, best, background=self.background and not last)

    def save(self, engine: Engine, best: bool = False, background: bool = False) -> None:
        """Write a checkpoint of this moment, once. Collective.

        Args:
            engine: of the training.
            best: it is the best one so far.
            background: return when the training may go on; else when it is published.
        """
        step = engine.state.step
        if step == self.saved_step or step == 0:
            return
        engine.tracker.reduce()
        with engine.throughput.paused():
            state = engine.state_dict() | self.notes
            self.store.wait()
            self._tell(engine)
            content = Content(step, self.tensors, state, self.files)
            self.store.begin(content, best=best, background=background)
        self.saved_step = step
        self._tell(engine)

    def _tell(self, engine: Engine) -> None:
        """Tell of a save that has ended."""
        saved = self.store.take_saved()
        if saved is not None:
            engine.event(
                "checkpoint",
                f"saved {saved.path.name}",
                step=saved.content.step,
                path=str(saved.path),
                background=saved.background,
                pause_seconds=round(saved.pause_seconds, 3),
                write_seconds=round(saved.write_seconds, 3),
            )

    def failed(self) -> bool:
        """Whether a checkpoint could not be written."""
        return self.store.failed()

    def settle(self, engine: Engine) -> None:
        """Wait until the last checkpoint is published."""
        self.store.wait()
        self._tell(engine)

    def finish(self, engine: Engine) -> None:
        """Save what a stop would lose."""
        self.save(engine)
        self.settle(engine)
