"""Help, version, `configs`, completion, and what the process turns into."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain import __version__
from llmtrain.command.completion import candidates, script
from llmtrain.schema.load import field_types
from llmtrain.schema.roots import ROOTS

Cli = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of Python in a process of its own."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=variables, timeout=60
    )


@pytest.mark.parametrize(
    ("words", "forbidden", "limit"),
    [
        (["--help"], ("torch", "hydra", "numpy", "rich"), 0.3),
        (["pretrain", "--help"], ("torch", "hydra", "numpy"), 0.5),
        (["configs", "ls"], ("torch", "hydra", "numpy"), 0.3),
        (["--complete", "pretrain", "model="], ("torch", "hydra", "numpy"), 0.3),
        (["pretrain", "modle.dim=3", "model=gpt/smal"], ("torch", "numpy", "datasets"), 0.8),
        (["pretrain", "experiment=debug", "--cfg", "job"], ("torch", "numpy", "datasets"), 0.8),
    ],
)
def test_quick_and_without_torch(words: list[str], forbidden: tuple[str, ...], limit: float) -> None:
    code = (
        "import sys, time; from llmtrain.cli import main; main(sys.argv[1:]);"
        "print(time.process_time(), *sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    attempts = [python(code, *words).stderr.splitlines()[-1].split() for _ in range(2)]
    assert not set(attempts[0][1:]) & set(forbidden)
    assert min(float(attempt[0]) for attempt in attempts) < 2 * limit  # twice: the machine may be slow


def test_help(cli: Cli) -> None:
    text = cli("--help").out
    for word in (*ROOTS, "configs", "gpt/small", "--config-dir", "--dry-run", "experiment=debug"):
        assert word in text
    assert "\x1b" not in text
    assert cli("--version").out == f"llmtrain {__version__}\n"
    assert cli().code == 2


@pytest.mark.parametrize("verb", ROOTS)
def test_help_of_a_verb_has_every_key(cli: Cli, verb: str) -> None:
    text = cli(verb, "--help").out
    for name in field_types(ROOTS[verb]):
        assert name in text
    if verb == "pretrain":
        assert "optim.beta2" in text
        assert "auto|fp32|bf16|fp16 [auto]" in text
        assert "Biases in linear layers" in text


def test_help_tells_the_defaults_of_the_verb(cli: Cli, tmp_path: Path) -> None:
    """Those of its YAML file, not of the schema; your own file counts too."""
    text = cli("finetune", "--help").out
    assert "optim.lr                      float [0.0001]" in text
    assert "eval.every                    int [null]" in text
    assert "constant  cosine  [linear]" in text
    assert "llmtrain finetune -m run.seed=1,2,3" in text
    (tmp_path / "finetune.yaml").write_text("defaults: [{task: classification/sst2}]\noptim: {lr: 0.5}\n")
    text = cli("finetune", "--help", "--config-dir", str(tmp_path)).out
    assert "float [0.5]" in text
    assert "[classification/sst2]" in text


def test_help_is_coloured_on_a_terminal_only(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    from llmtrain.command.style import Style

    assert Style().colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Style().colour


def test_configs_ls_cat_cp(cli: Cli, tmp_path: Path) -> None:
    assert "model=gpt/small" in cli("configs", "ls").out
    listing = cli("configs", "ls", "model").out
    assert "GPT-2 small" in listing
    assert "adamw" not in listing
    assert yaml.safe_load(cli("configs", "cat", "model/gpt/small").out)["dim"] == 768
    assert cli("configs", "cat", "model=gpt/small").code == 0
    assert cli("configs", "cp", "model/gpt/small", "mine").code == 0
    copy = tmp_path / "mine/model/gpt/small.yaml"
    copy.write_text(copy.read_text().replace("768", "384"))
    again = cli("configs", "cp", "model/gpt/small", "mine")
    assert again.code == 2
    assert "is there already" in again.err
    shown = yaml.safe_load(cli("pretrain", "model=gpt/small", "--cfg", "job", "--config-dir", "mine").out)
    assert shown["model"]["dim"] == 384
    assert "384" in cli("configs", "cat", "model/gpt/small", "--config-dir=mine").out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pre"], {"pretrain", "prepare", "predict"}),
        (["pretrain", "mod"], {"model=", "model."}),
        (["pretrain", "model=gpt/d"], {"model=gpt/debug"}),
        (["pretrain", "model=gpt/d", "train.s"], {"train.steps=", "train.sequence_length="}),
        (["pretrain", "precision=f"], {"precision=fp32", "precision=fp16"}),
        (["pretrain", "model.bias="], {"model.bias=true", "model.bias=false"}),
        (["pretrain", "--c"], {"--config-dir", "--cfg"}),
        (["pretrain", "--cfg", ""], {"job"}),
        (["configs", "c"], {"cat", "cp", "check"}),
        (["configs", "cat", "model/gpt/d"], {"model/gpt/debug"}),
        (["generate", "sample.top"], {"sample.top_k=", "sample.top_p="}),
    ],
)
def test_completion(words: list[str], expected: set[str]) -> None:
    assert set(candidates(words)) == expected


def test_completion_of_own_choices(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text("kind: gpt\n")
    assert candidates(["pretrain", "--config-dir", str(tmp_path), "model=m"]) == ["model=mine"]


def test_completion_in_bash(tmp_path: Path) -> None:
    program = f"""
    llmtrain() {{ {sys.executable} -m llmtrain "$@"; }}
    {script("bash")}
    complete_line() {{
        COMP_LINE="$1"; COMP_POINT=${{#1}}; COMPREPLY=()
        _llmtrain
        echo "${{COMPREPLY[*]}}"
    }}
    complete_line "llmtrain pretrain model=gpt/d"
    complete_line "llmtrain pretrain optim=adamw train.st"
    complete_line "llmtrain "
    """
    result = subprocess.run(
        ["bash", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.stdout.splitlines() == [
        "gpt/debug",
        "train.steps=",
        "pretrain finetune prepare evaluate predict generate chat convert verify runs configs doctor",
    ]


def test_verbs_without_run_directory_get_their_config(cli: Cli, tmp_path: Path) -> None:
    module, verb, text = cli("generate", "init_from=run", "prompt=Hi").executed
    assert (module, verb) == ("llmtrain.worker", "generate")
    assert json.loads(text)["prompt"] == "Hi"
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_the_config_and_makes_nothing(cli: Cli, tmp_path: Path) -> None:
    result = cli("pretrain", "experiment=debug", "--dry-run")
    assert result.executed[:2] == ["llmtrain.worker", "pretrain"]
    assert json.loads(result.executed[2])["train"]["steps"] == 20
    assert list(tmp_path.iterdir()) == []
    assert yaml.safe_load(result.out)["verb"] == "pretrain"
    assert cli("generate", "init_from=run", "--dry-run").code == 0
    assert cli("finetune", "init_from=run", "task.paths=[a.tsv]", "--dry-run").executed[1] == "finetune"


def test_several_processes_are_launched(cli: Cli) -> None:
    assert cli("pretrain", "launch.num_processes=2", "run.name=two").executed[0] == "llmtrain.launch"
    assert cli("pretrain", "run.name=one", "launch.device=cpu").executed[0] == "llmtrain.worker"


def test_degrees_make_the_number_of_processes(cli: Cli) -> None:
    result = cli("pretrain", "parallel.tp=2", "launch.device=cpu", "run.name=two")
    assert result.executed[0] == "llmtrain.launch"
    assert result.err == ""
    result = cli("pretrain", "parallel=fsdp", "launch.device=cpu", "run.name=one")
    assert result.executed[0] == "llmtrain.worker"
    assert "warning: parallel.dp_shard=-1 gets 1 of 1 processes: give launch.num_processes=N" in result.err
    result = cli("pretrain", "parallel.tp=2", "launch.device=cpu", "--dry-run")
    assert json.loads(result.executed[2])["launch"]["num_processes"] == 2


def test_under_torchrun(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert cli("pretrain", "run.name=here").executed == ["llmtrain.worker", "-"]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("RANK", "0")
    result = cli("pretrain", "run.name=here", "launch.num_processes=4")
    assert result.executed == ["llmtrain.worker", str(tmp_path / "runs/here")]
    assert "launch.num_processes is ignored" in result.err
    assert cli("pretrain", "-m", "optim.lr=1,2").code == 2
    assert cli("generate", "init_from=run").code == 2


def test_print_into_a_closed_pipe(tmp_path: Path) -> None:
    program = f"{sys.executable} -m llmtrain pretrain --help | head -1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "Traceback" not in result.stderr
    assert result.stdout.splitlines()[-1] == "0"
