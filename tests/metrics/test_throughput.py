"""Arithmetic of speed."""

import pytest

from llmtrain.metrics.throughput import Throughput


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_tokens_per_second_mfu_and_waiting():
    clock = Clock()
    throughput = Throughput(6_000, lambda: 3e6, clock)
    throughput.add(500, 600, 0.5)
    throughput.add(500, 650, 0.0)
    clock.now += 4
    report = throughput.report()
    assert report["tokens_per_second"] == 250
    assert report["real_tokens"] == 0.8
    assert report["data_wait"] == 0.125
    assert report["mfu"] == pytest.approx(250 * 6_000 / 3e6)


def test_each_report_starts_anew_and_pauses_do_not_count():
    clock = Clock()
    throughput = Throughput(1, lambda: None, clock)
    throughput.add(100, 100, 0.0)
    clock.now += 1
    throughput.report()
    throughput.add(100, 100, 0.0)
    clock.now += 1
    with throughput.paused():
        clock.now += 50
    clock.now += 1
    report = throughput.report()
    assert report["tokens_per_second"] == 50
    assert "mfu" not in report
    assert throughput.take_seconds() == 3
    clock.now += 2
    assert throughput.take_seconds() == 2


def test_the_peak_is_measured_once_and_its_time_is_not_training():
    clock, calls = Clock(), []

    def measure() -> float:
        calls.append(1)
        clock.now += 9
        return 1e3

    throughput = Throughput(10, measure, clock)
    for _ in range(2):
        throughput.add(10, 10, 0.0)
        clock.now += 1
        assert throughput.report()["mfu"] == pytest.approx(0.1)
    assert len(calls) == 1
    assert throughput.take_seconds() == 2
