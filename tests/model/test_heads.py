"""Heads: losses, what carries no label, and parity with transformers."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.model.build import tied_names
from llmtrain.model.heads.examples import SampleHead, SpanHead, TokenHead, sample_means
from llmtrain.model.heads.parts import labelled
from llmtrain.model.heads.vocabulary import LanguageModelHead, MaskedHead, MaskedNextHead
from llmtrain.schema.task import Pool, Target
from tests.helpers import bert
from tests.helpers.models import make_model, random_batch, small_bert, small_config

NUM_SAMPLES = len(bert.LENGTHS)
NEXT = [1, 0, 1]
CLASSES = [2, 0, 3]
NUMBERS = [[0.5], [-1.25], [3.0]]
SEVERAL = [[1.0, 0, 0, 1], [0.0, 0, 0, 0], [0.0, 1, 1, 0]]


def token_labels(rate: float = 0.5, classes: int = bert.VOCAB) -> list[np.ndarray]:
    """Labels of the tokens of each sample, IGNORE where there is none."""
    generator = np.random.default_rng(5)
    return [
        np.where(generator.random(n) < rate, generator.integers(0, classes, n), IGNORE) for n in bert.LENGTHS
    ]


def arranged(labels: list[np.ndarray], sample_labels: list | None = None) -> dict[str, Batch]:
    """The same samples with labels, padded and packed, with every position or with selected ones labelled."""
    batches = {}
    for name, batch, rows in (
        ("padded", bert.padded(), [[0], [1], [2]]),
        ("packed", bert.packed(), [[0, 1, 2]]),
    ):
        full = np.full(batch.ids.shape, IGNORE)
        for row, members in enumerate(rows):
            joined = np.concatenate([labels[member] for member in members])
            full[row, : len(joined)] = joined
        batch.labels = torch.from_numpy(full)
        if sample_labels is not None:
            batch.sample_labels = fill_samples(sample_labels, rows, batch.first.shape[1])
        batches[name] = batch
        chosen = Batch(**vars(batch))
        chosen.selected, chosen.labels = choose(batch.labels)
        batches[f"{name}, selected"] = chosen
    return batches


def fill_samples(labels: list, rows: list[list[int]], width: int) -> torch.Tensor:
    """Labels of samples, (B, S) or (B, S, C)."""
    values = torch.tensor(labels)
    filled = torch.full((len(rows), width, *values.shape[1:]), IGNORE, dtype=values.dtype)
    for row, members in enumerate(rows):
        filled[row, : len(members)] = values[members]
    return filled


def choose(labels: torch.Tensor, spare: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions with labels, and the labels, (B, M) each, filled up with IGNORE at position 0."""
    width = int((labels != IGNORE).sum(dim=1).max()) + spare
    selected, chosen = (
        torch.zeros(len(labels), width, dtype=torch.long),
        torch.full((len(labels), width), IGNORE),
    )
    for row, values in enumerate(labels):
        places = (values != IGNORE).nonzero()[:, 0]
        selected[row, : len(places)], chosen[row, : len(places)] = places, values[places]
    return selected, chosen


def theirs_loss(reference, labels: list[np.ndarray], **more) -> object:
    """transformers on the padded samples with token labels."""
    batch = arranged(labels)["padded"]
    with torch.no_grad():
        return reference(**bert.theirs(batch), labels=batch.labels, **more)


def test_pretraining_head_equals_transformers():
    reference = bert.reference("BertForPreTraining")
    model = bert.copy_of(reference, MaskedNextHead)
    labels = token_labels()
    count = sum((values != IGNORE).sum() for values in labels)
    expected = theirs_loss(reference, labels, next_sentence_label=torch.tensor(NEXT))
    theirs = torch.cat(bert.by_sample(bert.padded(), expected.prediction_logits))
    for name, batch in arranged(labels, NEXT).items():
        with torch.no_grad():
            sums = model.sums(batch)
            logits_BS2 = model.head.predict_next(model.backbone(batch), batch)
        loss = sums["loss"] / count + sums["next_loss"] / NUM_SAMPLES
        torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5, msg=name)
        given = batch.sample_labels != IGNORE
        torch.testing.assert_close(
            logits_BS2[given], expected.seq_relationship_logits, rtol=1e-5, atol=1e-5, msg=name
        )
        best = theirs.argmax(dim=-1)
        assert sums["correct"] == (best.numpy() == np.concatenate(labels)).sum(), name
        right = expected.seq_relationship_logits.argmax(dim=-1) == torch.tensor(NEXT)
        assert sums["next_correct"] == right.sum(), name


def test_masked_head_equals_transformers():
    reference = bert.reference("BertForMaskedLM")
    model = bert.copy_of(reference, MaskedHead)
    labels = token_labels()
    expected = theirs_loss(reference, labels)
    for name, batch in arranged(labels).items():
        with torch.no_grad():
            loss = model.sums(batch)["loss"] / sum((values != IGNORE).sum() for values in labels)
            logits = model.predict(batch)
        torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5, msg=name)
        if batch.selected is None:
            ours = torch.cat(bert.by_sample(batch, logits))
            theirs = torch.cat(bert.by_sample(bert.padded(), expected.logits))
        else:
            ours = logits[batch.labels != IGNORE]
            theirs = expected.logits[arranged(labels)["padded"].labels != IGNORE]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("target", "labels", "problem", "terms"),
    [
        (Target.label, CLASSES, "single_label_classification", 3),
        (Target.labels, SEVERAL, "multi_label_classification", 12),
        (Target.number, NUMBERS, "regression", 3),
    ],
)
def test_sample_head_equals_transformers(target, labels, problem, terms):
    outputs = 1 if target is Target.number else 4
    reference = bert.reference("BertForSequenceClassification", num_labels=outputs, problem_type=problem)
    model = bert.copy_of(reference, partial(SampleHead, num_outputs=outputs, target=target))
    with torch.no_grad():
        expected = reference(**bert.theirs(bert.padded()), labels=torch.tensor(labels))
    for name, batch in arranged(token_labels(), labels).items():
        with torch.no_grad():
            loss = model.sums(batch)["loss"] / terms
            scores = model.predict(batch)
        assert scores.dtype == torch.float32
        given = (batch.sample_labels if target is Target.label else batch.sample_labels[..., 0]) != IGNORE
        torch.testing.assert_close(scores[given], expected.logits, rtol=1e-5, atol=1e-5, msg=name)
        torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5, msg=name)


def test_token_head_equals_transformers():
    reference = bert.reference("BertForTokenClassification", num_labels=5)
    model = bert.copy_of(reference, partial(TokenHead, num_labels=5))
    labels = token_labels(0.7, classes=5)
    expected = theirs_loss(reference, labels)
    for name, batch in arranged(labels).items():
        with torch.no_grad():
            loss = model.sums(batch)["loss"] / sum((values != IGNORE).sum() for values in labels)
        torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5, msg=name)
    batch = bert.packed()
    with torch.no_grad():
        ours = torch.cat(bert.by_sample(batch, model.predict(batch)))
    theirs = torch.cat(bert.by_sample(bert.padded(), expected.logits))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_span_head_equals_transformers():
    reference = bert.reference("BertForQuestionAnswering")
    model = bert.copy_of(reference, SpanHead)
    padded, spans = bert.padded(), torch.tensor([[1, 3], [4, 4], [0, 2]])
    padded.labels = spans
    with torch.no_grad():
        expected = reference(**bert.theirs(padded))
        scores_BT2 = model.predict(padded)
        loss = model.sums(padded)["loss"]
    real = padded.documents == 0
    for side, theirs in enumerate((expected.start_logits, expected.end_logits)):
        torch.testing.assert_close(scores_BT2[..., side][real], theirs[real], rtol=1e-5, atol=1e-5)
        assert (scores_BT2[..., side][~real] == -torch.inf).all()
    total = 0
    for batch, span in zip(bert.alone(), spans, strict=True):  # transformers does not leave padding out
        with torch.no_grad():
            total += (
                2
                * reference(  # and takes the mean of start and end
                    input_ids=batch.ids,
                    token_type_ids=batch.segments,
                    start_positions=span[:1],
                    end_positions=span[1:],
                ).loss
            )
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=1e-5)


def test_a_row_without_a_span_adds_nothing():
    model = make_model(small_bert(), build_head=SpanHead)
    batch = random_batch()
    batch.documents = (torch.arange(16) >= 10).int().expand(2, -1)
    batch.labels = torch.tensor([[2, 5], [IGNORE, IGNORE]])
    one = Batch(batch.ids[:1], batch.labels[:1], documents=batch.documents[:1])
    torch.testing.assert_close(model.sums(batch)["loss"], model.sums(one)["loss"])
    model.sums(batch)["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


HEADS = {
    "language_model": LanguageModelHead,
    "masked": MaskedHead,
    "masked_next": MaskedNextHead,
    "label": partial(SampleHead, num_outputs=3, target=Target.label),
    "labels": partial(SampleHead, num_outputs=3, target=Target.labels),
    "number": partial(SampleHead, num_outputs=1, target=Target.number),
    "token": partial(TokenHead, num_labels=3),
    "span": SpanHead,
}


def unlabelled(name: str) -> Batch:
    """A batch in which nothing carries a label."""
    batch = random_batch()
    batch.labels = torch.full((2, 2 if name == "span" else 16), IGNORE)
    batch.first = torch.zeros(2, 1, dtype=torch.long)
    batch.sample_labels = torch.full((2, 1), IGNORE)
    if name in ("labels", "number"):
        batch.sample_labels = torch.full((2, 1, 3 if name == "labels" else 1), float(IGNORE))
    return batch


@pytest.mark.parametrize("name", HEADS)
def test_no_label_gives_zero_and_no_gradient(name):
    model = make_model(small_bert(dropout=0.1), build_head=HEADS[name])
    sums = model.sums(unlabelled(name))
    assert all(value == 0 and value.dtype == torch.float32 for value in sums.values())
    sum(value for value in sums.values() if value.requires_grad).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.eq(0).all(), parameter_name


@pytest.mark.parametrize("name", HEADS)
def test_bf16_sums_are_fp32(name):
    model = make_model(small_bert(), build_head=HEADS[name])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(value.dtype == torch.float32 for value in model.sums(unlabelled(name)).values())


@pytest.mark.parametrize("name", HEADS)
def test_operations_are_six_for_each_weight_that_a_label_meets(name):
    head = make_model(small_bert(vocab_size=64), build_head=HEADS[name]).head
    vocabulary = 6 * 64 * 32
    expected = {
        "language_model": vocabulary,
        "masked": vocabulary + 6 * 32 * 32,
        "masked_next": vocabulary + 6 * 32 * 32,
        "label": 6 * (32 * 32 + 3 * 32),
        "labels": 6 * (32 * 32 + 3 * 32),
        "number": 6 * (32 * 32 + 32),
        "token": 6 * 3 * 32,
        "span": 6 * 2 * 32,
    }
    assert head.flops_per_label() == expected[name]


def test_sample_losses_are_weighted_by_class():
    weights = [0.5, 2.0, 1.0, 0.0]
    head = partial(SampleHead, num_outputs=4, weights=weights)
    model = make_model(bert.config(), build_head=head).eval()
    batch = arranged(token_labels(), CLASSES)["packed"]
    scores = model.predict(batch)[0, :NUM_SAMPLES]
    losses = F.cross_entropy(scores, torch.tensor(CLASSES), reduction="none")
    expected = (losses * torch.tensor(weights)[CLASSES]).sum()
    torch.testing.assert_close(model.sums(batch)["loss"], expected)


@pytest.mark.parametrize("weights", [[], [0.5, 2.0, 1.0, 0.0]])
def test_targets_of_samples_are_smoothed(weights):
    """The loss with targets of 1 - s + s / C and s / C, written out, and as the mean that torch makes."""
    head = partial(SampleHead, num_outputs=4, weights=weights, label_smoothing=0.2)
    model = make_model(bert.config(), build_head=head).eval()
    batch = arranged(token_labels(), CLASSES)["packed"]
    scores, classes = model.predict(batch)[0, :NUM_SAMPLES], torch.tensor(CLASSES)
    smooth = F.one_hot(classes, 4) * 0.8 + 0.2 / 4
    each = torch.tensor(weights or [1.0] * 4)
    loss = model.sums(batch)["loss"]
    torch.testing.assert_close(loss, F.cross_entropy(scores, smooth, each, reduction="sum"))
    mean = F.cross_entropy(scores, classes, each, label_smoothing=0.2)
    torch.testing.assert_close(loss / each[classes].sum(), mean)
    other = make_model(bert.config(), build_head=partial(SampleHead, num_outputs=4, weights=weights)).eval()
    assert not torch.allclose(loss, other.sums(batch)["loss"])


def test_several_labels_are_weighted_by_class():
    weights = [0.5, 2.0, 1.0, 0.0]
    head = partial(SampleHead, num_outputs=4, weights=weights, target=Target.labels)
    model = make_model(bert.config(), build_head=head).eval()
    batch = arranged(token_labels(), SEVERAL)["packed"]
    scores = model.predict(batch)[0, :NUM_SAMPLES]
    losses = F.binary_cross_entropy_with_logits(scores, torch.tensor(SEVERAL), reduction="none")
    torch.testing.assert_close(model.sums(batch)["loss"], (losses * torch.tensor(weights)).sum())


def test_token_losses_are_weighted_by_class():
    model = make_model(small_bert(), build_head=partial(TokenHead, num_labels=3, weights=[1.0, 0.0, 3.0]))
    batch = random_batch()
    batch.labels %= 3
    scores = model.eval().predict(batch).flatten(0, 1)
    losses = F.cross_entropy(scores, batch.labels.flatten(), reduction="none")
    expected = (losses * torch.tensor([1.0, 0.0, 3.0])[batch.labels.flatten()]).sum()
    torch.testing.assert_close(model.sums(batch)["loss"], expected)


def test_mean_pool_is_the_mean_over_each_sample():
    hidden = torch.randn(1, 26, 5)
    batch = bert.packed()
    means = sample_means(hidden, batch.documents, num_samples=4)[0]
    start = 0
    for number, length in enumerate(bert.LENGTHS):
        torch.testing.assert_close(means[number], hidden[0, start : start + length].mean(dim=0))
        start += length
    torch.testing.assert_close(sample_means(hidden, None, 1)[0, 0], hidden[0].mean(dim=0))
    none = torch.zeros(1, 4, dtype=torch.int32)
    assert sample_means(torch.randn(1, 4, 5), none, 3)[0, 1:].eq(0).all()


@pytest.mark.parametrize("pool", [Pool.first, Pool.last, Pool.mean, Pool.auto])
def test_a_sample_is_read_the_same_packed_and_padded(pool):
    model = make_model(bert.config(), build_head=partial(SampleHead, num_outputs=4, pool=pool)).eval()
    assert (model.head.pooler is not None) == (pool in (Pool.first, Pool.auto))
    batches = arranged(token_labels(), CLASSES)
    packed = model.predict(batches["packed"])[0, :NUM_SAMPLES]
    torch.testing.assert_close(model.predict(batches["padded"])[:, 0], packed, rtol=1e-5, atol=1e-6)


def test_heads_sit_on_decoders_too():
    """There the last token has seen the whole sample, and no pooler belongs to the backbone."""
    for build_head in (partial(SampleHead, num_outputs=2), partial(TokenHead, num_labels=2)):
        model = make_model(small_config(dropout=0.1), build_head=build_head)
        batch = random_batch()
        batch.labels %= 2
        batch.first, batch.sample_labels = torch.tensor([[15], [9]]), torch.tensor([[1], [0]])
        model.sums(batch)["loss"].backward()
        assert {name for name, _ in model.head.named_parameters()} == {"classifier.weight", "classifier.bias"}
    assert SampleHead(model.backbone, 2).pool is Pool.last


def test_names_that_other_parts_rely_upon():
    model = make_model(small_bert(), build_head=MaskedNextHead)
    names = {name.removeprefix("head.") for name, _ in model.named_parameters() if name.startswith("head.")}
    masked = ("dense.weight", "dense.bias", "norm.weight", "norm.bias", "projection.bias")
    linear = ("pooler.dense", "next")
    assert names == {
        *(f"masked.{name}" for name in masked),
        *(f"{layer}.{kind}" for layer in linear for kind in ("weight", "bias")),
    }
    assert tied_names(model) == [("backbone.embedding.weight", "head.masked.projection.weight")]
    sample = make_model(small_bert(), build_head=partial(SampleHead, num_outputs=2))
    assert "head.pooler.dense.weight" in dict(sample.named_parameters())


@pytest.mark.parametrize("build", [lambda b: SampleHead(b, 3), lambda b: TokenHead(b, 3), SpanHead])
def test_scores_are_finer_than_bf16_under_autocast(build):
    model = make_model(small_bert(), build_head=build).eval()
    batch = random_batch()
    batch.first = torch.zeros(len(batch.ids), 1, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        scores = model.predict(batch)
    assert scores.dtype == torch.float32
    assert not scores.equal(scores.bfloat16().float())


def test_labelled_positions_make_a_round_number():
    """A few that carry no label come along: the losses are those of the labels alone, and sizes recur."""
    generator = torch.Generator().manual_seed(0)
    sizes = set()
    for count in range(1150, 1210, 7):
        labels = torch.full((4096,), IGNORE)
        labels[torch.randperm(4096, generator=generator)[:count]] = 5
        batch = Batch(torch.zeros(8, 512, dtype=torch.int64), labels.view(8, 512))
        hidden = torch.arange(4096.0).view(8, 512, 1)
        hidden_ND, labels_N = labelled(hidden, batch)
        assert len(hidden_ND) == len(labels_N)
        assert (labels_N == 5).sum() == count
        assert torch.equal(labels[hidden_ND[:, 0].long()], labels_N)
        assert hidden_ND.unique().numel() == len(hidden_ND)
        sizes.add(len(labels_N))
    assert sizes == {1152, 1216}
    few = Batch(torch.zeros(1, 9, dtype=torch.int64), torch.tensor([[3, IGNORE, 4, *[IGNORE] * 6]]))
    assert len(labelled(torch.zeros(1, 9, 1), few)[1]) == 2
