"""Every YAML file composes with every verb it fits, and a typo in any of them is found."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain.command.help import verb_groups
from llmtrain.compose.folders import ConfigFolders
from llmtrain.schema.load import build
from llmtrain.schema.registry import builtin_registry
from llmtrain.schema.roots import ROOTS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FOLDERS = ConfigFolders((CONFIGS,))
EXTRA = {
    "adapt=lora": ["init_from=run"],
    "data=text": ["data.paths=[a.txt]"],
    "data=huggingface": ["data.name=who/what"],
    "data=mixture": ["data.sources.a.paths=[a.txt]"],
    "task=classification/custom": ["task.paths=[a.tsv]"],
    "task=token_classification/custom": ["task.paths=[a.txt]"],
    "task=question_answering/custom": ["task.paths=[a.json]"],
    "tokenizer=file": ["tokenizer.path=tokenizer.json"],
    "experiment=shakespeare_characters": ["data.paths=[a.txt]"],
    "experiment=speedrun_shakespeare": ["data.paths=[a.txt]"],
    "experiment=speedrun_wikitext": ["data.paths=[a.txt]"],
}
"""What a choice needs besides."""

NEEDED = {
    "evaluate": ["init_from=run"],
    "generate": ["init_from=run"],
    "chat": ["init_from=run"],
    "finetune": ["init_from=run", "task.paths=[a.tsv]"],
    "convert": ["source=run", "target=out"],
    "predict": ["init_from=run", "input=a.tsv"],
}


def targets() -> list[tuple[str, str]]:
    """(verb, group=choice) of every file, and (verb, "") of every root."""
    pairs = [(verb, "") for verb in ROOTS]
    for verb in ROOTS:
        for group, choices in verb_groups(verb, FOLDERS).items():
            pairs += [(verb, f"{group}={choice}") for choice in choices]
    return pairs


def words_of(verb: str, choice: str) -> list[str]:
    extra = EXTRA.get(choice, ["objective=mlm"] if choice.startswith("model=bert/") else [])
    return list(dict.fromkeys([verb, *([choice] if choice else []), *extra, *NEEDED.get(verb, [])]))


def one_target_per_file() -> list[tuple[str, str]]:
    seen: dict[str, tuple[str, str]] = {}
    for verb, choice in targets():
        seen.setdefault(choice.replace("=", "/") or verb, (verb, choice))
    return list(seen.values())


def by_verb() -> list[Any]:
    """All targets; a file that one verb has composed is composed with others by `make equivalence` only, but
    for experiments, which set keys of the whole config."""
    first = one_target_per_file()
    return [
        pytest.param(verb, choice, marks=[] if kept else pytest.mark.equivalence, id=f"{verb}-{choice}")
        for verb, choice in targets()
        for kept in [(verb, choice) in first or choice.startswith(("experiment=", "task=")) or not choice]
    ]


@pytest.mark.parametrize(("verb", "choice"), by_verb())
def test_composes_and_the_printed_config_builds(cli: Callable[..., Any], verb: str, choice: str) -> None:
    result = cli(*words_of(verb, choice), "--cfg", "job")
    assert result.code == 0, result.err
    data = yaml.safe_load(result.out)
    assert data.pop("verb") == verb
    build(ROOTS[verb], data, builtin_registry())


def test_every_file_is_a_target() -> None:
    names = {choice.replace("=", "/") or verb for verb, choice in one_target_per_file()}
    assert names == set(FOLDERS.names())


@pytest.mark.parametrize(("verb", "choice"), one_target_per_file())
def test_a_typo_in_the_file_is_found(cli: Callable[..., Any], tmp_path: Path, verb: str, choice: str) -> None:
    own = tmp_path / "own"
    shutil.copytree(CONFIGS, own)
    path = own / f"{choice.replace('=', '/') or verb}.yaml"
    lines = path.read_text().splitlines()
    number = max(i for i, line in enumerate(lines) if re.match(r"[\s-]*\w+:", line) and "_self_" not in line)
    lines[number] = re.sub(r"(\w+):", r"\1x:", lines[number], count=1)
    path.write_text("\n".join(lines) + "\n")
    result = cli(*words_of(verb, choice), "--config-dir", str(own))
    assert result.code == 2
    where = str(path.relative_to(tmp_path))
    assert f"{where}:{number + 1}" in result.err or f"{where}\n" in result.err, result.err


def test_configs_check_names_every_broken_file(cli: Callable[..., Any], tmp_path: Path) -> None:
    own = tmp_path / "own"
    for name, text in {
        "model/a.yaml": "kind: gpt\nnum_layer: 3\n",
        "model/b.yaml": "kind: gtp\n",
        "model/c.yaml": "kind: gpt\n  dim: 3\n",
        "model/d.yaml": "dim: 64\n",
        "model/e.yaml": "kind: gpt\nkind: gpt\n",
        "optim/f.yaml": "kind: adamw\nlr: fast\n",
        "experiment/g.yaml": "# @package _global_\ndefaults:\n  - override /model: gpt/dbug\n",
        "modle/h.yaml": "kind: gpt\n",
        "schedule/i.yaml": "- 3\n",
        "experiment/j.yaml": "# @package _global_\nmodel:\n  num_heads: 3.5\n",
    }.items():
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(text)
    result = cli("configs", "check", "--config-dir", str(own))
    assert result.code == 2
    for place in (
        "own/model/a.yaml:2",
        "own/model/b.yaml:1",
        "own/model/c.yaml:2",
        "own/model/d.yaml\n",
        "own/model/e.yaml:",
        "own/optim/f.yaml:2",
        "own/experiment/g.yaml:3",
        "own/modle/h.yaml\n",
        "own/schedule/i.yaml\n",
        "own/experiment/j.yaml:3",
    ):
        assert place in result.err, place
    for words in ("'model.num_layers'", "'gpt'?", "'gpt/debug'", "'model'?", "`kind` is missing"):
        assert words in result.err, words
    assert result.err.count("error:") == 10


@pytest.mark.equivalence
def test_configs_check_finds_nothing_wrong(cli: Callable[..., Any]) -> None:
    """The default suite composes every file by itself (above), which is the same check."""
    assert cli("configs", "check").code == 0
