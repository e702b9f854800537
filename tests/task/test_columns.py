"""Sentences from files in columns and from plain text, and what is wrong with them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain.schema.data import OnError
from llmtrain.schema.load import build
from llmtrain.schema.registry import builtin_registry
from llmtrain.schema.task import Scheme, TokenClassificationTask
from llmtrain.task.base import Examples
from llmtrain.task.columns import Sentence
from llmtrain.task.files import task_paths
from llmtrain.task.token_classification import TokenClassificationKind
from llmtrain.utils.errors import DataError
from tests.helpers.paths import CONFIGS, SHARED_DATA

KIND = TokenClassificationKind()
PRESETS = sorted(path.stem for path in (CONFIGS / "task/token_classification").glob("*.yaml"))

REAL = [
    ("conll2003", "conll2003", "train.txt", 14041, 203621),
    ("conll2003", "conll2003", "valid.txt", 3250, 51362),
    ("conll2003", "conll2003", "test.txt", 3453, 46435),
    ("resume_zh", "resume-zh", "train.char.bmes", 3821, 124099),
    ("resume_zh", "resume-zh", "dev.char.bmes", 463, 13890),
    ("resume_zh", "resume-zh", "test.char.bmes", 477, 15100),
]
"""Preset, folder, file, and the published numbers of sentences and words."""


def preset(name: str, **changes: Any) -> TokenClassificationTask:
    values = yaml.safe_load((CONFIGS / f"task/token_classification/{name}.yaml").read_text(encoding="utf-8"))
    return build(TokenClassificationTask, values | changes, builtin_registry())


def read(path: Path, content: str, labelled: bool = True, **changes: Any) -> Examples:
    path.write_text(content, encoding="utf-8", newline="")
    return KIND.read(TokenClassificationTask(**changes), [path], labelled)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name: str) -> None:
    task = preset(name)
    assert task.metric in task.metrics()
    assert bool(task.paths) == bool(task.validation_paths) == (name != "custom")


@pytest.mark.parametrize(("name", "folder", "file", "num_sentences", "num_words"), REAL)
def test_real_files_have_the_published_numbers(
    name: str, folder: str, file: str, num_sentences: int, num_words: int
) -> None:
    if not (SHARED_DATA / "ner" / folder).is_dir():
        pytest.skip(f"{folder} (../shared/data/ner) is not on this machine")
    task = preset(name, folder=str(SHARED_DATA / "ner" / folder))
    found = KIND.read(task, task_paths(task, [file]), True)
    assert not found.skipped
    assert len(found.items) == num_sentences
    assert sum(len(one.words) for one in found.items) == num_words
    labels = KIND.resolve(task, found).labels
    assert labels[0] == "O"
    assert labels[1:] == sorted(labels[1:])
    if name == "conll2003":
        assert len(labels) == 9


def test_columns_parted_by_blanks_or_tabs(tmp_path: Path) -> None:
    content = (
        "\ufeff-DOCSTART- -X- O\r\n\r\nAnna  N  B-PER\r\nmeets V O\r\n\r\n\r\n"
        "\u3000 N O\n\u00a0 N O\n-DOCSTART- -X- O\nNew York\tN\tB-LOC\n \t\n..\tP\tO"
    )
    found = read(tmp_path / "a.txt", content)
    assert [(one.words, one.tags, one.line) for one in found.items] == [
        (["Anna", "meets"], ["B-PER", "O"], 3),
        (["\u3000", "\u00a0"], ["O", "O"], 7),  # only blanks and tabs part columns
        (["New York"], ["B-LOC"], 10),
        ([".."], ["O"], 12),
    ]
    other = read(tmp_path / "b.txt", "N O Anna\n", word_column=-1, label_column=1)
    assert (other.items[0].words, other.items[0].tags) == (["Anna"], ["O"])
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"Anna B-PER\n"))
    packed = KIND.read(TokenClassificationTask(), [tmp_path / "c.txt.gz"], True)
    assert packed.items == [Sentence(["Anna"], ["B-PER"], str(tmp_path / "c.txt.gz"), 1)]


@pytest.mark.parametrize(
    ("row", "changes", "what", "fix"),
    [
        ("Bob N", {}, "2 columns where the first row has 3: 'Bob N'", "on_error=skip"),
        ("Bob N B-PER x", {}, "4 columns where the first row has 3", "on_error=skip"),
        ("\tN\tO", {}, "nothing stands in column 0", "on_error=skip"),
        ("Bob N E-PER", {}, "'E-PER' is no tag of scheme bio (O, B-..., I-...)", "scheme=bioes or bmes"),
        ("Bob N NNP", {}, "'NNP' is no tag of scheme bio", "task.label_column"),
        (
            "Bob N M-PER",
            {"scheme": Scheme.bioes},
            "no tag of scheme bioes (O, B-..., I-..., E-..., S-...)",
            "bmes",
        ),
    ],
)
def test_broken_rows(tmp_path: Path, row: str, changes: dict[str, Any], what: str, fix: str) -> None:
    path = tmp_path / "a.txt"
    content = f"Anna N B-PER\n\nmeets V O\n{row}\nand more rubbish in it\n\nBob N O\n"
    with pytest.raises(DataError) as caught:
        read(path, content, **changes)
    problem = caught.value.problems[0]
    assert what in problem.what
    assert fix in problem.fix
    assert problem.where == f"{path}:4"
    found = read(path, content, on_error=OnError.skip, **changes)
    assert [one.words for one in found.items] == [["Anna"], ["Bob"]]
    assert len(found.skipped) == 1
    assert found.skipped[0].startswith(f"{path}:4: ")
    assert what in found.skipped[0]


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(DataError, match="there is no column 2 in rows of 2") as caught:
        read(path, "Anna O\n", label_column=2)
    assert "task.label_column to a number from 0 to 1" in caught.value.problems[0].fix
    for content in ("\n\n", "-DOCSTART- O\n"):
        with pytest.raises(DataError, match="there is no sentence"):
            read(path, content)
    with pytest.raises(DataError, match="the file is empty"):
        read(path, "")
    path.write_bytes(b"Anna O\n\nBob O\n\xff O\nin O\n\nYork O\n")
    with pytest.raises(DataError, match="not UTF-8") as caught:
        KIND.read(TokenClassificationTask(), [path], True)
    assert caught.value.problems[0].where == f"{path}:4"
    found = KIND.read(TokenClassificationTask(on_error=OnError.skip), [path], True)
    assert [one.words for one in found.items] == [["Anna"], ["York"]]
    assert len(found.skipped) == 1


def test_files_in_columns_are_known_by_their_tags(tmp_path: Path) -> None:
    """CoNLL's own files end in .txt, as plain text does."""
    columns = "-DOCSTART- -X- O\n\nJohn NNP B-PER\nruns VBZ O\n\nRome NNP B-OTHER\n"
    found = read(tmp_path / "a.txt", columns, labelled=False).items
    assert [sentence.words for sentence in found] == [["John", "runs"], ["Rome"]]
    for text in ("John B-PER\n", "I met John\nhe is O\nO k\n", "vitamin O\nvitamin C\n", "O\nO\n"):
        found = read(tmp_path / "b.txt", text, labelled=False).items
        assert [sentence.words for sentence in found] == [line.split() for line in text.splitlines()]


def test_without_labels(tmp_path: Path) -> None:
    found = read(tmp_path / "a.txt", "Anna meets\u00a0you  Bob\n\n\t. \n", labelled=False)
    assert [one.words for one in found.items] == [["Anna", "meets\u00a0you", "Bob"], [], ["."]]
    assert all(one.tags is None for one in found.items)
    found = read(tmp_path / "a.txt", "高勇： 男\n", labelled=False, joined=True)  # noqa: RUF001
    assert found.items[0].words == list("高勇：男")  # noqa: RUF001
    found = read(tmp_path / "a.conll", "Anna\nmeets\n\nBob\n", labelled=False)
    assert [(one.words, one.tags) for one in found.items] == [(["Anna", "meets"], None), (["Bob"], None)]
