"""How words, files and defaults come together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_repository import ConfigRepository

from llmtrain.compose.compose import Composed, compose
from llmtrain.compose.layout import Layout
from llmtrain.utils.errors import ConfigError

Cli = Callable[..., Any]


def one(*words: str, verb: str = "pretrain", config_dir: Path | None = None) -> Composed:
    (composed,) = compose(verb, words, str(config_dir) if config_dir else None)
    return composed


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_command_line_beats_experiment_beats_group() -> None:
    config = one("experiment=debug").config
    assert (config.model.dim, config.train.steps, config.optim.lr) == (32, 20, 1e-3)
    config = one("experiment=debug", "model=gpt/tiny", "train.steps=5", "model.dim=128").config
    assert (config.model.num_layers, config.model.dim, config.train.steps) == (4, 128, 5)


def test_each_file_is_merged_once_and_hydra_s_own_settings_never(monkeypatch: pytest.MonkeyPatch) -> None:
    """They took longer than all of ours."""
    read: list[str] = []
    load = ConfigRepository.load_config

    def watched(self: ConfigRepository, config_path: str) -> Any:
        read.append(config_path)
        return load(self, config_path)

    monkeypatch.setattr(ConfigRepository, "load_config", watched)
    assert one("experiment=debug", "train.steps=7").config.train.steps == 7
    assert {"pretrain", "experiment/debug", "model/gpt/debug"} <= set(read)
    assert len(read) == len(set(read))
    assert not [name for name in read if name.startswith("hydra")]


def test_a_wrong_choice_alone_is_told_without_composing_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layout, "values", property(lambda layout: pytest.fail("composed")))
    with pytest.raises(ConfigError, match="there is no model 'gtp/tiny'"):
        one("model=gtp/tiny", "optim=adamw")


def test_the_trials_of_a_sweep_do_not_share_values() -> None:
    first, second = compose("pretrain", ["experiment=debug", "train.steps=5,6", "extra.a=1"], None, True)
    assert (first.config.train.steps, second.config.train.steps) == (5, 6)
    first.config.extra["a"] = 2
    assert second.config.extra == {"a": 1}


def test_keys_that_no_file_has_take_no_plus() -> None:
    config = one("model.dropout=0.1", "launch.threads=3", "log.panel=lines", "extra.note=hi").config
    assert (config.model.dropout, config.launch.threads, config.log.panel.value) == (0.1, 3, "lines")
    assert config.extra == {"note": "hi"}
    assert one("+extra.deep.er=[1,2]").config.extra == {"deep": {"er": [1, 2]}}


def test_values_are_of_the_field_s_type() -> None:
    config = one("run.name=007", "optim.lr=1", "data.max_tokens=1e6").config
    assert config.run.name == "007"
    assert isinstance(config.optim.lr, float)
    assert config.data.max_tokens == 1_000_000


@pytest.mark.parametrize("text", ["Hello, world! (really?)", "it's 5 o'clock: go", "a=b, c=d", "[not a list"])
def test_prose_needs_no_quotes_beyond_the_shell_s(text: str) -> None:
    assert one("init_from=x", f"prompt={text}", verb="generate").config.prompt == text


def test_one_path_is_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert one("data=text", "data.paths=a.txt").config.data.paths == [str(tmp_path / "a.txt")]
    assert one("data=text", "data.paths=a (1).txt").config.data.paths == [str(tmp_path / "a (1).txt")]


def test_paths_become_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["data=text", "data.paths=[sub/*.jsonl.gz,/x/y.txt]", "init_from=runs/a", "run.dir=out"]
    config = one(*words, "tokenizer=file", "tokenizer.path=t.json").config
    assert config.data.paths == [f"{tmp_path}/sub/*.jsonl.gz", "/x/y.txt"]
    assert config.init_from == f"{tmp_path}/runs/a"
    assert config.run.dir == f"{tmp_path}/out"
    assert config.tokenizer.path == f"{tmp_path}/t.json"
    assert one("data=huggingface", "data.name=who/what").config.data.name == "who/what"
    (tmp_path / "who/what").mkdir(parents=True)
    assert one("data=huggingface", "data.name=who/what").config.data.name == f"{tmp_path}/who/what"


def test_length_of_the_command_line_replaces_that_of_a_file() -> None:
    train = one("experiment=gpt2_small", "train.steps=10").config.train
    assert (train.steps, train.tokens) == (10, None)


def test_names_of_models_on_the_hub_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for text, expected in (
        ("owner/model@v1.0", "owner/model@v1.0"),
        ("runs/lost", str(tmp_path / "runs/lost")),
        ("model", str(tmp_path / "model")),
        ("./owner/model", str(tmp_path / "owner/model")),
    ):
        assert compose("generate", [f"init_from={text}"])[0].config.init_from == expected
    converted = compose("convert", ["source=owner/model", "base=owner/base", "target=x/y"])[0].config
    assert (converted.source, converted.base) == ("owner/model", "owner/base")
    assert converted.target == str(tmp_path / "x/y")


def test_own_folder_adds_and_shadows(tmp_path: Path) -> None:
    write(tmp_path / "model/big.yaml", "defaults:\n  - gpt/small@_here_\nnum_layers: 13\n")
    write(tmp_path / "optim/adamw.yaml", "kind: adamw\nlr: 0.5\n")
    write(tmp_path / "eval/often.yaml", "every: 1\n")
    write(
        tmp_path / "experiment/mine.yaml",
        "# @package _global_\ndefaults:\n  - override /model: big\n  - override /schedule: linear\n"
        "schedule:\n  final_ratio: 0.25\n",
    )
    composed = one("experiment=mine", "eval=often", config_dir=tmp_path)
    config = composed.config
    assert (config.model.num_layers, config.model.dim, config.optim.lr) == (13, 768, 0.5)
    assert (config.schedule.kind, config.schedule.final_ratio, config.eval.every) == ("linear", 0.25, 1)
    assert composed.choices["model"] == "big"


def test_a_parent_that_would_land_elsewhere_is_explained(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "own/model/big.yaml", "defaults:\n  - gpt/small\nnum_layers: 13\n")
    result = cli("pretrain", "model=big", "--config-dir", "own")
    assert (result.code, result.err.count("error:")) == (2, 1)
    assert "own/model/big.yaml" in result.err
    assert "`- gpt/small@_here_`" in result.err


def test_a_choice_may_be_null(tmp_path: Path) -> None:
    assert one("experiment=null").config.train.steps is None
    write(tmp_path / "evaluate.yaml", "defaults:\n  - data: python_code\n  - _self_\n")
    words = ["init_from=run", "data=null"]
    assert one(*words, verb="evaluate").config.data is None
    assert one(*words, verb="evaluate", config_dir=tmp_path).config.data is None
    assert one(*words[:1], verb="evaluate", config_dir=tmp_path).config.data.kind == "python_code"


def test_the_last_of_several_counts() -> None:
    config = one("model=gpt/small", "train.steps=1", "model=gpt/tiny", "train.steps=2").config
    assert (config.model.dim, config.train.steps) == (256, 2)


def test_own_root_file_and_folder_with_odd_name(tmp_path: Path) -> None:
    folder = tmp_path / "my, 'own' dir"
    text = "defaults:\n  - model: gpt/debug\n  - objective: causal\n  - data: python_code\n"
    text += "  - tokenizer: bytes\n  - optim: adamw\n  - _self_\ntrain:\n  sequence_length: 16\n"
    write(folder / "pretrain.yaml", text)
    with pytest.raises(Exception, match="needs a choice of 'schedule'"):
        one(config_dir=folder)
    write(folder / "pretrain.yaml", text.replace("  - _self_", "  - schedule: constant\n  - _self_"))
    assert one(config_dir=folder).config.train.sequence_length == 16


def test_yaml_problems_name_file_and_line(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "own/model/bad.yaml", "kind: gpt\ndim: 64\nnum_heads: [1\n")
    result = cli("pretrain", "model=bad", "train.stesp=3", "--config-dir", "own")
    assert result.code == 2
    assert "own/model/bad.yaml:" in result.err
    assert "train.steps" in result.err


def test_range_error_in_a_file_names_it(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "own/model/bad.yaml", "kind: gpt\ndim: 64\nnum_heads: 0\n")
    assert "where: own/model/bad.yaml:3" in cli("pretrain", "model=bad", "--config-dir", "own").err


def test_environment_values_are_used_but_not_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/data")
    monkeypatch.setenv("API_KEY", "hush-hush")
    words = ["data=text", 'data.paths=["${oc.env:WHERE}/a.txt"]', "extra.key=${oc.env:API_KEY}"]
    composed = one(*words, "extra.again=${extra.key}!")
    assert composed.config.data.paths == ["/data/a.txt"]
    assert "hush-hush" not in str(composed.config)
    result = cli("pretrain", *words, "extra.again=${extra.key}!", "--cfg", "job")
    assert "${oc.env:WHERE}/a.txt" in result.out
    assert "hush" not in result.out
    assert "/data/" not in result.out
    refused = cli("pretrain", "run.name=${oc.env:API_KEY}")
    assert refused.code == 2
    assert "hush" not in refused.err


def test_sweeps_expand_to_the_cross_product() -> None:
    trials = compose(
        "pretrain",
        ["optim.lr=1e-3,3e-4", "model=glob([gpt/d*,gpt/t*])", "train.sequence_length=64"],
        None,
        True,
    )
    assert [(one.config.optim.lr, one.choices["model"]) for one in trials] == [
        (1e-3, "gpt/debug"),
        (1e-3, "gpt/tiny"),
        (3e-4, "gpt/debug"),
        (3e-4, "gpt/tiny"),
    ]
