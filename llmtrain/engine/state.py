"""Everything that the loop counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class TrainState:
    """Counters of a run; they are saved with each checkpoint.

    Attributes:
        step: optimizer steps done.
        row: rows of the endless stream taken; the whole state of the data.
        tokens: tokens in these rows.
        seconds: time spent in training steps, over all restarts.
        bad_steps: steps skipped because loss or gradients were not finite.
        bad_in_a_row: how many of these were the last ones.
        best_loss: lowest validation loss so far.
        best_step: the step that reached it.
        validation_loss: the last one that was measured.
        evaluation_due: an evaluation at this step was cut off by a stop; it comes first after a restart.
    """

    step: int = 0
    row: int = 0
    tokens: int = 0
    seconds: float = 0.0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    validation_loss: float | None = None
    evaluation_due: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over saved counters."""
        for name, value in state.items():
            setattr(self, name, value)
