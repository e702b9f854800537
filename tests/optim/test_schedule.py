"""Learning-rate schedules as functions of the step."""

import math

import pytest
import torch
from transformers import get_polynomial_decay_schedule_with_warmup

from llmtrain.optim.schedule import Schedule
from llmtrain.schema.optim import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    PolynomialSchedule,
    WSDSchedule,
)


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


@pytest.mark.parametrize(
    "kind", [ConstantSchedule, LinearSchedule, CosineSchedule, PolynomialSchedule, WSDSchedule]
)
def test_a_run_of_one_step_works(kind):
    assert 0 <= Schedule(kind(warmup=0.5), 1).factor(0) <= 1


def test_polynomial_is_transformers_one():
    ours = Schedule(PolynomialSchedule(warmup=10, power=3.0, final_ratio=0.05), 100)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_polynomial_decay_schedule_with_warmup(optimizer, 10, 100, lr_end=0.05, power=3.0)
    for step in range(10, 100):  # ours already learns in the first step of the warm-up
        assert ours.factor(step) == pytest.approx(theirs.lr_lambdas[0](step))


def test_wsd_stays_and_then_falls():
    schedule = Schedule(WSDSchedule(warmup=10, decay=0.25, final_ratio=0.2), 110)
    assert [schedule.factor(step) for step in (9, 10, 50, 85)] == pytest.approx([1.0] * 4)
    assert schedule.factor(85 + 6.25) == pytest.approx(1 - 0.8 * 0.5)
    assert [schedule.factor(step) for step in (110, 200)] == pytest.approx([0.2, 0.2])
