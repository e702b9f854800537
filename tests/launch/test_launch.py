"""The launcher with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmtrain.utils.io import lock_descriptor
from tests.helpers.processes import wait_until

ROOT = Path(__file__).parents[2]
START = (
    "import sys; from pathlib import Path; from llmtrain.launch import launch;"
    "sys.exit(launch(Path(sys.argv[1]), module=sys.argv[2], grace=float(sys.argv[3])))"
)
SLEEPING = ["sleep"]


class Job:
    """A launcher at work on one run directory."""

    def __init__(
        self, run: Path, module: str, grace: float, argument: str, cwd: Path, descriptor: int | None
    ) -> None:
        self.run = run
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, argument, f"tests.launch.workers.{module}", str(grace)],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[] if descriptor is None else [descriptor],
        )

    def pids(self, count: int = 2) -> list[int]:
        """Process ids of the workers, once all of them run."""
        wait_until(lambda: len(list(self.run.glob("pid-?"))) == count, what="the start of the workers")
        return [int((self.run / f"pid-{rank}").read_text()) for rank in range(count)]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, timeout: float = 60) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Starts jobs, and kills what is left of them."""
    jobs: list[Job] = []

    def begin(
        *script: list[Any],
        module: str = "scripted",
        grace: float = 20,
        num_processes: int = 2,
        name: str = "run",
        argument: str | None = None,
        cwd: Path = ROOT,
        descriptor: int | None = None,
        max_restarts: int = 3,
    ) -> Job:
        run = tmp_path / name
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text(
            f"verb: pretrain\nlaunch:\n  num_processes: {num_processes}\n  device: cpu\n  threads: null\n"
            f"  max_restarts: {max_restarts}\n"
        )
        (run / "script.json").write_text(json.dumps(script))
        jobs.append(Job(run, module, grace, argument or str(run), cwd, descriptor))
        return jobs[-1]

    yield begin
    for job in jobs:
        if job.process.poll() is None:
            job.process.kill()
            job.process.communicate()


def gone(pids: list[int]) -> bool:
    """Whether none of the processes runs any more."""
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


def assert_gone(pids: list[int], since: float) -> None:
    wait_until(lambda: gone(pids), timeout=10, what="the end of the workers")
    assert time.monotonic() - since < 2


def test_a_normal_run_from_elsewhere_with_an_odd_path(start: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    name = "my run $$ ${local_rank} ü"
    job = start(["end", 0], ["end", 0], name=name, argument=f"../{name}", cwd=tmp_path / "here")
    code, out, err = job.end()
    assert (code, err) == (0, "")
    assert out == "hello from 0\n"
    assert (job.run / "logs" / "rank1.log").read_text() == "hello from 1\n"
    environments = [json.loads((job.run / f"environment-{rank}.json").read_text()) for rank in range(2)]
    assert [environment["RANK"] for environment in environments] == ["0", "1"]
    for environment in environments:
        assert environment["WORLD_SIZE"] == environment["LOCAL_WORLD_SIZE"] == "2"
        assert environment["GLOO_SOCKET_IFNAME"] in ("lo", "lo0")
        assert environment["LLMTRAIN_PARENT"] == str(job.process.pid)
        assert Path(environment["LLMTRAIN_STORE"]).parent == job.run / ".launch"
        assert int(environment["OMP_NUM_THREADS"]) >= 1
    assert environments[0]["LLMTRAIN_STORE"] == environments[1]["LLMTRAIN_STORE"]


def test_workers_talk_over_loopback_only_and_stop_together(start: Callable[..., Job]) -> None:
    job = start(module="reducing")
    pids = job.pids()
    listening = [
        connection.laddr.ip
        for pid in (job.process.pid, *pids)
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or connection.type.name == "SOCK_DGRAM"
    ]
    assert listening, "gloo listens for its peers"
    assert set(listening) <= {"127.0.0.1", "::1"}
    assert psutil.Process(job.process.pid).net_connections("inet") == [], "the launcher needs no network"
    job.signal(signal.SIGTERM)
    assert job.end() == (143, "", "")
    assert [(job.run / f"total-{rank}").read_text() for rank in range(2)] == ["3.0", "3.0"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)],
    ids=lambda n: str(n),
)
def test_a_signal_lets_the_workers_save(start: Callable[..., Job], number: int, expected: int) -> None:
    job = start(SLEEPING, SLEEPING)
    job.pids()
    job.signal(number)
    time.sleep(0.05)
    for repeated in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):  # Slurm likes to say it again
        job.signal(repeated)
    assert job.end() == (expected, "hello from 0\n", "")
    assert (job.run / "saved-0").exists()
    assert (job.run / "saved-1").exists()


def test_a_signal_before_the_workers_run_ends_the_job(start: Callable[..., Job]) -> None:
    job = start(SLEEPING, SLEEPING)
    wait_until((job.run / ".launch").exists)
    job.signal(signal.SIGUSR1)
    code, _, err = job.end()
    assert (code, err) == (75, "")


def test_a_second_interrupt_leaves_at_once(start: Callable[..., Job]) -> None:
    job = start(["stubborn"], ["stubborn"])
    pids = job.pids()
    job.signal(signal.SIGINT)
    time.sleep(0.3)
    assert job.process.poll() is None
    since = time.monotonic()
    job.signal(signal.SIGINT)
    assert_gone(pids, since)
    assert job.end() == (130, "hello from 0\n", "")


def test_workers_that_do_not_save_in_time_are_killed(start: Callable[..., Job]) -> None:
    job = start(["stubborn"], ["stubborn"], grace=0.5)
    pids = job.pids()
    job.signal(signal.SIGTERM)
    code, _, err = job.end()
    assert code == 8
    assert "did not save" in err
    assert_gone(pids, time.monotonic())


def test_a_failing_worker_ends_the_run_with_its_code_and_message(start: Callable[..., Job]) -> None:
    message = "error: row 7 is not JSON\n  where: data.jsonl:7\n  do: repair the row"
    # Rank 0 loses its peer and fails a moment earlier: that must not hide the cause.
    job = start(["raise"], ["fail", 3, message, 0.3], SLEEPING, num_processes=3)
    pids = job.pids(3)
    assert_gone(pids, time.monotonic())
    code, _, err = job.end()
    assert code == 3
    said = err[err.index("error:") :]
    assert said == (
        "error: rank 1 failed with exit code 3: row 7 is not JSON\n"
        f"  where: data.jsonl:7 (log: {job.run}/logs/rank1.log)\n"
        "  do: repair the row\n"
    )
    assert "ChildFailedError" not in err
    assert err.count("Traceback") == 1, "rank 0's own, and none of the launcher's"


def events(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.run / "events.jsonl").read_text().splitlines()]


def test_all_workers_start_again_when_one_is_lost(start: Callable[..., Job]) -> None:
    job = start([["raise"], SLEEPING], [["die", 9, 7], SLEEPING])
    (job.run / "events.jsonl").write_text('{"event": "started"}\n{"event": "cut sh')
    wait_until(lambda: len(list(job.run.glob("start-1-?"))) == 2, what="the second start")
    pids = job.pids()
    job.signal(signal.SIGTERM)
    code, out, err = job.end()
    assert (code, out) == (143, "hello from 0\nhello from 0\n")
    assert (job.run / "saved-0").exists()
    assert (job.run / "saved-1").exists()
    assert_gone(pids, time.monotonic())
    told = (
        "warning: rank 1 was killed by signal 9 (SIGKILL); all workers start again from the checkpoint of "
        "step 7 (restart 1 of at most 3 without a new checkpoint)"
    )
    assert [line for line in err.splitlines() if line.startswith(("warning", "error"))] == [told]
    *_, last = (job.run / "events.jsonl").read_text().splitlines()
    event = json.loads(last)
    assert event.pop("time")
    assert event == {
        "event": "restarted",
        "text": told,
        "rank": 1,
        "reason": "was killed by signal 9 (SIGKILL)",
        "attempt": 1,
        "step": 7,
    }
    stores = {path.read_text() for path in job.run.glob("start-*")}
    assert len(stores) == 2, "each start has a store of its own"


def test_restarts_end_when_they_bring_nothing(start: Callable[..., Job]) -> None:
    job = start(SLEEPING, [["die", 11], ["die", 9]], max_restarts=1)
    code, _, err = job.end()
    assert code == 1
    assert [event["step"] for event in events(job)] == [0]
    lines = err.splitlines()
    assert len(lines) == 4
    assert "killed by signal 11 (SIGSEGV); all workers start again from the beginning" in lines[0]
    assert lines[1] == (
        "error: rank 1 was killed by signal 9 (SIGKILL), also after 1 restart without a new checkpoint"
    )


def test_kill_9_of_a_worker_ends_all(start: Callable[..., Job]) -> None:
    job = start(SLEEPING, SLEEPING, max_restarts=0)
    pids = job.pids()
    since = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    assert_gone(pids, since)
    code, out, err = job.end()
    assert (code, out) == (1, "hello from 0\n")
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "error: rank 1 was killed by signal 9 (SIGKILL)"
    assert lines[1] == f"  where: {job.run}/logs/rank1.log"
    assert "out-of-memory" in lines[2]


def test_kill_9_of_the_launcher_ends_all_and_frees_the_lock(
    start: Callable[..., Job], tmp_path: Path
) -> None:
    descriptor = lock_descriptor(tmp_path / "run" / ".lock")
    assert descriptor is not None
    job = start(SLEEPING, SLEEPING, descriptor=descriptor)
    os.close(descriptor)  # as after exec: only the launcher holds it now
    pids = job.pids()
    assert lock_descriptor(tmp_path / "run" / ".lock") is None
    for pid in pids:
        held = (
            [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
            if Path("/proc").exists()
            else []
        )
        assert not [path for path in held if path.endswith(".lock")], "the lock leaked into a worker"
    since = time.monotonic()
    job.process.kill()
    job.process.wait()
    assert lock_descriptor(tmp_path / "run" / ".lock") is not None
    assert_gone(pids, since)
    job.end()
    again = start(["end", 0], ["end", 0])  # what the killed one left in .launch does not matter
    assert again.end() == (0, "hello from 0\n", "")


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llmtrain.launch", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot read the run's config")
    assert len(done.stderr.splitlines()) == 3
