"""Classification of texts and pairs of texts: one label, a set of labels, or a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.fill import Poll
from llmtrain.data.samples import Frame, PackedRow, Sample, pack_batch
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.metrics import scores
from llmtrain.model.assembled import Backbone
from llmtrain.model.heads.examples import SampleHead
from llmtrain.schema.task import ClassificationTask, Pool, Target
from llmtrain.task.base import Examples, Prediction, ScoreTable, in_blocks, nothing_to_ask, plain
from llmtrain.task.files import Faults, Row, format_of, holds_plain_text, read_rows, read_texts
from llmtrain.task.labels import Example, Standard, balanced, check_known, example_of, in_order
from llmtrain.utils.errors import ConfigError, DataError

LARGEST_MATRIX = 20
"""Labels up to which there is a confusion matrix."""

TOO_MANY_LABELS = 100
"""From so many labels on, at least every other example with one of its own, the column is not of labels."""


class ClassificationKind:
    """Reads examples from columns of files, and settles labels and their weights."""

    def read(
        self, config: ClassificationTask, paths: Sequence[Path], labelled: bool, poll: Poll = nothing_to_ask
    ) -> Examples:
        """Examples of TSV, CSV and JSON lines files.

        Without labels the column of labels need not be there, .txt files and files without an ending have
        one text a line (a pair: two, parted by a tab), and empty texts are taken too, so that every line
        has its prediction.

        Raises:
            DataError: see `TaskKind`; also where labels are known and an example has another one.
        """
        faults = Faults(config.on_error, poll)
        known = set(config.labels)
        examples: list[Example] = []
        for path in paths:
            for row in _rows(path, config, faults, labelled):
                with faults.caught():
                    example = example_of(row, config, labelled)
                    if known:
                        check_known(example, config.labels, known)
                    examples.append(example)
        if not examples:
            raise faults.nothing_left("example", paths)
        return Examples(examples, faults.noted)

    def resolve(self, config: ClassificationTask, examples: Examples) -> ClassificationTask:
        """The config with labels in order (by number where all are numbers) and their weights; of numbers
        to learn, with mean and scale.

        Raises:
            DataError: an example has an unknown label, or there is nothing to tell apart.
            ConfigError: there are not as many weights as labels.
        """
        if config.target is Target.number:
            found = Standard.measure([example.label for example in examples.items])
            mean = found.mean if config.number_mean is None else config.number_mean
            scale = found.scale if config.number_scale is None else config.number_scale
            return replace(config, number_mean=mean, number_scale=scale)
        counts = Counter(label for example in examples.items for label in example.labels)
        labels = config.labels or in_order(counts)
        known = set(labels)
        for example in examples.items:
            check_known(example, labels, known)
        column = f"task.label_column={config.label_column}"
        if len(labels) < (2 if config.target is Target.label else 1):
            what = f"there is only one label: {labels[0]!r}" if labels else "no example has a label"
            raise DataError(what, column, "name the right column, or more files in task.paths")
        if not config.labels and len(labels) > max(TOO_MANY_LABELS, len(examples.items) // 2):
            what = f"{len(labels)} different labels in {len(examples.items)} examples, such as {labels[0]!r}"
            raise DataError(what, column, "name the right column, or set task.target=number or labels")
        weights = config.class_weights
        if weights and len(weights) != len(labels):
            what = f"{len(weights)} weights for {len(labels)} labels"
            fix = f"give one for each of: {', '.join(labels)}"
            raise ConfigError(what, f"task.class_weights={weights}", fix)
        if weights and not any(weights):
            raise ConfigError("all weights are 0", f"task.class_weights={weights}", "give some label weight")
        if config.balance:
            weights = balanced([counts[label] for label in labels])
        return replace(config, labels=labels, class_weights=weights, balance=False)

    def build(self, config: ClassificationTask, causal: bool) -> Classification:
        """The task for a config with labels.

        Raises:
            ConfigError: a decoder is to be read at its first token, which has seen nothing else.
        """
        pool = config.pool
        if pool is Pool.auto:
            pool = Pool.last if causal else Pool.first
        if causal and pool is Pool.first:
            what = "the first token of a model that looks back only knows nothing of the text"
            raise ConfigError(what, "task.pool=first", "set task.pool=last or mean")
        return Classification(config, pool)


def _rows(path: Path, config: ClassificationTask, faults: Faults, labelled: bool) -> Iterator[Row]:
    """Rows of a file with the columns that are needed."""
    columns = {"text_column": config.text_column}
    if config.pair_column is not None:
        columns["pair_column"] = config.pair_column
    if not labelled and holds_plain_text(path, config.format):
        return read_texts(path, list(columns), faults)
    if labelled:
        columns["label_column"] = config.label_column
    layout = format_of(path, config.format)
    return read_rows(path, columns, faults, layout=layout, header=config.header, quoting=config.quoting)


def cut_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """Lengths of two texts that together fit: the longer one is cut, token by token (Devlin et al. 2019).

    Args:
        first: tokens of the first text.
        second: tokens of the second one, which is cut where both are as long.
        room: tokens for both.
    """
    if first + second <= room:
        return first, second
    half = (room + 1) // 2
    first = min(first, max(half, room - second))
    return first, room - first


class Classification:
    """Texts and pairs of texts, one sample each.

    Args:
        config: with labels, or with mean and scale (else 0 and 1) of the numbers.
        pool: which hidden state stands for an example.

    Attributes:
        config: the same.
    """

    labelled_share = 0.0
    """One label for a whole example: its operations are nothing beside those of the backbone."""

    def __init__(self, config: ClassificationTask, pool: Pool) -> None:
        assert config.labels or config.target is Target.number
        self.config = config
        self.pool = pool
        self._index = {label: i for i, label in enumerate(config.labels)}
        scale = 1.0 if config.number_scale is None else config.number_scale
        self._standard = Standard(config.number_mean or 0.0, scale)
        weighted = config.class_weights and config.target is Target.label
        self._denominator = "weight" if weighted else "samples"

    @property
    def num_outputs(self) -> int:
        """C: labels, or 1 for a number."""
        return len(self._index) or 1

    def build_head(self, backbone: Backbone) -> SampleHead:
        """A linear layer on what stands for the example."""
        config = self.config
        return SampleHead(
            backbone,
            self.num_outputs,
            self.pool,
            config.target,
            config.class_weights,
            config.label_smoothing,
        )

    def encode(
        self, examples: Sequence[Example], tokenizer: Tokenizer, length: int, poll: Poll = nothing_to_ask
    ) -> list[Sample]:
        """One framed sample for each example; what is too long is cut at its end, the longer of a pair first.

        Raises:
            ConfigError: there is no room for a token of each text.
            DataError: a label is not known.
        """
        frame = Frame(tokenizer)
        texts = in_blocks(tokenizer.encode_batch, [example.text for example in examples], poll)
        others = [example.pair for example in examples if example.pair is not None]
        pairs = iter(in_blocks(tokenizer.encode_batch, others, poll))
        samples = []
        for number, (example, ids) in enumerate(zip(examples, texts, strict=True)):
            poll()
            second = None if example.pair is None else next(pairs)
            room = length - frame.overhead(second is not None)
            if room < (1 if second is None else 2):
                raise ConfigError(
                    f"rows of {length} tokens have no room for a text between special tokens",
                    f"train.sequence_length={length}",
                    "set it to 16 or more",
                )
            whole = len(ids) + (0 if second is None else len(second))
            if second is None:
                ids = ids[:room]
            else:
                kept = cut_pair(len(ids), len(second), room)
                ids, second = ids[: kept[0]], second[: kept[1]]
            framed = frame.join(ids, second)
            samples.append(Sample(*framed, number, self._target(example), cut=max(0, whole - room)))
        return samples

    def _target(self, example: Example) -> int | float | list[float] | None:
        """What the head is to say of an example."""
        if example.label is None:
            return None
        if isinstance(example.label, float):
            return self._standard.of(example.label)
        check_known(example, self.config.labels, self._index)
        if isinstance(example.label, str):
            return self._index[example.label]
        return [float(label in example.label) for label in self._index]

    def batch(self, rows: Sequence[PackedRow], length: int, pad_id: int) -> Batch:
        """Rows of one sample each, or none, with `first` and `sample_labels`, (B, 1) or (B, 1, C)."""
        batch = pack_batch(rows, length, pad_id, last=self.pool is Pool.last)
        if self.config.target is Target.label:
            labels = torch.full((len(rows), 1), IGNORE, dtype=torch.int64)
        else:
            labels = torch.full((len(rows), 1, self.num_outputs), float(IGNORE))
        for i, row in enumerate(rows):
            for sample in row.samples:
                if sample.label is not None:
                    labels[i, 0] = torch.as_tensor(sample.label, dtype=labels.dtype)
        batch.sample_labels = labels
        return batch

    def count(self, batch: Batch) -> dict[str, float]:
        """Labelled examples; where one of several weighted labels is predicted, the sum of their weights."""
        assert batch.sample_labels is not None
        labels = batch.sample_labels
        if self._denominator == "weight":
            weights = torch.tensor(self.config.class_weights)
            return {"weight": float(weights[labels[labels != IGNORE]].sum())}
        return {"samples": int((labels.flatten(1)[:, 0] != IGNORE).sum())}

    def loss(self, sums: dict[str, Tensor], counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over all examples, weighted where there are weights; see `Causal.loss`."""
        loss = sums["loss"] / counts[self._denominator]
        return loss, {"loss": loss.detach()}

    def output(self, scores: Tensor, batch: Batch) -> Tensor:
        """Scores of each class, (B, C)."""
        return scores[:, 0].float()

    def decode(
        self, outputs: np.ndarray, samples: Sequence[Sample], examples: Sequence[Example]
    ) -> list[Prediction]:
        """What the model says about each example.

        Returns:
            the texts; `expected` where it is known; `cut_tokens`, how many had no room, if any; and `label`,
            its `probability` and the `probabilities` of all labels; or `labels` (those more likely than not)
            and `probabilities`; or `number`.
        """
        predict: Callable[[np.ndarray], Prediction] = {
            Target.label: self._decode_label,
            Target.labels: self._decode_labels,
            Target.number: lambda output: {"number": self._standard.back(output[0])},
        }[self.config.target]
        predictions = []
        for example, sample, output in zip(examples, samples, outputs.astype(np.float64), strict=True):
            prediction: Prediction = {"text": example.text}
            if example.pair is not None:
                prediction["pair"] = example.pair
            if example.label is not None:
                prediction["expected"] = example.label
            if sample.cut:
                prediction["cut_tokens"] = sample.cut
            predictions.append(prediction | predict(output))
        return predictions

    def _decode_label(self, logits_C: np.ndarray) -> Prediction:
        odds_C = np.exp(logits_C - logits_C.max())
        probabilities = [plain(p) for p in odds_C / odds_C.sum()]
        best = int(logits_C.argmax())
        return {
            "label": self.config.labels[best],
            "probability": probabilities[best],
            "probabilities": dict(zip(self.config.labels, probabilities, strict=True)),
        }

    def _decode_labels(self, logits_C: np.ndarray) -> Prediction:
        odds_C = np.exp(-np.abs(logits_C))  # never overflows
        probabilities_C = np.where(logits_C > 0, 1, odds_C) / (1 + odds_C)
        named = list(zip(self.config.labels, map(plain, probabilities_C), strict=True))
        chosen = [label for label, logit in zip(self.config.labels, logits_C, strict=True) if logit > 0]
        return {"labels": chosen, "probabilities": dict(named)}

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, float]:
        """The scores of GLUE and their like.

        label: accuracy, f1 (of the second label where there are two, else macro_f1), macro_f1, matthews,
        mean_accuracy_f1. labels: micro_f1, macro_f1, exact_match. number: pearson, spearman,
        mean_correlation, mean_squared_error. A correlation with something constant is 0.
        """
        if self.config.target is Target.number:
            true, predicted = self._numbers(predictions, examples)
            pearson, spearman = scores.pearson(true, predicted), scores.spearman(true, predicted)
            return {
                "pearson": pearson,
                "spearman": spearman,
                "mean_correlation": (pearson + spearman) / 2,
                "mean_squared_error": scores.mean_squared_error(true, predicted),
            }
        if self.config.target is Target.labels:
            sets = self._label_sets(predictions, examples)
            return {
                "micro_f1": scores.label_set_micro_f1(*sets),
                "macro_f1": scores.label_set_macro_f1(*sets),
                "exact_match": scores.exact_match(*sets),
            }
        matrix = self._matrix(predictions, examples)
        accuracy, macro_f1 = scores.accuracy(matrix), scores.macro_f1(matrix)
        f1 = float(scores.class_scores(matrix).f1[1]) if len(matrix) == 2 else macro_f1
        return {
            "accuracy": accuracy,
            "f1": f1,
            "macro_f1": macro_f1,
            "matthews": scores.matthews(matrix),
            "mean_accuracy_f1": (accuracy + f1) / 2,
        }

    def tables(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> list[ScoreTable]:
        """The confusion matrix, where there are not too many labels, and the scores of each label."""
        if self.config.target is Target.number:
            return []
        names, tables = self.config.labels, []
        if self.config.target is Target.labels:
            each = scores.label_set_scores(*self._label_sets(predictions, examples))
        else:
            matrix = self._matrix(predictions, examples)
            each = scores.class_scores(matrix)
            if len(names) <= LARGEST_MATRIX:
                lines = [[name, *map(str, row)] for name, row in zip(names, matrix, strict=True)]
                title = "Confusion matrix: true labels in rows, predicted ones in columns"
                tables.append(ScoreTable(title, ["", *names], lines))
        columns = np.stack([each.precision, each.recall, each.f1], axis=1)
        rows = [
            [name, *(f"{value:.3f}" for value in values), str(count)]
            for name, values, count in zip(names, columns, each.count, strict=True)
        ]
        return [*tables, ScoreTable("Each label", ["label", "precision", "recall", "f1", "count"], rows)]

    def _matrix(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> np.ndarray:
        """Confusion matrix, (C, C)."""
        true = np.array([self._index[example.label] for example in examples])  # type: ignore[index]
        predicted = np.array([self._index[prediction["label"]] for prediction in predictions])
        return scores.confusion_matrix(true, predicted, len(self._index))

    def _label_sets(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which labels are true and which are predicted, (N, C) bool each."""
        true = [[label in example.labels for label in self._index] for example in examples]
        predicted = [[label in prediction["labels"] for label in self._index] for prediction in predictions]
        return np.array(true), np.array(predicted)

    @staticmethod
    def _numbers(
        predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> tuple[np.ndarray, np.ndarray]:
        """True and predicted numbers, (N,) each."""
        true = np.array([example.label for example in examples], np.float64)
        return true, np.array([prediction["number"] for prediction in predictions], np.float64)
