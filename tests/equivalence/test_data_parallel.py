"""The number of processes and the accumulation are details: same batches, same curve."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.command import curve, succeed, validation_curve

LOSS_TOLERANCE = 1e-6
NORM_TOLERANCE = 1e-5

SETTINGS = [
    "model=gpt/debug",
    "model.tie_embeddings=true",
    "data=text",
    "data.documents=paragraph",
    "data.isolate_documents=true",  # labels are uneven: none at the borders of documents
    "data.validation_fraction=0.1",
    "tokenizer=bytes",
    "train.steps=20",
    "train.batch_size=8",
    "train.sequence_length=48",
    "precision=fp32",
    "compile=never",
    "eval.every=10",
    "log.every=1",
    "launch.threads=1",
]


def train(cwd: Path, text: Path, name: str, *more: str) -> Path:
    succeed("pretrain", *SETTINGS, f"data.paths=[{text}]", f"run.dir={cwd / name}", *more, cwd=cwd)
    return cwd / name


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, sentences: Path) -> Path:
    return train(tmp_path_factory.mktemp("single"), sentences, "single")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param("two processes", ["launch.num_processes=2"], marks=pytest.mark.equivalence),
        pytest.param("four processes", ["launch.num_processes=4"], marks=pytest.mark.equivalence),
        ("accumulation of 4", ["train.micro_batch_size=2"]),
        ("two processes and accumulation of 2", ["launch.num_processes=2", "train.micro_batch_size=2"]),
    ],
)
def test_same_curve_as_one_process(name, settings, single, tmp_path, sentences):
    run = train(tmp_path, sentences, "run", *settings)
    expected, actual = curve(single), curve(run)
    assert [step for step, *_ in actual] == list(range(1, 21))
    for (_, loss, norm), (_, other_loss, other_norm) in zip(expected, actual, strict=True):
        assert other_loss == pytest.approx(loss, rel=LOSS_TOLERANCE)
        assert other_norm == pytest.approx(norm, rel=NORM_TOLERANCE)
    for (step, loss), (other_step, other_loss) in zip(
        validation_curve(single), validation_curve(run), strict=True
    ):
        assert step == other_step
        assert other_loss == pytest.approx(loss, rel=LOSS_TOLERANCE)


def test_the_curve_goes_down(single):
    losses = [loss for _, loss, _ in curve(single)]
    assert losses[-1] < losses[0] - 0.5


ENCODER = [
    "model=bert/debug",
    "model.dropout=0.0",
    "objective=mlm_nsp",
    "data=text",
    "data.documents=paragraph",
    "data.validation_fraction=0.1",
    "tokenizer=wordpiece",
    "tokenizer.vocab_size=120",
    "train.steps=20",
    "train.batch_size=8",
    "train.sequence_length=64",
    "precision=fp32",
    "compile=never",
    "eval.every=10",
    "log.every=1",
    "launch.threads=1",
]
PARTS = ("loss", "gradient_norm", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy")


@pytest.mark.slow
def test_masked_tokens_and_next_sentences_do_not_depend_on_processes_either(tmp_path, sentences):
    runs = []
    for name, more in (("single", []), ("two", ["launch.num_processes=2", "train.micro_batch_size=2"])):
        words = [*ENCODER, f"data.paths=[{sentences}]", f"run.dir={tmp_path / name}", *more]
        succeed("pretrain", *words, cwd=tmp_path)
        runs.append(tmp_path / name)
    expected, actual = (curve(run, *PARTS) for run in runs)
    assert [step for step, *_ in actual] == list(range(1, 21))
    for one, other in zip(expected, actual, strict=True):
        assert other == pytest.approx(one, rel=NORM_TOLERANCE)
        assert other[1] == pytest.approx(one[1], rel=LOSS_TOLERANCE)
    assert validation_curve(runs[1]) == [
        (step, pytest.approx(loss, rel=LOSS_TOLERANCE)) for step, loss in validation_curve(runs[0])
    ]
