"""What happens between steps: reports, evaluation, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from llmtrain.checkpoint.store import CheckpointStore
from llmtrain.data.batch import Batch
from llmtrain.engine.engine import Engine, Hook
from llmtrain.engine.evaluate import evaluate
from llmtrain.model.assembled import Assembled
from llmtrain.objective.build import Objective
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

    def report(self, engine: Engine) -> None:
        """Mean statistics since the last report, speed and memory. Collective."""
        stats = engine.tracker.report()
        if not stats:
            return
        speed = engine.throughput.report()
        state = engine.state
        left = (engine.total_steps - state.step) * engine.tokens_per_step
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


class EvaluateHook(Hook):
    """Evaluates on the validation rows every `every` steps and after the last one.

    Args:
        every: 0 evaluates after the last step only.
        model: the bare model, not its wrapper: evaluation needs no exchange of gradients.
        objective: weighs the sums.
        batches: makes a new pass over this process's validation batches.
    """

    def __init__(
        self,
        every: int,
        model: Assembled,
        objective: Objective,
        batches: Callable[[], Iterator[Batch]],
    ) -> None:
        self.every = every
        self.model = model
        self.objective = objective
        self.batches = batches

    def start(self, engine: Engine) -> None:
        """Make up for an evaluation that a stop has cut off."""
        if engine.state.evaluation_due:
            self.evaluate(engine)

    def after_step(self, engine: Engine) -> None:
        """Evaluate if it is time."""
        step = engine.state.step
        if (self.every and step % self.every == 0) or step == engine.total_steps:
            self.evaluate(engine)

    def evaluate(self, engine: Engine) -> None:
        """Evaluate, report, remember the best loss. Given up as soon as the run is asked to stop."""
        state, step = engine.state, engine.step
        engine.tracker.reduce()  # waits for the device, so that its work is not counted as a pause
        with engine.throughput.paused():
            result = evaluate(
                self.model, self.objective, self.batches(), step.device, step.autocast, engine.stop_requested
            )
        state.evaluation_due = result is None
        if result is None:
            return
        stats, counts = result
        loss = state.validation_loss = stats["loss"]
        if math.isfinite(loss) and (state.best_loss is None or loss < state.best_loss):
            state.best_loss, state.best_step = loss, state.step
        record: dict[str, Any] = {"kind": "validation", "step": state.step}
        record |= {f"validation_{name}": value for name, value in stats.items()}
        record |= {f"validation_{name}": int(value) for name, value in counts.items()}
        engine.report(record)


class CheckpointHook(Hook):
    """Saves every `every` steps, after an evaluation that was the best so far, and at the end.

    Args:
        every: 0 saves at the end only.
        best: keep the checkpoint with the lowest validation loss.
        store: writes checkpoints.
        tensors: all tensors of the run, by name.
        files: texts that belong to each checkpoint, by file name.
        notes: plain values that are saved beside the counters.
    """

    def __init__(
        self,
        every: int,
        best: bool,
        store: CheckpointStore,
        tensors: Callable[[], dict[str, torch.Tensor]],
        files: dict[str, str],
        notes: dict[str, Any],
    ) -> None:
        self.every = every
        self.best = best
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
        step = engine.state.step
        if (self.every and step % self.every == 0) or step == engine.total_steps:
            self.save(engine)
        if self.best and engine.state.best_step == step:
            self.save(engine)
            self.store.mark_best(step)

    def save(self, engine: Engine) -> None:
        """Write a checkpoint of this moment, once. Collective."""
        step = engine.state.step
        if step == self.saved_step or step == 0:
            return
        engine.tracker.reduce()
        with engine.throughput.paused():
            state = engine.state_dict() | self.notes
            path = self.store.save(step, self.tensors(), state, self.files)
        self.saved_step = step
        engine.event("checkpoint", f"saved {path.name}", step=step, path=str(path))

    def finish(self, engine: Engine) -> None:
        """Save what a stop would lose."""
        self.save(engine)
