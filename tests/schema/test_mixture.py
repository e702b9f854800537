"""Sections under names that the user gives: typed and checked like all others, wherever they are set."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.compose.compose import compose
from llmtrain.schema.data import HuggingFaceData, MixtureData, OnError, PythonCodeData, TextData
from llmtrain.schema.load import build
from llmtrain.schema.plugins import registry_with
from llmtrain.schema.registry import builtin_registry
from llmtrain.schema.roots import PretrainConfig
from llmtrain.schema.stored import config_text, read_plain
from llmtrain.utils.errors import ConfigError

BOOKS = ["data=mixture", "data.sources.books.paths=[a.txt]"]


def data(*words: str, config_dir: Path | None = None) -> MixtureData:
    (composed,) = compose("pretrain", words, config_dir and str(config_dir))
    assert isinstance(composed.config.data, MixtureData)
    return composed.config.data


def problems(*words: str, config_dir: Path | None = None) -> list[tuple[str, str, str]]:
    with pytest.raises(ConfigError) as caught:
        compose("pretrain", words, config_dir and str(config_dir))
    return [(one.what, one.where, one.fix) for one in caught.value.problems]


def test_sources_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mixture = data(
        *BOOKS,
        "data.sources.books.weight=70",
        "data.sources.code={kind: python_code, weight: 30}",
        "data.sources.web.kind=huggingface",
        "data.sources.web.name=org/set",
        "data.sources.web.weight=0.5",
        "data.validation.plays.paths=b.txt",
        "data.on_error=skip",
        "data.sources.code.on_error=fail",
        "data.clean.unicode=NFC",
        "data.clean.quality.min_words=20",
    )
    assert mixture.validation["plays"].paths == [str(tmp_path / "b.txt")]  # type: ignore[attr-defined]
    books, code, web = mixture.sources.values()
    assert isinstance(books, TextData)
    assert books.paths == [str(tmp_path / "a.txt")]
    assert isinstance(code, PythonCodeData)
    assert isinstance(web, HuggingFaceData)
    assert [source.weight for source in mixture.sources.values()] == [70, 30, 0.5]
    assert (books.on_error, code.on_error, web.on_error) == (OnError.skip, OnError.fail, OnError.skip)
    assert books.clean is not None
    assert books.clean.quality is not None
    assert (books.clean.quality.apply, books.clean.quality.min_words) == (True, 20)


def test_a_stored_mixture_is_read_back() -> None:
    (composed,) = compose("pretrain", [*BOOKS, "data.sources.code.kind=python_code"])
    _, plain = read_plain(config_text("pretrain", composed.config), "config.yaml")
    assert build(PretrainConfig, plain, builtin_registry()) == composed.config


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (
            ["data.sources.books.pathz=[b]"],
            "unknown key 'data.sources.books.pathz'",
            "'data.sources.books.paths'",
        ),
        (["data.sources.books.weight=much"], "data.sources.books.weight must be a number", "give a number"),
        (["data.sources.books.kind=txt"], "data.sources.books.kind is 'txt'", "did you mean 'text'?"),
        (["data.sources.books.kind=mixture"], "data.sources.books.kind is 'mixture'", "known: "),
        (["data.sources.books.name=x"], "unknown key 'data.sources.books.name'", "known: "),
        (["data.sources.books=7"], "data.sources.books is a section", "data.sources.books."),
        (["data.sources.books.weight=0"], "data.sources.books.weight must be greater than 0", "change"),
        (["data.source.books.weight=1"], "unknown key 'data.source.books.weight'", "did you mean"),
        (["data.sources.my books.weight=1"], "", ""),
        (
            ["data.sources.code.kind=python_code", "data.sources.code.weight=1"],
            "books.weight is not set",
            "or none",
        ),
        (
            ["data.sources.web.weight=1", "data.sources.books.weight=1"],
            "data.sources.web.paths is empty",
            "give",
        ),
        (
            ["data.sources.books.isolate_documents=true"],
            "is for the whole mixture",
            "data.isolate_documents=true",
        ),
        (["data.weight=3"], "is for the sources of a mixture", "change"),
        (["data.max_tokens=3"], "is set for each source", "change"),
        (["data.clean.unicod=NFC"], "unknown key 'data.clean.unicod'", "did you mean 'data.clean.unicode'?"),
        (["data.clean.personal=[mail]"], "data.clean.personal must be", ""),
    ],
)
def test_mistakes(words: list[str], what: str, fix: str) -> None:
    found = problems(*BOOKS, *words)
    assert any(what in one[0] and fix in one[2] for one in found), found


def test_mistakes_of_no_mixture() -> None:
    (found,) = problems("data=mixture")
    assert "data.sources is empty" in found[0]
    (found,) = problems("data=text", "data.paths=[a]", "data.weight=2")
    assert "data.weight is for the sources" in found[0]
    (found,) = problems(*BOOKS, "data.sources.books.validation_paths=[b]", "data.validation.b.paths=[c]")
    assert "data.sources.books.validation_paths is not used" in found[0]


def test_mistakes_in_yaml_are_told_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data/mine.yaml"
    file.write_text("kind: mixture\nsources:\n  books:\n    paths: [a.txt]\n    wight: 3\n")
    (found,) = problems("data=mine", config_dir=tmp_path)
    assert found[0] == "unknown key 'data.sources.books.wight'"
    assert found[1].endswith("mine.yaml:5")
    assert found[2] == "did you mean 'data.sources.books.weight'?"
    file.write_text(file.read_text().replace("wight", "weight"))
    assert data("data=mine", config_dir=tmp_path).sources["books"].weight == 3
    assert data("data=mine", "data.sources.books.weight=5", config_dir=tmp_path).sources["books"].weight == 5


def test_plugins_bring_sources_of_mixtures() -> None:
    assert "mixture" in registry_with([]).groups["data"]
