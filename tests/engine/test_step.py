"""One training step: accumulation, skipping, dropout; and exact evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.loader import evaluation_batches
from llmtrain.data.rows import Row, causal_batch
from llmtrain.engine.evaluate import evaluate
from llmtrain.engine.step import Step
from llmtrain.model.assembled import Assembled
from llmtrain.objective.causal import Causal
from llmtrain.optim.optimizer import build_optimizer
from llmtrain.parallel.layout import Replicated
from llmtrain.parallel.mesh import Mesh
from llmtrain.schema.optim import AdamWConfig
from llmtrain.schema.parallel import Degrees
from tests.helpers.models import make_model, random_batch, small_config

CPU = torch.device("cpu")


def make_step(precision: str = "fp32", **changes: object) -> Step:
    model = make_model(small_config(**changes))
    optimizer = build_optimizer(AdamWConfig(lr=1e-2), model)
    return Step(alone(model, precision), optimizer, Causal(False), clip_norm=1.0, seed=0)


def alone(model: Assembled, precision: str = "fp32") -> Replicated:
    return Replicated(model, Mesh.here(Degrees(), CPU), precision)


def uneven_batch() -> Batch:
    """Rows with very different numbers of labels."""
    batch = random_batch(rows=4)
    batch.labels[0] = IGNORE
    batch.labels[1, 3:] = IGNORE
    return batch


def split(batch: Batch, rows: int) -> list[Batch]:
    return [
        Batch(ids, labels)
        for ids, labels in zip(batch.ids.split(rows), batch.labels.split(rows), strict=True)
    ]


@pytest.mark.parametrize("rows", [1, 2])
def test_accumulation_is_a_detail_with_uneven_labels(rows):
    batch = uneven_batch()
    counts = {"labels": float((batch.labels != IGNORE).sum())}
    whole, parts = make_step(), make_step()
    expected, actual = whole([batch], counts, 0), parts(split(batch, rows), counts, 0)
    torch.testing.assert_close(actual.stats["loss"], expected.stats["loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(actual.norm, expected.norm, rtol=1e-5, atol=0)
    untrained = make_model(small_config())
    logits = untrained.predict(batch)
    mean = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
    torch.testing.assert_close(expected.stats["loss"], mean, rtol=1e-6, atol=0)


def test_a_step_that_is_not_finite_changes_nothing_and_is_named():
    step = make_step()
    model = step.layout.model
    with torch.no_grad():
        model.backbone.blocks["1"].mlp.up.weight[0, 0] = float("nan")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = step([random_batch()], {"labels": 32.0}, 0)
    assert result.finite.tolist() == [False, False]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    assert "backbone.blocks.1.mlp.up.weight" in step.non_finite_gradients()
    step.clear_gradients()
    with torch.no_grad():
        model.backbone.blocks["1"].mlp.up.weight[0, 0] = 0.0
    assert step([random_batch()], {"labels": 32.0}, 1).finite.all()
    assert not torch.equal(before["backbone.embedding.weight"], model.backbone.embedding.weight)


def test_optimizers_without_a_flag_for_bad_steps_skip_them_too():
    step = make_step()
    step.optimizer = torch.optim.SGD(step.layout.model.parameters(), lr=0.1, momentum=0.9)
    model = step.layout.model
    model.backbone.embedding.weight.data[3, 0] = float("inf")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not step([random_batch()], {"labels": 32.0}, 0).finite.all()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    step.clear_gradients()
    model.backbone.embedding.weight.data[3, 0] = 0.0
    assert step([random_batch()], {"labels": 32.0}, 1).finite.all()
    assert not torch.equal(before["backbone.norm.weight"], model.backbone.norm.weight)


def test_dropout_is_a_function_of_seed_step_and_microbatch():
    def losses(number: int, step: Step) -> float:
        return step([random_batch(), random_batch()], {"labels": 64.0}, number).stats["loss"].item()

    first = losses(7, make_step(dropout=0.5))
    torch.rand(1000)  # whatever ran before does not matter
    assert losses(7, make_step(dropout=0.5)) == first
    assert losses(8, make_step(dropout=0.5)) != first


def test_settling_changes_nothing():
    step = make_step()
    before = {name: value.clone() for name, value in step.layout.model.state_dict().items()}
    batch = random_batch()
    step.settle(Batch(batch.ids, torch.full_like(batch.labels, IGNORE)))
    assert all(torch.equal(before[n], v) for n, v in step.layout.model.state_dict().items())
    assert all(parameter.grad is None for parameter in step.layout.parameters.values())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_stays_close(precision):
    exact, low = make_step(), make_step(precision)
    counts = {"labels": 32.0}
    expected, actual = exact([random_batch()], counts, 0), low([random_batch()], counts, 0)
    assert actual.stats["loss"].item() == pytest.approx(expected.stats["loss"].item(), rel=5e-3)
    assert actual.norm.item() == pytest.approx(expected.norm.item(), rel=5e-2)
    assert all(parameter.dtype == torch.float32 for parameter in low.layout.parameters.values())


class FixedRows:
    """Rows for evaluation, without a store."""

    sequence_length = 8

    def __init__(self, num: int) -> None:
        self.rows_per_epoch = num
        generator = np.random.default_rng(0)
        self.ids = generator.integers(0, 50, (num, 9))

    def read(self, row: int) -> Row:
        last = row == self.rows_per_epoch - 1
        return Row(self.ids[row], np.zeros(9, np.int32), length=5 if last else 8, has_next=not last)

    def collate(self, rows: list[Row]) -> Batch:
        return causal_batch(rows, isolate_documents=False)

    def filler(self) -> Row:
        return Row(np.zeros(9, np.int64), np.zeros(9, np.int32), length=0, has_next=False)

    def limit(self, row: Row, tokens: int) -> Row:
        return row


@pytest.mark.parametrize("micro", [1, 2, 3, 7])
def test_evaluation_is_exact_for_any_batch_size(micro):
    model, rows, objective = make_model(small_config()), FixedRows(7), Causal(False)
    batches = evaluation_batches(rows, micro, 0, 1)
    result = evaluate(alone(model), objective, batches)
    assert result is not None
    stats = result.stats
    assert result.counts == {"labels": 6 * 8 + 4}
    total = 0.0
    with torch.no_grad():
        for index in range(7):
            length = 8 if index < 6 else 5
            ids = torch.from_numpy(rows.ids[index])
            logits = model.predict(Batch(ids[None, :length]))[0]
            labels = ids[1 : length + 1] if index < 6 else ids[1:5]
            total += torch.nn.functional.cross_entropy(logits[: len(labels)], labels, reduction="sum").item()
    assert stats["loss"] == pytest.approx(total / 52, rel=1e-6)


def test_evaluation_stops_when_asked_to():
    model, rows, objective = make_model(small_config()), FixedRows(7), Causal(False)
    batches = evaluation_batches(rows, 1, 0, 1)
    assert evaluate(alone(model), objective, batches, stopped=lambda: True) is None
