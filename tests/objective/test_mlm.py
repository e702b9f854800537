"""Masked language modelling and next-sentence prediction, from text to loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from llmtrain.data.batch import IGNORE
from llmtrain.data.loader import Loader
from llmtrain.data.prepare import prepare
from llmtrain.data.store import View
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.tokenizer_build import bytes_tokenizer
from llmtrain.model.heads.vocabulary import MaskedHead, MaskedNextHead
from llmtrain.objective.build import build_objective
from llmtrain.objective.mlm import MLM
from llmtrain.objective.mlm_nsp import MLMNSP
from llmtrain.schema.data import TextData
from llmtrain.schema.objective import MLMConfig, MLMNSPConfig
from llmtrain.schema.tokenizer import BytesTokenizer
from llmtrain.utils.errors import ConfigError, DataError
from tests.helpers.models import make_model, small_bert
from tests.helpers.text import STEMS, story, word_tokenizer

LENGTH = 32


def view_of(folder: Path, texts: list[str], tokenizer: Tokenizer | None = None) -> View:
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    data = TextData(paths=[str(path)], validation_fraction=0)
    return prepare(data, tokenizer or word_tokenizer(), seed=0, cache=folder / "cache").train


@pytest.fixture
def stories(tmp_path: Path) -> View:
    """Ten documents, each with ten stems of its own."""
    return view_of(tmp_path, [story(i, 120, stems=STEMS[7 * i : 7 * i + 7]) for i in range(10)])


def rows_of(objective: MLM, view: View, **keys):
    return objective.rows(view, **{"sequence_length": LENGTH, "seed": 1, "shuffle": True, **keys})


def test_configs_build_objectives() -> None:
    made = build_objective(MLMConfig(mask_rate=0.2), TextData())
    assert type(made) is MLM
    assert made.labelled_share == 0.2
    made = build_objective(MLMNSPConfig(), TextData())
    assert type(made) is MLMNSP
    assert made.labelled_share == 0.15


def test_heads(stories: View) -> None:
    config = small_bert(vocab_size=stories.store.tokenizer.vocab_size)
    assert type(make_model(config, build_head=MLM(MLMConfig()).build_head).head) is MaskedHead
    assert type(make_model(config, build_head=MLMNSP(MLMNSPConfig()).build_head).head) is MaskedNextHead


@pytest.mark.parametrize("objective", [MLM(MLMConfig()), MLMNSP(MLMNSPConfig())])
def test_parts_add_up_to_the_mean_over_all(objective: MLM, stories: View) -> None:
    model = make_model(
        small_bert(vocab_size=stories.store.tokenizer.vocab_size), build_head=objective.build_head
    ).eval()
    rows = rows_of(objective, stories)
    read = [rows.read(i) for i in range(13)]
    parts = [rows.collate(read[:4]), rows.collate([*read[4:13], rows.filler()])]
    whole = rows.collate(read)
    total: dict[str, float] = {}
    for part in parts:
        for name, count in objective.count(part).items():
            total[name] = total.get(name, 0) + count
    assert total == objective.count(whole)
    assert total["labels"] == int((whole.labels != IGNORE).sum())
    loss, stats = objective.loss(model.sums(whole), total)
    losses, parts_stats = zip(*(objective.loss(model.sums(part), total) for part in parts), strict=True)
    torch.testing.assert_close(sum(losses), loss, rtol=1e-5, atol=1e-6)
    for name, value in stats.items():
        torch.testing.assert_close(sum(part[name] for part in parts_stats), value, rtol=1e-5, atol=1e-6)

    logits = model.predict(whole)
    has_label = whole.labels != IGNORE
    expected = F.cross_entropy(logits[has_label], whole.labels[has_label])
    accuracy = (logits.argmax(-1) == whole.labels)[has_label].float().mean()
    torch.testing.assert_close(stats["mlm_accuracy"], accuracy)
    if isinstance(objective, MLMNSP):
        torch.testing.assert_close(stats["mlm_loss"], expected, rtol=1e-5, atol=1e-6)
        assert total["samples"] == sum(len(row.samples) for row in read)
        next_logits = model.head.predict_next(model.backbone(whole), whole)
        labels = whole.sample_labels
        next_loss = F.cross_entropy(next_logits[labels != IGNORE], labels[labels != IGNORE])
        torch.testing.assert_close(stats["nsp_loss"], next_loss, rtol=1e-5, atol=1e-6)
        right = (next_logits.argmax(-1) == labels)[labels != IGNORE].float().mean()
        torch.testing.assert_close(stats["nsp_accuracy"], right)
        expected = expected + next_loss
        assert set(stats) == {"loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy"}
    else:
        assert set(stats) == {"loss", "mlm_accuracy"}
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats["loss"], loss)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_both_tasks_are_learned(tmp_path: Path, one_thread) -> None:
    """Each document has two stems of its own: that tells random pairs, and what may stand behind a mask."""
    view = view_of(tmp_path, [story(i, 120, stems=STEMS[2 * i : 2 * i + 2]) for i in range(10)])
    objective = MLMNSP(MLMNSPConfig())
    config = small_bert(vocab_size=view.store.tokenizer.vocab_size, num_layers=1, dim=64)
    model = make_model(config, build_head=objective.build_head).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = Loader(rows_of(objective, view), batch_size=32, micro_batch_size=32, rank=0, world=1)
    history = []
    for _ in range(180):
        (batch,) = loader.next()
        loss, stats = objective.loss(model.sums(batch), objective.count(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({name: float(value) for name, value in stats.items()})
    loader.close()
    last = {name: sum(step[name] for step in history[-20:]) / 20 for name in history[0]}
    assert last["nsp_accuracy"] > 0.75, last
    assert last["mlm_loss"] < 2 < 4 < history[0]["mlm_loss"], last


def test_tokenizers_without_the_tokens_are_refused(tmp_path: Path) -> None:
    view = view_of(tmp_path, ["a text", "another"], bytes_tokenizer(BytesTokenizer()))
    for objective in (MLM(MLMConfig()), MLMNSP(MLMNSPConfig())):
        with pytest.raises(ConfigError, match=r"needs a tokenizer with \[MASK\], \[CLS\], \[SEP\]") as caught:
            rows_of(objective, view)
        assert f"objective={objective.config.kind}" in str(caught.value)
        assert "tokenizer=wordpiece" in str(caught.value)


def test_one_document_is_told_before_training(tmp_path: Path) -> None:
    view = view_of(tmp_path, [story(0, 100)])
    assert rows_of(MLM(MLMConfig()), view).rows_per_epoch > 10
    with pytest.raises(DataError, match="two documents at least"):
        rows_of(MLMNSP(MLMNSPConfig()), view)
