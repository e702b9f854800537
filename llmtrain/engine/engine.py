"""The loop. There is one, for every model, objective and layout."""

from __future__ import annotations

import collections
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from llmtrain.data.batch import Batch
from llmtrain.data.loader import Loader
from llmtrain.engine.state import TrainState
from llmtrain.engine.step import Step, StepResult
from llmtrain.metrics.sinks import Sink
from llmtrain.metrics.throughput import Throughput
from llmtrain.metrics.tracker import Tracker
from llmtrain.optim.optimizer import scale_learning_rate
from llmtrain.optim.schedule import Schedule
from llmtrain.utils import dist
from llmtrain.utils.errors import DivergedError, ExitCode
from llmtrain.utils.signals import EXIT_CODE_OF_SIGNAL, StopFlag

logger = logging.getLogger(__name__)

TOKENS, PLACES = "tokens", "places"
"""Names under which real tokens, and tokens with padding, are counted along with the labels."""

STOP_CODES = [ExitCode.OK, *EXIT_CODE_OF_SIGNAL.values()]
"""Why the loop may end before the last step: out of time (train.minutes), or a signal."""


class Hook:
    """Something that looks at the run between steps; does nothing where it is not overridden."""

    def start(self, engine: Engine) -> None:
        """Before the first step of this process."""

    def before_clear(self, engine: Engine, result: StepResult) -> None:
        """After each step, while its gradients (clipped) are still there."""

    def after_step(self, engine: Engine) -> None:
        """After each step; all processes call all hooks in the same order."""

    def failed(self) -> bool:
        """Whether what runs beside the loop, if anything, has failed in this process; asked before each step.

        Where it has in one process, all call `settle`.
        """
        return False

    def settle(self, engine: Engine) -> None:
        """Wait for what runs beside the loop, and raise its error; also called when the loop has failed."""

    def finish(self, engine: Engine) -> None:
        """After the last step or when the run is asked to stop."""


class Engine:
    """Trains until the last step or until it is asked to stop.

    Args:
        step: does one optimizer step.
        loader: gives the microbatches of each step.
        schedule: factor of the learning rate.
        base_rate: highest learning rate.
        total_steps: length of the run.
        max_bad_steps: consecutive skipped steps before giving up.
        minutes: stop after so many, or None.
        stop: flag that signals set.
        throughput: counts tokens and seconds.
        sinks: of rank 0; empty elsewhere.
        hooks: in the order in which they run.
    """

    def __init__(
        self,
        *,
        step: Step,
        loader: Loader,
        schedule: Schedule,
        base_rate: float,
        total_steps: int,
        max_bad_steps: int,
        minutes: float | None,
        stop: StopFlag,
        throughput: Throughput,
        sinks: list[Sink],
        hooks: list[Hook],
    ) -> None:
        self.step = step
        self.loader = loader
        self.schedule = schedule
        self.base_rate = base_rate
        self.total_steps = total_steps
        self.ended_early = False
        self.max_bad_steps = max_bad_steps
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.stop = stop
        self.throughput = throughput
        self.sinks = sinks
        self.hooks = hooks
        self.state = TrainState()
        self.tracker = Tracker()
        self.learning_rate = 0.0
        # On a GPU the host looks at a step's verdict one step later, when it is certainly there.
        self._verdict_delay = 0 if step.device.type == "cpu" else 1
        self._verdicts: collections.deque[tuple[int, StepResult]] = collections.deque()

    def fit(self) -> int:
        """Train; returns 0, or the exit code of the signal that stopped it."""
        state = self.state
        stopped = None
        for hook in self.hooks:
            hook.start(self)
        while state.step < self.total_steps:
            batches = self.loader.next()
            counts, stopped = self._agree([self._count(batch) for batch in batches])
            if stopped is not None:
                break
            tokens, places = int(counts.pop(TOKENS)), int(counts.pop(PLACES))
            factor = self.schedule.factor(state.step)
            self.learning_rate = self.base_rate * factor
            scale_learning_rate(self.step.optimizer, factor)
            result = self.step(batches, counts, state.step)
            state.step += 1
            state.row = self.loader.row
            state.tokens += tokens
            self.tracker.record(result.stats | {"gradient_norm": result.norm / dist.world_size()})
            self.throughput.add(tokens, places, self.loader.wait_seconds)
            self.loader.wait_seconds = 0.0
            self._verdicts.append((state.step, result))
            self._check_verdicts(self._verdict_delay)
            for hook in self.hooks:
                hook.before_clear(self, result)
            self.step.clear_gradients()
            for hook in self.hooks:
                hook.after_step(self)
        self._check_verdicts(0)
        for hook in self.hooks:
            hook.finish(self)
        if stopped is None and state.evaluation_due:  # asked to stop during the last evaluation
            stopped = self._agree([{}])[1]
        done = state.step >= self.total_steps and not state.evaluation_due
        self.event("finished" if done else "stopped", "", step=state.step, exit_code=stopped or ExitCode.OK)
        return stopped or ExitCode.OK

    def end_early(self) -> None:
        """Let this step be the last one of the run; for hooks."""
        self.total_steps = self.state.step
        self.ended_early = True

    def _count(self, batch: Batch) -> dict[str, float]:
        """What is counted in a batch: the objective's denominators, real tokens, and places for tokens."""
        assert batch.num_tokens is not None
        return self.step.objective.count(batch) | {TOKENS: batch.num_tokens, PLACES: batch.ids.numel()}

    def stop_requested(self) -> bool:
        """Whether any process was asked to stop. Collective."""
        return self._agree([{}])[1] is not None

    def _agree(self, counts: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], int | None]:
        """Exchange label counts, stop requests and failures, in one small message before each step.

        Returns:
            labels of the global batch by name, 1 where there are none; and why to stop, or None.
        """
        names = list(counts[0])
        labels = [float(sum(part[name] for part in counts)) for name in names]
        asked = [0.0] * len(STOP_CODES)
        if self.deadline is not None and time.monotonic() > self.deadline:
            asked[0] = 1.0
        if self.stop.exit_code:
            asked[STOP_CODES.index(self.stop.exit_code)] = 1.0
        *total, failures = dist.sum_over_ranks(
            [*labels, *asked, float(any(one.failed() for one in self.hooks))]
        )
        if failures:
            for hook in self.hooks:
                hook.settle(self)
        # Some processes see the same rows; so many times each label was counted.
        total[: len(names)] = [count / self.step.layout.mesh.num_alike for count in total[: len(names)]]
        reasons = [code for code, votes in zip(STOP_CODES, total[len(names) :], strict=True) if votes]
        stop = reasons[-1] if reasons else None
        return {name: value or 1.0 for name, value in zip(names, total, strict=False)}, stop

    def _check_verdicts(self, delay: int) -> None:
        """Look at the steps that are done for certain; count and name the bad ones, give up on too many."""
        while len(self._verdicts) > delay:
            number, result = self._verdicts.popleft()
            loss_finite, norm_finite = result.finite.tolist()
            if norm_finite:
                self.state.bad_in_a_row = 0
                continue
            if self.step.scaler.is_enabled() and loss_finite and self.step.scaler.get_scale() >= 1:
                text = f"step {number}: gradients overflowed in fp16; step skipped, loss scale lowered"
                self.event("overflow", text, step=number)
                continue
            self.state.bad_steps += 1
            self.state.bad_in_a_row += 1
            self._report_bad_step(number, loss_finite)

    def _report_bad_step(self, number: int, loss_finite: bool) -> None:
        """Say which step, which ranks and which parameters; raise when it was one too many."""
        bad_ranks = [rank for rank, votes in enumerate(self._loss_votes(loss_finite)) if not votes]
        names = [] if self._verdict_delay else self.step.non_finite_gradients()
        what = f"loss of rank {', '.join(map(str, bad_ranks))}" if bad_ranks else "gradient"
        text = f"step {number}: the {what} is not finite; the step was skipped"
        if names:
            text += f" (gradient of {names[0]}" + (f" and {len(names) - 1} more)" if len(names) > 1 else ")")
        self.event("bad_step", text, step=number, ranks=bad_ranks, parameters=names[:20])
        if self.state.bad_in_a_row >= self.max_bad_steps:
            raise DivergedError(
                f"the {what} was not finite for {self.state.bad_in_a_row} steps in a row",
                f"step {number}" + (f", gradient of {names[0]}" if names else ""),
                "lower optim.lr, lengthen schedule.warmup, or use precision=bf16 or fp32; "
                "the last checkpoint is from before",
            )

    @staticmethod
    def _loss_votes(loss_finite: bool) -> list[bool]:
        """Whether the loss was finite, for every rank. Collective."""
        votes = [0.0] * dist.world_size()
        votes[dist.rank()] = float(loss_finite)
        return [bool(vote) for vote in dist.sum_over_ranks(votes)]

    def report(self, record: dict[str, Any]) -> None:
        """Give numbers to all sinks."""
        for sink in self.sinks:
            sink.metrics(record)

    def event(self, event: str, text: str, **details: Any) -> None:
        """Note something that happened; `text` tells it to people and may be empty."""
        logger.info("%s: %s", event, text)
        for sink in self.sinks:
            sink.event({"event": event, "text": text, **details})

    def close(self) -> None:
        """End what runs beside us and close the sinks; never hides the error that brought us here."""
        self.loader.close()
        for hook in self.hooks:
            try:
                hook.settle(self)
            except Exception:
                logger.exception("while the run was ending")
        for sink in self.sinks:
            with contextlib.suppress(OSError):  # everything was flushed when it was written
                sink.close()

    def state_dict(self) -> dict[str, Any]:
        """Plain values: counters, unreported statistics, the loss scale. Collective."""
        self._check_verdicts(0)
        self.state.seconds += self.throughput.take_seconds()
        return {
            "train": self.state.state_dict(),
            "tracker": self.tracker.state_dict(),
            "scaler": self.step.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved state; the loader is given its row when it is made."""
        self.state.load_state_dict(state["train"])
        self.tracker.load_state_dict(state["tracker"])
        if state["scaler"]:
            self.step.scaler.load_state_dict(state["scaler"])
