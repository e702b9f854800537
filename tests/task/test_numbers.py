"""Numbers to predict: learned by mean and deviation, told in their own unit."""

from __future__ import annotations

import numpy as np
import pytest

from llmtrain.data.batch import IGNORE
from llmtrain.data.tokenizer_build import bytes_tokenizer
from llmtrain.schema.task import ClassificationTask, Target
from llmtrain.schema.tokenizer import BytesTokenizer
from llmtrain.task.base import Examples
from llmtrain.task.classification import ClassificationKind
from llmtrain.task.labels import Example, Standard
from llmtrain.utils.errors import DataError

KIND = ClassificationKind()


def examples_of(*numbers: float) -> Examples:
    return Examples([Example(f"a.tsv:{i + 1}", f"text {i}", None, one) for i, one in enumerate(numbers)])


def config(**settings: float) -> ClassificationTask:
    return ClassificationTask(target=Target.number, **settings)  # type: ignore[arg-type]


def test_numbers_are_learned_in_deviations_from_their_mean_and_told_in_their_own_unit() -> None:
    given = examples_of(900.0, 1000.0, 1100.0, 1000.0)
    settled = KIND.resolve(config(), given)
    assert settled.number_mean == 1000
    assert settled.number_scale == pytest.approx(np.std([900, 1000, 1100, 1000]))
    task = KIND.build(settled, causal=False)
    samples = task.encode(given.items, bytes_tokenizer(BytesTokenizer()), 8)
    assert [sample.label for sample in samples] == pytest.approx([-(2**0.5), 0, 2**0.5, 0])
    outputs = np.array([[sample.label] for sample in samples], np.float32)
    predictions = task.decode(outputs, samples, given.items)
    assert [one["number"] for one in predictions] == pytest.approx([900, 1000, 1100, 1000], abs=1e-4)
    assert task.score(predictions, given.items)["mean_squared_error"] == pytest.approx(0, abs=1e-6)


def test_mean_and_scale_that_are_given_or_settled_stay() -> None:
    settled = KIND.resolve(config(), examples_of(900.0, 1100.0))
    assert KIND.resolve(settled, examples_of(0.0, 1.0)) == settled
    half = KIND.resolve(config(number_scale=2.0), examples_of(900.0, 1100.0))
    assert (half.number_mean, half.number_scale) == (1000, 2)
    with pytest.raises(ValueError, match="number_scale: must be greater than 0"):
        config(number_scale=0.0)
    with pytest.raises(ValueError, match="number_mean: is for target=number"):
        ClassificationTask(number_mean=1.0)


def test_numbers_without_spread_or_with_too_much() -> None:
    assert Standard.measure([0.1] * 3) == Standard(pytest.approx(0.1), 1.0)
    with pytest.raises(DataError, match="too large"):
        Standard.measure([1e300, -1e300])


def test_no_number_is_taken_for_a_missing_one() -> None:
    assert Standard(0.0, 1.0).of(float(IGNORE)) == pytest.approx(IGNORE, abs=0.002)
    assert np.float32(Standard(0.0, 1.0).of(float(IGNORE))) != IGNORE


def test_as_many_digits_are_told_as_the_scale_has() -> None:
    wide = Standard(1e9, 1.0)
    assert wide.back(wide.of(1e9 + 0.125)) == 1e9 + 0.125
    assert Standard(0.0, 1e-6).back(0.12345678) == 1.23457e-7
