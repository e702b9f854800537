"""Scores of classification and regression, on plain NumPy arrays.

Everything that is told by a confusion matrix takes one. A score that would be 0 / 0 (precision of a class
that was never predicted, the correlation of something constant) is 0. There is at least one example.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassScores:
    """Scores of each class by itself, all (C,) float64 but the count.

    Attributes:
        precision: share of the predictions of a class that are right.
        recall: share of a class that is predicted as such.
        f1: harmonic mean of the two.
        count: (C,) int64, how often a class is true.
        occurs: (C,) bool, whether a class is true or predicted at all.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    count: np.ndarray
    occurs: np.ndarray


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotients in float64, 0 where both are 0."""
    result = np.zeros(np.shape(numerator))
    np.divide(numerator, denominator, out=result, where=np.asarray(denominator) != 0)
    return result


def confusion_matrix(true: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """How often each true class (row) is predicted as each class (column), (C, C) int64.

    Args:
        true: (N,) numbers of classes.
        predicted: (N,) likewise.
        num_classes: C.
    """
    cells = np.asarray(true) * num_classes + np.asarray(predicted)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy(matrix_CC: np.ndarray) -> float:
    """Share of the examples that are predicted right."""
    return float(np.trace(matrix_CC) / matrix_CC.sum())


def class_scores(matrix_CC: np.ndarray) -> ClassScores:
    """Scores of each class, from a confusion matrix."""
    return _scores_of_counts(np.diagonal(matrix_CC), matrix_CC.sum(axis=0), matrix_CC.sum(axis=1))


def label_set_scores(true_NC: np.ndarray, predicted_NC: np.ndarray) -> ClassScores:
    """Scores of each class where an example has any number of them.

    Args:
        true_NC: (N, C) bool.
        predicted_NC: (N, C) bool.
    """
    return _scores_of_counts(
        (true_NC & predicted_NC).sum(axis=0), predicted_NC.sum(axis=0), true_NC.sum(axis=0)
    )


def _scores_of_counts(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> ClassScores:
    """From how often each class is predicted rightly, predicted, and true."""
    return ClassScores(
        precision=ratio(hits, predicted),
        recall=ratio(hits, true),
        f1=ratio(2 * hits, predicted + true),
        count=true,
        occurs=(predicted + true) > 0,
    )


def macro_f1(matrix_CC: np.ndarray) -> float:
    """Mean F1 of the classes that are true or predicted at all."""
    scores = class_scores(matrix_CC)
    return float(scores.f1[scores.occurs].mean())


def label_set_macro_f1(true_NC: np.ndarray, predicted_NC: np.ndarray) -> float:
    """Mean F1 of all classes, where an example has any number of them."""
    return float(label_set_scores(true_NC, predicted_NC).f1.mean())


def label_set_micro_f1(true_NC: np.ndarray, predicted_NC: np.ndarray) -> float:
    """F1 over all decisions about an example and a class."""
    hits = (true_NC & predicted_NC).sum()
    return float(ratio(2 * hits, predicted_NC.sum() + true_NC.sum()))


def exact_match(true_NC: np.ndarray, predicted_NC: np.ndarray) -> float:
    """Share of the examples whose classes are all right, and none besides."""
    return float((true_NC == predicted_NC).all(axis=1).mean())


def matthews(matrix_CC: np.ndarray) -> float:
    """Matthews' correlation coefficient, for any number of classes (Gorodkin 2004); between -1 and 1.

    0 where all examples have one class, or are predicted to have one.
    """
    matrix = matrix_CC.astype(np.float64)
    true, predicted, total = matrix.sum(axis=1), matrix.sum(axis=0), matrix.sum()
    covariance = np.trace(matrix) * total - true @ predicted
    variances = (total**2 - true @ true) * (total**2 - predicted @ predicted)
    return float(covariance / np.sqrt(variances)) if variances > 0 else 0.0


def pearson(true: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson's correlation of two (N,) arrays; 0 where one of them is constant."""
    x, y = _unit(true), _unit(predicted)
    return float(np.clip(x @ y, -1.0, 1.0))


def spearman(true: np.ndarray, predicted: np.ndarray) -> float:
    """Spearman's correlation of two (N,) arrays: Pearson's of their ranks, equal values sharing their mean
    rank; 0 where one of them is constant."""
    return pearson(_ranks(true), _ranks(predicted))


def mean_squared_error(true: np.ndarray, predicted: np.ndarray) -> float:
    """Mean of the squared differences of two (N,) arrays."""
    return float(np.square(np.asarray(true, np.float64) - np.asarray(predicted, np.float64)).mean())


def _unit(values: np.ndarray) -> np.ndarray:
    """Deviations from the mean with norm 1, or 0 for constant values."""
    values = np.asarray(values, np.float64)
    if (values == values[0]).all():
        return np.zeros_like(values)
    centred = values - values.mean()
    centred /= np.abs(centred).max()  # so that squares neither vanish nor overflow
    return centred / np.linalg.norm(centred)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value from 1, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
