"""Scores against scikit-learn and SciPy, and the edges where those have no number."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.metrics import scores

Classes = tuple[list[int], list[int], int]


@st.composite
def classes(draw: st.DrawFn) -> Classes:
    """True and predicted classes; often not all of them occur."""
    num = draw(st.integers(2, 6))
    size = draw(st.integers(1, 40))
    chosen = st.lists(st.integers(0, num - 1), min_size=size, max_size=size)
    return draw(chosen), draw(chosen), num


@st.composite
def label_sets(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(st.integers(1, 20)), draw(st.integers(1, 5))
    flags = st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    return np.array(draw(flags)).reshape(shape), np.array(draw(flags)).reshape(shape)


@st.composite
def numbers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two columns of numbers, with ties."""
    size = draw(st.integers(2, 30))
    value = st.one_of(st.integers(-3, 3), st.floats(-1e3, 1e3).map(lambda x: round(x, 3)))
    columns = st.lists(value, min_size=size, max_size=size)
    return np.array(draw(columns), np.float64), np.array(draw(columns), np.float64)


@given(classes())
@settings(deadline=None, max_examples=100)
def test_one_class_for_each(case: Classes) -> None:
    true, predicted, num = case
    matrix = scores.confusion_matrix(np.array(true), np.array(predicted), num)
    every = list(range(num))
    assert matrix.tolist() == oracle.confusion_matrix(true, predicted, labels=every).tolist()
    assert scores.accuracy(matrix) == pytest.approx(oracle.accuracy_score(true, predicted))
    ours = scores.class_scores(matrix)
    theirs = oracle.precision_recall_fscore_support(true, predicted, labels=every, zero_division=0)
    for mine, their in zip((ours.precision, ours.recall, ours.f1, ours.count), theirs, strict=True):
        assert mine == pytest.approx(their)
    assert scores.macro_f1(matrix) == pytest.approx(
        oracle.f1_score(true, predicted, average="macro", zero_division=0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one class only
        assert scores.matthews(matrix) == pytest.approx(oracle.matthews_corrcoef(true, predicted), abs=1e-12)


@given(label_sets())
@settings(deadline=None, max_examples=100)
def test_any_number_of_classes_for_each(case: tuple[np.ndarray, np.ndarray]) -> None:
    true, predicted = case
    if true.shape[1] == 1:  # scikit-learn takes one column for one class, not for a set
        true, predicted = np.pad(true, ((0, 0), (0, 1))), np.pad(predicted, ((0, 0), (0, 1)))
    for average, ours in (("micro", scores.label_set_micro_f1), ("macro", scores.label_set_macro_f1)):
        theirs = oracle.f1_score(true, predicted, average=average, zero_division=0)
        assert ours(true, predicted) == pytest.approx(theirs), average
    assert scores.exact_match(true, predicted) == pytest.approx(oracle.accuracy_score(true, predicted))
    each = scores.label_set_scores(true, predicted)
    theirs = oracle.precision_recall_fscore_support(true, predicted, average=None, zero_division=0)
    for mine, their in zip((each.precision, each.recall, each.f1, each.count), theirs, strict=True):
        assert mine == pytest.approx(their)


@given(numbers())
@settings(deadline=None, max_examples=150)
def test_correlations(case: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = case
    assert scores.mean_squared_error(x, y) == pytest.approx(oracle.mean_squared_error(x, y))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert scores.pearson(x, y) == 0
        assert scores.spearman(x, y) == 0
    else:
        assert scores.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-9)
        assert scores.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-9)


def test_correlations_of_extreme_numbers() -> None:
    line = np.arange(5.0)
    for scale in (1e-200, 1e200):
        assert scores.pearson(line, line * scale) == pytest.approx(1)
        assert scores.pearson(line, -line * scale) == pytest.approx(-1)
        assert scores.spearman(line, np.exp(line) * scale) == pytest.approx(1)
    assert scores.pearson(np.array([3.0]), np.array([4.0])) == 0


def test_matthews_of_many_examples_does_not_overflow() -> None:
    matrix = np.array([[2**40, 2**38], [2**38, 2**40]])
    assert scores.matthews(matrix) == pytest.approx(0.6)


def test_known_values() -> None:
    """By hand: 3 of 4 positives found, 1 of 4 findings wrong."""
    matrix = np.array([[5, 1], [1, 3]])
    each = scores.class_scores(matrix)
    assert each.precision.tolist() == pytest.approx([5 / 6, 3 / 4])
    assert each.recall.tolist() == pytest.approx([5 / 6, 3 / 4])
    assert scores.accuracy(matrix) == pytest.approx(0.8)
    assert scores.matthews(matrix) == pytest.approx((5 * 3 - 1) / (6 * 4 * 6 * 4) ** 0.5)
    one_class = np.array([[4, 0], [0, 0]])
    assert scores.matthews(one_class) == 0
    assert scores.macro_f1(one_class) == 1  # the class that never occurs does not count
