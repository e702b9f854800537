"""What happens between steps: reports, evaluation, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from llmtrain.checkpoint.store import CheckpointStore
from llmtrain.data.batch import Batch
from llmtrain.engine.engine import Engine
from llmtrain.engine.evaluate import evaluate
from llmtrain.model.assembled import Assembled
from llmtrain.objective.build import Objective
from llmtrain.utils.device import peak_memory_bytes


class LogHook:
    """Reports every `every` steps, and at the end what is left."""

    def __init__(self, every: int) -> None:
        self.every = every

    def start(self, engine: Engine) -> None:
        """Nothing to do."""

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

    def finish(self, engine: Engine) -> None:
        """Nothing: what is unreported is saved, and reported after the restart."""


class EvaluateHook:
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
        self.improved = False
        self.latest: dict[str, float] = {}

    def start(self, engine: Engine) -> None:
        """Make up for an evaluation that a stop has cut off."""
        if engine.state.evaluation_due:
            self.evaluate(engine)

    def after_step(self, engine: Engine) -> None:
        """Evaluate if it is time."""
        step = engine.state.step
        self.improved = False
        if (self.every and step % self.every == 0) or step == engine.total_steps:
            self.evaluate(engine)

    def evaluate(self, engine: Engine) -> None:
        """Evaluate, report, remember the best loss. Given up as soon as the run is asked to stop."""
        state, step = engine.state, engine.step
        with engine.throughput.paused():
            result = evaluate(
                self.model, self.objective, self.batches(), step.device, step.autocast, engine.stop_requested
            )
        state.evaluation_due = result is None
        if result is None:
            return
        stats, counts = result
        loss = stats["loss"]
        if state.best_loss is None or loss < state.best_loss:
            state.best_loss, state.best_step = loss, state.step
            self.improved = True
        record: dict[str, Any] = {"kind": "validation", "step": state.step}
        record |= {f"validation_{name}": value for name, value in stats.items()}
        record |= {f"validation_{name}": int(value) for name, value in counts.items()}
        self.latest = record
        engine.report(record)

    def finish(self, engine: Engine) -> None:
        """Nothing: the last step has evaluated."""


class CheckpointHook:
    """Saves every `every` steps, after an evaluation that was the best so far, and at the end.

    Args:
        every: 0 saves at the end only.
        best: keep the checkpoint with the lowest validation loss.
        store: writes checkpoints.
        tensors: all tensors of the run, by name.
        files: texts that belong to each checkpoint, by file name.
        evaluation: says whether the last evaluation was the best; None without validation rows.
        layout: of the processes; noted in the checkpoint.
    """

    def __init__(
        self,
        every: int,
        best: bool,
        store: CheckpointStore,
        tensors: Callable[[], dict[str, torch.Tensor]],
        files: dict[str, str],
        evaluation: EvaluateHook | None,
        layout: dict[str, int],
    ) -> None:
        self.every = every
        self.best = best
        self.store = store
        self.tensors = tensors
        self.files = files
        self.evaluation = evaluation
        self.layout = layout
        self.saved_step = -1

    def start(self, engine: Engine) -> None:
        """Save the result of an evaluation that was made up for."""
        self.saved_step = engine.state.step
        self.save_best(engine)

    def after_step(self, engine: Engine) -> None:
        """Save if it is time or if this is the best model so far."""
        step = engine.state.step
        if (self.every and step % self.every == 0) or step == engine.total_steps:
            self.save(engine)
        self.save_best(engine)

    def save_best(self, engine: Engine) -> None:
        """Keep this model under `best` if the evaluation has just said so. Collective."""
        if self.best and self.evaluation is not None and self.evaluation.improved:
            self.save(engine)
            self.store.mark_best(engine.state.step)

    def save(self, engine: Engine) -> None:
        """Write a checkpoint of this moment, once. Collective."""
        step = engine.state.step
        if step == self.saved_step or step == 0:
            return
        with engine.throughput.paused():
            state = engine.state_dict() | {"layout": self.layout}
            path = self.store.save(step, self.tensors(), state, self.files)
        self.saved_step = step
        engine.event("checkpoint", f"saved {path.name}", step=step, path=str(path))

    def finish(self, engine: Engine) -> None:
        """Save what a stop would lose."""
        self.save(engine)
