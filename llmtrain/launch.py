"""Several workers on one machine: `python -m llmtrain.launch RUN`.

The workers run under torch's elastic agent. What differs from `torchrun`:

- Nothing listens beyond loopback: the agent's rendezvous is a file, the workers meet in another file.
- SIGTERM, SIGINT and SIGUSR1 are passed on once; the workers save and their exit code (143, 130, 75) is
  ours. Torch's agent would wait 30 seconds, exit 1, and die of SIGUSR1.
- A worker that fails ends the run at once, and one message says which, why, and where its log is. Torch's
  agent would ask the others with SIGTERM to stop, which for our workers means "save": they cannot without
  the one that is gone.

For that, one method of the agent that watches the workers and one that ends them are replaced
(`run_agent`); starting them, their environment and ranks stay torch's.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from llmtrain.command.environment import count_processes
from llmtrain.utils.errors import ConfigError, ExitCode, Problem, UserError
from llmtrain.utils.machine import num_cores
from llmtrain.utils.outcome import Outcome
from llmtrain.utils.processes import signal_name
from llmtrain.utils.run_directory import RunDirectory
from llmtrain.utils.signals import EXIT_CODE_OF_SIGNAL, hold_signals, release_signals

GRACE = 30 * 60.0
"""Seconds that workers have to save after a signal."""

PEER_GRACE = 1.0
"""Seconds that the others have to end by themselves when a worker is gone: they may tell more."""

MONITOR_INTERVAL = 0.05
"""Seconds between looks at the workers."""

ORDERLY = frozenset({ExitCode.OK, *EXIT_CODE_OF_SIGNAL.values()})
"""Exit codes of a worker that is done or has saved."""


class StopRequests:
    """The signals that reached the launcher.

    Attributes:
        first: number of the first signal that asks to stop, which alone is passed on; 0 before.
        interrupts: how often SIGINT (Ctrl-C) came; the second one means "at once".
    """

    def __init__(self) -> None:
        self.first = 0
        self.interrupts = 0

    def install(self) -> None:
        """Handle the signals in this process from now on."""
        for number in EXIT_CODE_OF_SIGNAL:
            signal.signal(number, self._handle)
        release_signals()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.first = self.first or number
        self.interrupts += number == signal.SIGINT


@dataclass(frozen=True)
class End:
    """How one worker ended.

    Attributes:
        code: what it told us, else its exit code; negative: killed by that signal.
    """

    rank: int
    code: int
    time: float
    message: str = ""

    @classmethod
    def of(cls, rank: int, return_code: int, outcome: Outcome | None) -> End:
        """Put together what the system says and what the worker left behind."""
        if outcome is None:
            return cls(rank, return_code, time.time())
        return cls(rank, outcome.exit_code, outcome.time, outcome.message)

    def blame(self) -> tuple[bool, float]:
        """Smaller is nearer to the cause: a lost peer makes the others end with exit code 1 or abort."""
        explained = ExitCode.CONFIG <= self.code <= ExitCode.MEMORY
        killed = self.code < 0 and self.code != -signal.SIGABRT
        return (not explained and not killed, self.time)


class Supervisor:
    """Watches the workers, passes signals on, and decides how the run ended. Knows nothing of torch.

    Args:
        run: where outcomes and logs are.
        stop: signals that reached us.
        grace: seconds for saving after a signal.
    """

    def __init__(self, run: RunDirectory, stop: StopRequests, grace: float = GRACE) -> None:
        self.run = run
        self.stop = stop
        self.grace = grace
        self.ends: dict[int, End] = {}
        self.forwarded_at: float | None = None
        self.lost_at: float | None = None
        self.overdue = False

    def poll(self, workers: Mapping[int, subprocess.Popen[Any]]) -> bool:
        """One look at the workers (by rank); True when the run is over, whoever still lives."""
        now = time.monotonic()
        for rank, worker in workers.items():
            if rank not in self.ends and (code := worker.poll()) is not None:
                self.ends[rank] = End.of(rank, code, Outcome.read(self.run.outcome(rank)))
        if len(self.ends) == len(workers) or self.stop.interrupts > 1:
            return True
        if self.stop.first and self.forwarded_at is None:
            self.forwarded_at = now
            for rank, worker in workers.items():
                if rank not in self.ends:
                    worker.send_signal(self.stop.first)
        if self.lost_at is None and any(end.code not in ORDERLY for end in self.ends.values()):
            self.lost_at = now
        self.overdue = self.forwarded_at is not None and now - self.forwarded_at > self.grace
        return self.overdue or (self.lost_at is not None and now - self.lost_at > PEER_GRACE)

    def conclude(self) -> tuple[int, str]:
        """Exit code of the launcher, and what to tell the user (empty: nothing)."""
        if self.stop.interrupts > 1:
            return ExitCode.INTERRUPT, ""
        failures = [end for end in self.ends.values() if not self._is_orderly(end)]
        if failures:
            first = min(failures, key=End.blame)
            return (first.code if first.code > 0 else ExitCode.BUG), self._explain(first)
        if self.overdue:
            what = f"the workers did not save within {self.grace / 60:g} minutes and were killed"
            fix = "run the same command again: it goes on from the last checkpoint"
            return ExitCode.HANG, str(Problem(what, str(self.run.logs), fix))
        codes = [end.code for _, end in sorted(self.ends.items()) if end.code > 0]
        if codes:
            return codes[0], ""
        if not self.ends or any(end.code < 0 for end in self.ends.values()):
            return EXIT_CODE_OF_SIGNAL[self.stop.first], ""  # before there was anything to save
        return ExitCode.OK, ""

    def _is_orderly(self, end: End) -> bool:
        """Done, saved, or killed by the signal that was passed on before it could handle it."""
        return end.code in ORDERLY or (self.stop.first != 0 and end.code == -self.stop.first)

    def _explain(self, end: End) -> str:
        """Three lines: what happened to which worker, where to look, what to do."""
        log = str(self.run.rank_log(end.rank))
        if end.code < 0:
            what = f"rank {end.rank} was killed by signal {-end.code} ({signal_name(-end.code)})"
            fix = "read the end of its log"
            if -end.code == signal.SIGKILL:
                fix = (
                    "if nobody sent it, the kernel's out-of-memory killer did (see `dmesg`): "
                    "lower train.micro_batch_size or launch.num_processes"
                )
            return str(Problem(what, log, fix))
        problem, rest = _parse_problem(end.message)
        what = f"rank {end.rank} failed with exit code {end.code}"
        what += f": {problem.what}" if problem.what else ""
        where = f"{problem.where} (log: {log})" if problem.where else log
        return "\n".join([str(Problem(what, where, problem.fix or "read the end of its log")), *rest])


def _parse_problem(message: str) -> tuple[Problem, list[str]]:
    """The first problem of a message that `str(UserError)` made, and the lines after it."""
    parts = {"error": "", "where": "", "do": ""}
    lines = message.strip().splitlines()
    while lines:
        key, separator, value = lines[0].partition(": ")
        key = key.strip()
        if not separator or not parts.keys() & {key} or parts[key]:
            break
        parts[key] = value
        lines.pop(0)
    if not any(parts.values()) and lines:
        parts["error"] = lines.pop(0)
    return Problem(parts["error"], parts["where"], parts["do"]), lines


def read_launch_config(run: RunDirectory) -> dict[str, Any]:
    """The section `launch` of the run's config, as plain data.

    Raises:
        ConfigError: the run directory has no readable config.
    """
    try:
        config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"cannot read the run's config: {error}", str(run.config), "give a run directory"
        ) from None
    section = config.get("launch") if isinstance(config, dict) else None
    return section if isinstance(section, dict) else {}


def worker_environment(run: RunDirectory, num_processes: int, config: dict[str, Any]) -> dict[str, str]:
    """What the workers find in their environment besides the ranks, which torch's agent sets."""
    threads = (
        config.get("threads") or os.environ.get("OMP_NUM_THREADS") or max(1, num_cores() // num_processes)
    )
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return {
        "LLMTRAIN_PARENT": str(os.getpid()),
        "LLMTRAIN_STORE": str(run.launch / f"store-{uuid.uuid4().hex[:12]}"),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "OMP_NUM_THREADS": str(threads),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # of the agent: do not open a TCPStore for the workers
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "",  # of the agent: leave our handlers alone
    }


def run_agent(run: RunDirectory, supervisor: Supervisor, num_processes: int, module: str) -> None:
    """Start the workers under torch's elastic agent and return when all have ended."""
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    class Agent(LocalElasticAgent):
        """Torch's agent, with our own way to watch and to end the workers."""

        def _workers(self) -> dict[int, subprocess.Popen[Any]]:
            context = self._pcontext
            if not isinstance(context, SubprocessContext):
                return {}
            return {rank: handler.proc for rank, handler in context.subprocess_handlers.items()}

        def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
            hold_signals()  # each worker lets them in when it is ready for them
            try:
                return super()._start_workers(worker_group)
            finally:
                release_signals()

        def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
            if not supervisor.poll(self._workers()):
                return RunResult(state=WorkerState.HEALTHY)
            self._shutdown()
            # "Succeeded" ends the agent's loop; whether it is true is the supervisor's business.
            return RunResult(state=WorkerState.SUCCEEDED, return_values=dict.fromkeys(range(num_processes)))

        def _shutdown(self, death_sig: signal.Signals = signal.SIGKILL, timeout: int = 30) -> None:
            super()._shutdown(signal.SIGKILL, timeout)  # each worker with its own children

    class InheritedOutput(LogsSpecs):
        """The workers print where we print, or redirect themselves."""

        def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
            here = dict.fromkeys(envs, "")
            return LogsDest(stdouts=here, stderrs=here, error_files=here)

        @property
        def root_log_dir(self) -> str:
            return ""

    handler = get_rendezvous_handler(
        RendezvousParameters(
            backend="c10d",
            endpoint=str(run.launch / "rendezvous"),
            run_id="llmtrain",
            min_nodes=1,
            max_nodes=1,
            local_addr="localhost",
            store_type="file",
            keep_alive_interval=3600,  # there is no second agent, and each heartbeat makes the file grow
        )
    )
    spec = WorkerSpec(
        role="worker",
        local_world_size=num_processes,
        rdzv_handler=handler,
        entrypoint=sys.executable,
        # The agent takes arguments for templates: `$` has to be doubled to stay.
        args=("-m", module, str(run.path).replace("$", "$$")),
        max_restarts=0,
        monitor_interval=MONITOR_INTERVAL,
    )
    agent = Agent(spec, logs_specs=InheritedOutput(), exit_barrier_timeout=10)
    try:
        if not supervisor.stop.first:
            agent.run()
    finally:
        handler.shutdown()


def silence_torch() -> None:
    """Keep the agent's own reports off the terminal: what matters is said by us."""
    logger = logging.getLogger("torch.distributed.elastic")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


def launch(path: Path, module: str = "llmtrain.worker", grace: float = GRACE) -> int:
    """Run all workers of one run to their end.

    Args:
        path: run directory with `config.yaml`; its lock is held by whoever calls.
        module: what each worker runs, with the run directory as argument.
        grace: seconds for saving after a signal.

    Returns:
        the exit code; what the user has to know is printed.

    Raises:
        UserError: the run directory cannot be used.
    """
    stop = StopRequests()
    stop.install()
    run = RunDirectory(path.resolve())
    config = read_launch_config(run)
    num_processes = count_processes(config.get("num_processes"), config.get("device", "auto"))
    shutil.rmtree(run.launch, ignore_errors=True)  # of the last launch; the lock says that it is over
    run.launch.mkdir(parents=True)
    os.environ.update(worker_environment(run, num_processes, config))
    silence_torch()
    supervisor = Supervisor(RunDirectory(path), stop, grace)
    run_agent(run, supervisor, num_processes, module)
    exit_code, message = supervisor.conclude()
    if message:
        print(message, file=sys.stderr, flush=True)
    return exit_code


def main(arguments: list[str]) -> int:
    """Entry point of `python -m llmtrain.launch RUN`."""
    try:
        if len(arguments) != 1:
            raise ConfigError(
                "one argument is needed: the run directory", "llmtrain.launch", "start `llmtrain`"
            )
        return launch(Path(arguments[0]))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
