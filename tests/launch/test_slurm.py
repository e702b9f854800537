"""The templates for Slurm, with stand-ins for its commands: what they start, and what a signal does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.helpers.processes import wait_until

SCRIPTS = Path(__file__).parents[2] / "scripts" / "slurm"
NAMES = ["single_node.sh", "multi_node.sh", "array.sh"]
PROGRAM = """#!/usr/bin/env bash
# Tells its words; ends with $FAKE_CODE, or when it is asked to save with $SAVED_CODE after a moment.
printf '%s\\n' "$(basename "$0")" "$@" > "$FAKE/words.tmp"
trap 'sleep 0.3; touch "$FAKE/saved"; exit $SAVED_CODE' USR1
mv "$FAKE/words.tmp" "$FAKE/words"
[[ -n $FAKE_CODE ]] && exit "$FAKE_CODE"
while true; do sleep 0.05; done
"""
COMMANDS = {
    "llmtrain": PROGRAM,
    "torchrun": PROGRAM,
    # Like srun, in another session than the script, on one "node".
    "srun": """#!/usr/bin/env bash
    [[ $1 == --kill-on-bad-exit=0 ]] && shift
    setsid "$@" &
    echo $! > "$FAKE/step"
    wait $!
    """,
    "scancel": """#!/usr/bin/env bash
    [[ $1 == --signal=USR1 && $2 == 4711 ]] && kill -USR1 "$(cat "$FAKE/step")"
    """,
    "scontrol": """#!/usr/bin/env bash
    if [[ $1 == show ]]; then printf 'alpha\\nbeta\\n'; else echo "$*" > "$FAKE/scontrol"; fi
    """,
}


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A directory with stand-ins for the commands, and a file of trials."""
    for name, text in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "trials.txt").write_text("optim.lr=1\noptim.lr=2 'data.paths=[\"a b.txt\"]'\n")
    return tmp_path


def submit(script: str, cluster: Path, *words: str, code: str = "", saved: int = 75) -> subprocess.Popen[str]:
    """Run a script as Slurm would."""
    variables = {
        "PATH": f"{cluster / 'bin'}:{os.environ['PATH']}",
        "FAKE": str(cluster),
        "FAKE_CODE": code,
        "SAVED_CODE": str(saved),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "alpha,beta",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_ARRAY_TASK_ID": "2",
    }
    return subprocess.Popen(
        ["bash", str(SCRIPTS / script), *words],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def words_of(script: str, cluster: Path) -> list[str]:
    """Words for a script, in front of those for llmtrain."""
    return [str(cluster / "trials.txt")] if script == "array.sh" else []


@pytest.mark.parametrize("name", NAMES)
def test_the_script_is_valid(name: str) -> None:
    path = SCRIPTS / name
    assert os.access(path, os.X_OK)
    assert "Never run on a cluster" in path.read_text()
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(path)], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_saves_and_queues_again(name: str, cluster: Path) -> None:
    first = words_of(name, cluster)
    # torchrun ends with 1 even where its workers have saved
    script = submit(name, cluster, *first, "pretrain", "x=[1 2]", saved=1 if name == "multi_node.sh" else 75)
    wait_until((cluster / "words").exists, what="the start of the run")
    script.send_signal(signal.SIGUSR1)
    out, err = script.communicate(timeout=20)
    assert (script.returncode, out, err) == (75, "", "")
    assert (cluster / "saved").exists(), "the script did not wait for the run"
    assert (cluster / "scontrol").read_text() == "requeue 4711\n"
    words = (cluster / "words").read_text().splitlines()
    if name == "multi_node.sh":
        assert words[0] == "torchrun"
        assert {"--nnodes=2", "--nproc-per-node=4", "--rdzv-backend=c10d"} < set(words)
        assert "--rdzv-endpoint=alpha:24711" in words
        assert "--rdzv-id=4711-0" in words
        assert words[-4:] == ["-m", "llmtrain", "pretrain", "x=[1 2]"]
    elif name == "array.sh":
        assert words == ["llmtrain", "pretrain", "x=[1 2]", "optim.lr=2", 'data.paths=["a b.txt"]']
    else:
        assert words == ["llmtrain", "pretrain", "x=[1 2]"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("code", ["0", "3"])
def test_an_end_without_a_signal_is_final(name: str, code: str, cluster: Path) -> None:
    script = submit(name, cluster, *words_of(name, cluster), "pretrain", code=code)
    script.communicate(timeout=20)
    assert script.returncode == int(code)
    assert not (cluster / "scontrol").exists()


@pytest.mark.parametrize("name", NAMES)
def test_words_are_needed(name: str, cluster: Path) -> None:
    script = submit(name, cluster, *words_of(name, cluster))
    assert "give the words of llmtrain" in script.communicate(timeout=20)[1]
    assert script.returncode != 0


def test_an_array_longer_than_its_file(cluster: Path) -> None:
    (cluster / "short.txt").write_text("run.seed=1\n")
    script = submit("array.sh", cluster, str(cluster / "short.txt"), "pretrain")
    assert "has no line 2" in script.communicate(timeout=20)[1]
    assert script.returncode == 2
