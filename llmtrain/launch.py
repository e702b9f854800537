"""Several workers on one machine: `python -m llmtrain.launch RUN`.

The workers run under torch's elastic agent. What differs from `torchrun`:

- Nothing listens beyond loopback: the agent's rendezvous is a file, the workers meet in another file.
- SIGTERM, SIGINT and SIGUSR1 are passed on once; the workers save and their exit code (143, 130, 75) is
  ours. Torch's agent would wait 30 seconds, exit 1, and die of SIGUSR1.
- A worker that fails ends the run at once, and one message says which, why, and where its log is. Torch's
  agent would ask the others with SIGTERM to stop, which for our workers means "save": they cannot without
  the one that is gone.
- A worker that is killed is a worker lost: all start again from the last checkpoint (`Supervisor.lost`,
  `command.restart`). An error that a worker tells of would come again, so that it ends the run.

For that, one method of the agent that watches the workers and one that ends them are replaced
(`run_agent`); starting them, their environment and ranks stay torch's.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import yaml

from llmtrain.command.placement import place
from llmtrain.command.restart import Restarts
from llmtrain.command.supervisor import GRACE, StopRequests, Supervisor
from llmtrain.schema.fields import LaunchConfig
from llmtrain.schema.load import build
from llmtrain.schema.parallel import ParallelConfig, count_processes
from llmtrain.schema.registry import builtin_registry
from llmtrain.utils import garbage
from llmtrain.utils.errors import ConfigError, UserError
from llmtrain.utils.machine import CORES, ranges
from llmtrain.utils.run_directory import RunDirectory
from llmtrain.utils.signals import hold_signals, release_signals

MONITOR_INTERVAL = 0.05
"""Seconds between looks at the workers."""


def read_section(run: RunDirectory, name: str) -> dict[str, Any]:
    """A section of the run's config, as plain data.

    Raises:
        ConfigError: the run directory has no readable config.
    """
    try:
        config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"cannot read the run's config: {error}", str(run.config), "give a run directory"
        ) from None
    section = config.get(name) if isinstance(config, dict) else None
    return section if isinstance(section, dict) else {}


def read_launch(run: RunDirectory) -> tuple[LaunchConfig, int]:
    """What the run's config says about starting it, and the number of workers that it asks for.

    Raises:
        ConfigError: it cannot be read.
    """
    registry, where = builtin_registry(), str(run.config)
    config = build(LaunchConfig, read_section(run, "launch"), registry, where)
    parallel = build(ParallelConfig, read_section(run, "parallel"), registry, where)
    return config, count_processes(config, parallel)


def worker_environment(run: RunDirectory, num_processes: int, config: LaunchConfig) -> dict[str, str]:
    """What the workers find in their environment besides the ranks, which torch's agent sets, and the
    allocator, which is ours already."""
    placement = place(config, num_processes)
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return {
        "LLMTRAIN_PARENT": str(os.getpid()),
        "LLMTRAIN_STORE": str(run.launch / f"store-{uuid.uuid4().hex[:12]}"),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "OMP_NUM_THREADS": str(placement.threads),
        CORES: ";".join(map(ranges, placement.cores)),
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
    config, num_processes = read_launch(run)
    silence_torch()
    restarts = Restarts(run, config.max_restarts)
    while True:
        shutil.rmtree(run.launch, ignore_errors=True)  # of the last start; the lock says that it is over
        run.launch.mkdir(parents=True)
        os.environ.update(worker_environment(run, num_processes, config))
        supervisor = Supervisor(RunDirectory(path), stop, grace)
        run_agent(run, supervisor, num_processes, module)
        lost = supervisor.lost()
        if lost is None or not restarts.granted():
            break
        restarts.tell(lost.rank, lost.killed_by())
    exit_code, message = supervisor.conclude(restarts.history())
    if run.discard(exit_code):
        message = re.sub(r" \(log: .*\)$", "", message, flags=re.MULTILINE)  # it is gone
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
    garbage.seldom()  # before torch is imported
    code = main(sys.argv[1:])
    garbage.at_end()
    sys.exit(code)
