"""Speed: tokens per second, model FLOPs utilisation, share of time spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Throughput:
    """Speed of the training steps; time inside `paused` (evaluation, saving) does not count.

    Model FLOPs utilisation (MFU) = tokens/s x FLOPs per token / peak FLOPs per second of all devices,
    with 6 N + 12 L d T operations per token (Chowdhery et al. 2022, "PaLM", appendix B): products that
    are computed twice, or on padding, earn nothing.

    Args:
        flops_per_token: of a training step.
        peak_flops: of all devices together, asked for once, at the first report, since measuring it
            takes a moment; None where it is not known.
        clock: seconds.
    """

    def __init__(
        self,
        flops_per_token: float,
        peak_flops: Callable[[], float | None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.flops_per_token = flops_per_token
        self._measure_peak = peak_flops
        self._peak: float | None = None
        self._peak_known = False
        self._clock = clock
        self._paused = 0.0
        self._reported_at = self._taken_at = clock()
        self._tokens = self._places = 0
        self._waited = 0.0

    def _active(self) -> float:
        """The clock, without the pauses."""
        return self._clock() - self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do something that is not training."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    def add(self, tokens: int, places: int, waited: float) -> None:
        """Count a step: its real tokens, its places for tokens (padding included), its wait for data."""
        self._tokens += tokens
        self._places += places
        self._waited += waited

    def report(self) -> dict[str, float]:
        """Since the last report: tokens_per_second, mfu (where the peak is known), and shares: real_tokens
        among the places for tokens, data_wait of the time."""
        now = self._active()
        seconds = max(now - self._reported_at, 1e-9)
        speed = {
            "tokens_per_second": self._tokens / seconds,
            "real_tokens": self._tokens / max(self._places, 1),
            "data_wait": self._waited / seconds,
        }
        if not self._peak_known:
            with self.paused():
                self._peak, self._peak_known = self._measure_peak(), True
        if self._peak:
            speed["mfu"] = speed["tokens_per_second"] * self.flops_per_token / self._peak
        self._reported_at, self._tokens, self._places, self._waited = now, 0, 0, 0.0
        return speed

    def take_seconds(self) -> float:
        """Seconds of training since the last call."""
        now = self._active()
        seconds, self._taken_at = now - self._taken_at, now
        return seconds
