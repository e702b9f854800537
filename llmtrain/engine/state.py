"""Everything that the loop counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """Counters of a run; they are saved with each checkpoint.

    Attributes:
        step: optimizer steps done.
        row: rows of the endless stream taken; the whole state of the data.
        tokens: real tokens in these rows.
        seconds: time spent in training steps, over all restarts.
        bad_steps: steps skipped because loss or gradients were not finite.
        bad_in_a_row: how many of these were the last ones.
        best_score: best validation score so far, by the run's metric.
        best_loss: validation loss there.
        best_step: the step that reached it.
        stale_evaluations: evaluations since the score has become better.
        validation: the last scores that were measured, by name.
        evaluation_due: an evaluation at this step was cut off by a stop; it comes first after a restart.
    """

    step: int = 0
    row: int = 0
    tokens: int = 0
    seconds: float = 0.0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    best_score: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    stale_evaluations: int = 0
    validation: dict[str, float] = field(default_factory=dict)
    evaluation_due: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over saved counters."""
        for name, value in state.items():
            setattr(self, name, value)
