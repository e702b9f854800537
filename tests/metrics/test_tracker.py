"""Statistics of steps: means over the reported steps, and their state."""

import math

import torch

from llmtrain.metrics.tracker import Tracker


def record(tracker: Tracker, *losses: float) -> None:
    for loss in losses:
        tracker.record({"loss": torch.tensor(loss), "norm": torch.tensor(2 * loss)})


def test_report_is_the_mean_since_the_last_report():
    tracker = Tracker()
    record(tracker, 1.0, 2.0, 6.0)
    assert tracker.report() == {"loss": 3.0, "norm": 6.0}
    record(tracker, 5.0)
    assert tracker.report() == {"loss": 5.0, "norm": 10.0}
    assert tracker.report() == {}


def test_a_restart_between_two_reports_changes_no_bit():
    values = torch.rand(7, generator=torch.Generator().manual_seed(0)).tolist()
    whole, first, second = Tracker(), Tracker(), Tracker()
    record(whole, *values)
    record(first, *values[:3])
    second.load_state_dict(first.state_dict())
    record(second, *values[3:])
    assert second.report() == whole.report()


def test_steps_that_were_skipped_are_left_out_of_the_mean():
    tracker = Tracker()
    record(tracker, 1.0, float("nan"), 3.0, float("inf"))
    assert tracker.report() == {"loss": 2.0, "norm": 4.0}
    record(tracker, float("nan"))
    assert math.isnan(tracker.report()["loss"])
