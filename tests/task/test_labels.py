"""Examples of classification from files, the presets, and what is read off the examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.utils.class_weight
import yaml

from llmtrain.schema.data import OnError
from llmtrain.schema.load import build
from llmtrain.schema.registry import builtin_registry
from llmtrain.schema.task import ClassificationTask, Target
from llmtrain.task.base import Examples
from llmtrain.task.classification import ClassificationKind
from llmtrain.task.files import task_paths
from llmtrain.task.labels import Example
from llmtrain.utils.errors import ConfigError, DataError
from tests.helpers.paths import CONFIGS, SHARED_DATA

PRESETS = sorted(path.stem for path in (CONFIGS / "task/classification").glob("*.yaml"))

REAL = {
    "sst2": ("SST-2", 67349, 872),
    "cola": ("CoLA", 8551, 1043),
    "mrpc": ("MRPC", 3668, 408),
    "rte": ("RTE", 2490, 277),
    "wnli": ("WNLI", 635, 71),
    "stsb": ("STS-B", 5749, 1500),
    "ag_news": ("ag_news", 10001, 7600),  # a sample of the training part
    "chnsenticorp": ("chnsenticorp", 9600, 1200),
}
"""Folder and published numbers of training and validation examples."""

KIND = ClassificationKind()


def preset(name: str, **changes: Any) -> ClassificationTask:
    values = yaml.safe_load((CONFIGS / f"task/classification/{name}.yaml").read_text(encoding="utf-8"))
    return build(ClassificationTask, values | changes, builtin_registry())


def examples_of(*labels: Any) -> Examples:
    return Examples([Example(f"a.tsv:{i + 1}", f"text {i}", None, label) for i, label in enumerate(labels)])


def read(path: Path, content: str, labelled: bool = True, **settings: Any) -> Examples:
    path.write_text(content, encoding="utf-8")
    return KIND.read(ClassificationTask(**settings), [path], labelled)


def labels(examples: Examples) -> list[Any]:
    return [example.label for example in examples.items]


def jsonl(*values: Any) -> str:
    return "".join(json.dumps({"text": "a", "label": value}) + "\n" for value in values)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name: str) -> None:
    task = preset(name)
    assert task.metric in task.metrics()
    if name == "custom":
        assert task.paths == task.labels == []
    else:
        assert task.paths
        assert task.validation_paths
        assert task.labels or task.target is Target.number
    assert task.header == (name not in ("cola", "ag_news", "chnsenticorp"))


@pytest.mark.parametrize("name", REAL)
def test_real_files_have_the_published_numbers(name: str) -> None:
    folder, num_train, num_validation = REAL[name]
    if not (SHARED_DATA / "classification" / folder).is_dir():
        pytest.skip(f"{folder} (../shared/data/classification) is not on this machine")
    changes = {"paths": ["train_sample.tsv"]} if name == "ag_news" else {}
    task = preset(name, folder=str(SHARED_DATA / "classification" / folder), **changes)
    parts = [KIND.read(task, task_paths(task, names), True) for names in (task.paths, task.validation_paths)]
    assert [len(part.items) for part in parts] == [num_train, num_validation]
    assert not any(part.skipped for part in parts)
    for part in parts:
        if task.target is Target.number:
            assert min(labels(part)) >= 0
            assert max(labels(part)) <= 5
        else:
            assert KIND.resolve(task, part) == task
            assert set(labels(part)) == set(task.labels)  # every label occurs
        assert all((example.pair is None) == (task.pair_column is None) for example in part.items)
    if name == "mrpc":
        extra = task_paths(task, ["msr_paraphrase_test.txt"])  # .txt, with labels: columns too
        assert len(KIND.read(task, extra, True).items) == 1725


def test_labels_of_json_are_texts(tmp_path: Path) -> None:
    found = read(tmp_path / "a.jsonl", jsonl("1", 1, 1.0, True, False, -2, 2.5, " good ", 10**400))
    assert labels(found) == ["1", "1", "1", "true", "false", "-2", "2.5", "good", str(10**400)]
    for value, message in (
        (None, "not a text: None"),
        ({}, "not a text"),
        (" ", "label is empty"),
        (["a"], "is a list"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read(tmp_path / "a.jsonl", jsonl("ok", value))
        assert caught.value.problems[0].where == f"{tmp_path / 'a.jsonl'}:2"


def test_sets_of_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    settings: dict = {"target": Target.labels, "metric": "micro_f1"}
    found = read(path, jsonl(["b", "a", "b"], [], "c, a ,,", "", [1, True]), **settings)
    assert labels(found) == [["b", "a"], [], ["c", "a"], [], ["1", "true"]]
    assert labels(read(path, jsonl("a,b|c"), separator="|", **settings)) == [["a,b", "c"]]
    with pytest.raises(DataError, match="no list of labels: 3"):
        read(path, jsonl(3), **settings)


def test_numbers(tmp_path: Path) -> None:
    settings: dict = {"target": Target.number, "metric": "pearson"}
    found = read(tmp_path / "a.csv", "text,label\na,3.5\nb, 4 \nc,-1e3\n", **settings)
    assert labels(found) == [3.5, 4.0, -1000.0]
    for value in ("three", "nan", "inf", "", None, True, [1], 10**400):
        with pytest.raises(DataError, match="the label is not a number") as caught:
            read(tmp_path / "a.jsonl", jsonl(1, value), **settings)
        assert caught.value.problems[0].where.endswith("a.jsonl:2")


def test_broken_examples_are_skipped_and_noted(tmp_path: Path) -> None:
    content = "text\tlabel\ngood\t1\n\t0\nbad\t0\nodd\t7\nshort\n"
    path = tmp_path / "a.tsv"
    with pytest.raises(DataError, match="the text is empty") as caught:
        read(path, content)
    assert caught.value.problems[0].where == f"{path}:3"
    found = read(path, content, on_error=OnError.skip, labels=["0", "1"])
    assert labels(found) == ["1", "0"]
    assert found.skipped == [
        f"{path}:3: the text is empty",
        f"{path}:5: the label '7' is not known",
        f"{path}:6: 1 fields where the header has 2: ['short']",
    ]
    with pytest.raises(DataError, match="there is no example") as caught:
        read(path, "text\tlabel\n\t1\n", on_error=OnError.skip)
    assert f"faults: {path}:2: the text is empty" in caught.value.problems[0].fix
    with pytest.raises(DataError, match="there is no example"):
        read(path, "text\tlabel\n")
    half = '{"text": "\\ud800", "label": 1}\n'
    with pytest.raises(DataError, match="half of a surrogate pair"):
        read(tmp_path / "a.jsonl", half)


def test_without_labels(tmp_path: Path) -> None:
    plain = read(tmp_path / "a.txt", "one\n\nthree\tfour\n", labelled=False, text_column="sentence")
    assert [(e.text, e.label) for e in plain.items] == [("one", None), ("", None), ("three\tfour", None)]
    columns = read(tmp_path / "a.tsv", "id\ttext\n1\tone\n2\t\n", labelled=False)
    assert [(e.text, e.where) for e in columns.items] == [
        ("one", f"{tmp_path / 'a.tsv'}:2"),
        ("", f"{tmp_path / 'a.tsv'}:3"),
    ]
    two = read(tmp_path / "b.txt", "one\ttwo\n", labelled=False, pair_column="x")
    assert [(e.text, e.pair) for e in two.items] == [("one", "two")]
    unread = read(tmp_path / "a.jsonl", jsonl(None), labelled=False)  # a label that is no label
    assert labels(unread) == [None]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["pos", "neg", "pos"], ["neg", "pos"]),
        (["10", "9", "-1", "9"], ["-1", "9", "10"]),
        (["1.5", "1", "x"], ["1", "1.5", "x"]),
        (["nan", "1", "0"], ["0", "1", "nan"]),
    ],
)
def test_labels_are_sorted(found: list[str], expected: list[str]) -> None:
    task = KIND.resolve(ClassificationTask(), examples_of(*found))
    assert task.labels == expected
    assert KIND.resolve(task, examples_of(*reversed(found))) == task


def test_labels_that_do_not_do() -> None:
    with pytest.raises(DataError, match="the label 'maybe' is not known") as caught:
        KIND.resolve(ClassificationTask(labels=["no", "yes"]), examples_of("yes", "maybe"))
    (problem,) = caught.value.problems
    assert problem.where == "a.tsv:2"
    assert problem.fix.startswith("known: no, yes; repair the row")
    with pytest.raises(DataError, match="there is only one label: 'yes'"):
        KIND.resolve(ClassificationTask(), examples_of("yes", "yes"))
    with pytest.raises(DataError, match="no example has a label"):
        KIND.resolve(ClassificationTask(target=Target.labels, metric="micro_f1"), examples_of([], []))
    with pytest.raises(DataError, match="300 different labels in 301 examples"):
        KIND.resolve(ClassificationTask(), examples_of("0", *map(str, range(300))))
    twice = examples_of(*[str(i // 2) for i in range(400)])
    assert len(KIND.resolve(ClassificationTask(), twice).labels) == 200


def test_weights() -> None:
    found = ["a"] * 6 + ["b"] * 3 + ["c"]
    task = KIND.resolve(ClassificationTask(balance=True), examples_of(*found))
    theirs = sklearn.utils.class_weight.compute_class_weight("balanced", classes=np.unique(found), y=found)
    assert task.class_weights == pytest.approx(list(theirs / theirs.mean()))
    assert np.mean(task.class_weights) == pytest.approx(1)
    assert not task.balance
    assert KIND.resolve(task, examples_of(*found)) == task
    more = KIND.resolve(ClassificationTask(balance=True, labels=["a", "b", "c", "d"]), examples_of(*found))
    assert more.class_weights == pytest.approx([*task.class_weights, 1])
    sets = ClassificationTask(target=Target.labels, metric="micro_f1", labels=["a", "b"], balance=True)
    assert KIND.resolve(sets, examples_of([], [])).class_weights == [1, 1]
    for weights, message in (([1.0, 2.0], "2 weights for 3 labels"), ([0.0] * 3, "all weights are 0")):
        with pytest.raises(ConfigError, match=message):
            KIND.resolve(ClassificationTask(class_weights=weights), examples_of(*found))
