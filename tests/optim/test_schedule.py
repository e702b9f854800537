"""Learning-rate schedules as functions of the step."""

import math

import pytest

from llmtrain.optim.schedule import Schedule
from llmtrain.schema.optim import ConstantSchedule, CosineSchedule, LinearSchedule


def test_warmup_by_ratio_and_by_steps_are_the_same():
    by_ratio = Schedule(CosineSchedule(warmup=0.1), 100)
    by_steps = Schedule(CosineSchedule(warmup=10), 100)
    assert [by_ratio.factor(s) for s in range(100)] == [by_steps.factor(s) for s in range(100)]


def test_warmup_rises_linearly_and_the_first_step_learns():
    schedule = Schedule(ConstantSchedule(warmup=4), 10)
    assert [schedule.factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_goes_from_one_to_the_final_ratio():
    schedule = Schedule(CosineSchedule(warmup=5, final_ratio=0.1), 105)
    assert schedule.factor(5) == 1.0
    assert schedule.factor(55) == pytest.approx(0.55)
    assert schedule.factor(105) == pytest.approx(0.1)
    assert schedule.factor(30) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))


def test_linear_is_a_line_and_stays_at_its_end():
    schedule = Schedule(LinearSchedule(warmup=0, final_ratio=0.0), 10)
    assert [schedule.factor(step) for step in (0, 5, 9, 10, 50)] == pytest.approx([1.0, 0.5, 0.1, 0.0, 0.0])


@pytest.mark.parametrize("kind", [ConstantSchedule, LinearSchedule, CosineSchedule])
def test_a_run_of_one_step_works(kind):
    assert 0 <= Schedule(kind(warmup=0.5), 1).factor(0) <= 1
