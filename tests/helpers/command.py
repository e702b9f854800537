"""Running the real command as a user would, in a process of its own.

The process is forked from a server in which torch and our program are imported already (`Warm`): importing
them takes longer than most of the runs here. `fresh=True` starts a new interpreter instead, for what is about
the start itself, and for runs that others are compared with bit by bit (sets iterate otherwise there).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from llmtrain.utils.signals import hold_signals
from tests.helpers.paths import ROOT
from tests.helpers.processes import warm_context


def environment(**changes: str) -> dict[str, str]:
    """The environment of a child process: this checkout first, no run in progress."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("RANK", "WORLD_SIZE"))
    }
    return inherited | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"} | changes


def command(*arguments: str) -> list[str]:
    """`llmtrain ARGUMENTS` as a list for subprocess."""
    return [sys.executable, "-m", "llmtrain", *arguments]


class Warm:
    """`llmtrain` in a process of its own, with what `subprocess.Popen` offers of it.

    Args:
        arguments: words of the command line.
        cwd: where it is started.
        env: its whole environment.
        apart: keep standard error apart from standard output.
    """

    def __init__(
        self, arguments: tuple[str, ...], cwd: Path, env: dict[str, str], apart: bool = False
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="llmtrain-test-")
        self._out, self._err = (Path(self._folder.name) / name for name in ("out", "err" if apart else "out"))
        self._process = warm_context().Process(
            target=_in_the_child, args=(arguments, str(cwd), env, str(self._out), str(self._err))
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Of the process, or None while it runs; -9 where it was killed."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        """The exit code; a process that takes too long is killed.

        Raises:
            subprocess.TimeoutExpired: it was.
        """
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            self._process.join()
            raise subprocess.TimeoutExpired("llmtrain", timeout, self._out.read_text(errors="replace"))
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the end; what was printed. Standard error is empty unless it was to be kept apart."""
        self.wait(timeout)
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in (self._out, self._err))
        return out, err if self._err != self._out else ""


def _in_the_child(arguments: tuple[str, ...], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    """The whole command; where it would turn into another program of ours, that one's `main` is called."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for path, descriptor in ((out, 1), (err, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    from llmtrain import cli, launch, worker

    def execute(module: str, *words: str) -> NoReturn:
        hold_signals()
        if module == "llmtrain.worker":
            worker.leave(worker.main(list(words)))
        assert module == "llmtrain.launch", module
        sys.exit(launch.main(list(words)))

    cli.execute = execute  # type: ignore[assignment]
    sys.exit(cli.main(list(arguments)))


def llmtrain(
    *arguments: str, cwd: Path, timeout: float = 120, fresh: bool = False, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `llmtrain` to its end; a run that takes too long is killed and fails the test."""
    if fresh:
        return subprocess.run(
            command(*arguments),
            cwd=cwd,
            env=environment(**env),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    process = Warm(arguments, cwd, environment(**env), apart=True)
    out, err = process.communicate(timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess(command(*arguments), process.returncode, out, err)


def succeed(*arguments: str, cwd: Path, fresh: bool = False, **env: str) -> str:
    """Run `llmtrain`, expect exit code 0, return what it printed."""
    done = llmtrain(*arguments, cwd=cwd, fresh=fresh, **env)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def start(*arguments: str, cwd: Path, **env: str) -> Warm:
    """Start `llmtrain` and return at once."""
    return Warm(arguments, cwd, environment(**env))


def start_fresh(*arguments: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    """Start `llmtrain` in a new interpreter and return at once; its output goes through a pipe."""
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_until(
    condition: Callable[[], bool], process: Warm | subprocess.Popen[str], seconds: float = 90
) -> None:
    """Wait for something that a running process brings about; fails if it ends or takes too long before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, (
            f"the process ended with {process.returncode}: {process.communicate(timeout=20)[0]}"
        )
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def kill(process: Warm) -> None:
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
