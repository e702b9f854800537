"""Running the real command as a user would, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.helpers.paths import ROOT


def environment(**changes: str) -> dict[str, str]:
    """The environment of a child process: this checkout first, no run in progress."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("RANK", "WORLD_SIZE"))
    }
    return inherited | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"} | changes


def command(*arguments: str) -> list[str]:
    """`llmtrain ARGUMENTS` as a list for subprocess."""
    return [sys.executable, "-m", "llmtrain", *arguments]


def llmtrain(
    *arguments: str, cwd: Path, timeout: float = 120, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `llmtrain` to its end; a run that takes too long is killed and fails the test."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def succeed(*arguments: str, cwd: Path, **env: str) -> str:
    """Run `llmtrain`, expect exit code 0, return what it printed."""
    done = llmtrain(*arguments, cwd=cwd, **env)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def start(*arguments: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    """Start `llmtrain` and return at once."""
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 90) -> None:
    """Wait for something that a running process brings about; fails if it ends or takes too long before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, (
            f"the process ended with {process.returncode}: {process.communicate()[0]}"
        )
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def kill(process: subprocess.Popen[str]) -> None:
    """kill -9 for the process that was started (not for its children), and reap it."""
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)


def metrics(run: Path, kind: str = "train") -> list[dict]:
    """The reports of one kind in a run's metrics.jsonl; a line cut short is left out."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [record for record in records if record["kind"] == kind]


def curve(run: Path, *names: str) -> list[tuple]:
    """(step, values...) of every training report; default: loss and gradient norm."""
    names = names or ("loss", "gradient_norm")
    return [(record["step"], *(record[name] for name in names)) for record in metrics(run)]


def validation_curve(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of every evaluation."""
    return [(record["step"], record["validation_loss"]) for record in metrics(run, "validation")]


def tensor_bytes(checkpoint: Path) -> dict[str, bytes]:
    """Every tensor of a checkpoint, bit by bit; its parts one after another in the order of the files."""
    from safetensors import safe_open

    tensors: dict[str, bytes] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                tensors[key] = tensors.get(key, b"") + file.get_tensor(key).tobytes()
    assert tensors, f"no tensors in {checkpoint}"
    return tensors
