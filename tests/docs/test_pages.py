"""The pages say what is: commands compose, links lead somewhere, tables are those of the program."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from llmtrain.cli import sort_words
from llmtrain.command.runs import runs
from llmtrain.command.style import Style
from llmtrain.compose.compose import compose
from llmtrain.schema.roots import ROOTS
from llmtrain.schema.verify import VerifyWords
from llmtrain.utils.errors import EXIT_MEANING, ConfigError, ExitCode, UserError
from tests.helpers.pages import PAGES, Command, blocks, commands, write_files
from tests.helpers.paths import ROOT
from tests.test_layering import FLOORS, TOP

DOCS = ROOT / "docs"
WRONG = {"optm.lr=1", "optim.lrr=1"}
"""Words of commands that are to show a mistake."""


def all_commands() -> list[Command]:
    """Every command line of every page."""
    return [command for page in PAGES for block in blocks(page) for command in commands(block)]


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the commands of the pages need to be composed: plugins, and YAML of the reader's."""
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        write_files(page, tmp_path)
    for name, text in {
        "my/data/mine.yaml": "kind: text\npaths: [a.txt]\n",
        "my/model/big.yaml": "kind: gpt\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def check(words: tuple[str, ...]) -> None:
    """Compose a command line, or check the words of the verbs that compose nothing.

    Raises:
        UserError: it has a mistake.
    """
    call = sort_words([word for word in words if word != "..."])
    if call.help or call.version or call.completion:
        return
    verb, rest = call.verb, call.words
    if verb == "verify":
        verb = rest[0] if rest and rest[0] in ROOTS else "pretrain"
        own = [word for word in rest if word.startswith("verify.")]
        OmegaConf.merge(OmegaConf.structured(VerifyWords), OmegaConf.from_dotlist(own))
        rest = [word for word in rest if word not in own and word != verb]
    if verb in ROOTS:
        compose(verb, [word for word in rest if word not in WRONG], call.config_dir, call.multirun)
    elif verb == "runs":
        if not rest or rest[0] == "ls":
            runs([word for word in rest if not word.startswith("picture=")], Style(colour=False))
        else:
            assert rest[0] in ("show", "compare", "report"), rest
    elif verb == "doctor":
        assert not rest, rest
    else:
        assert verb == "configs", verb
        assert not rest or rest[0] in ("ls", "cat", "cp", "check"), rest


def test_commands_are_found() -> None:
    assert len(all_commands()) > 60
    assert {command.where.partition(":")[0] for command in all_commands()} > {"README.md", "quickstart.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_compose(page: Path, surroundings: Path) -> None:
    problems = []
    for block in blocks(page):
        for command in commands(block):
            try:
                check(command.words)
            except UserError as error:
                problems.append(f"{command.where}: llmtrain {' '.join(command.words)}\n{error}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "words", [["pretrain", "optim.lrate=1"], ["verify", "verify.step=3"], ["pretrain", "model=gpt/smal"]]
)
def test_a_key_that_is_not_there_would_be_noticed(words: list[str], surroundings: Path) -> None:
    with pytest.raises((UserError, Exception)) as caught:
        check(tuple(words))
    assert isinstance(caught.value, ConfigError) or "step" in str(caught.value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_index_has_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The script that writes parts of the pages."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_up_to_date(
    reference: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert reference.main(["--check"]) == 0, f"{capsys.readouterr().out}run `make docs`"


def test_a_stale_page_is_noticed(
    reference: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stale = (DOCS / "exit_codes.md").read_text(encoding="utf-8").replace("diverged |", "sunk |")
    (tmp_path / "exit_codes.md").write_text(stale, encoding="utf-8")
    monkeypatch.setattr(reference, "DOCS", tmp_path)
    monkeypatch.setattr(reference, "PARTS", {"exit_codes.md": reference.exit_codes})
    assert reference.main(["--check"]) == 1
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
    written = (tmp_path / "exit_codes.md").read_text(encoding="utf-8")
    assert written == (DOCS / "exit_codes.md").read_text(encoding="utf-8")


def test_every_exit_code_is_explained() -> None:
    page = (DOCS / "exit_codes.md").read_text(encoding="utf-8")
    written = [int(code) for code in re.findall(r"^\| (\d+) \| (?!`)", page, re.MULTILINE)]
    known = {value for name, value in vars(ExitCode).items() if name.isupper()}
    assert written == sorted(known)
    assert known == EXIT_MEANING.keys()


def test_the_drawing_of_the_house_is_the_table_of_its_test() -> None:
    (drawing,) = (
        block for block in blocks(DOCS / "architecture.md") if re.match(r"\d+ +__main__", block.text)
    )
    drawn = {name: int(floor) for floor, name in re.findall(r"^ *(\d+) +(\w+) ", drawing.text, re.MULTILINE)}
    assert drawn == FLOORS | TOP
