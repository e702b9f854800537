"""What each process runs: config -> process group -> recipe.

python -m llmtrain.worker RUN            a run directory with its config.yaml
python -m llmtrain.worker -              under torchrun: wait for rank 0 to tell the run directory
python -m llmtrain.worker VERB JSON      verbs that leave no run directory behind
"""

from __future__ import annotations

from llmtrain.utils import garbage

if __name__ == "__main__":
    garbage.seldom()  # before torch is imported

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch

from llmtrain.checkpoint.agree import gather_json
from llmtrain.recipe.chat import chat
from llmtrain.recipe.context import BUILDERS, Context
from llmtrain.recipe.convert import convert
from llmtrain.recipe.dry_run import dry_run, dry_run_task
from llmtrain.recipe.evaluate import evaluate_checkpoint
from llmtrain.recipe.finetune import finetune
from llmtrain.recipe.generate import generate
from llmtrain.recipe.predict import predict
from llmtrain.recipe.prepare import prepare_data
from llmtrain.recipe.pretrain import pretrain
from llmtrain.schema.load import build
from llmtrain.schema.plugins import load_builders, load_schemas
from llmtrain.schema.registry import builtin_registry
from llmtrain.schema.roots import ROOTS, TRAINING
from llmtrain.schema.stored import read_plain
from llmtrain.utils import dist
from llmtrain.utils.device import deterministic
from llmtrain.utils.errors import ExitCode, MemoryFullError, Problem, Stopped, UserError
from llmtrain.utils.meeting import first_line, lost_peer, this_process
from llmtrain.utils.members import WORDS, Member, compare
from llmtrain.utils.outcome import Outcome
from llmtrain.utils.processes import die_with_parent, redirect_output
from llmtrain.utils.run_directory import RunDirectory
from llmtrain.utils.signals import StopFlag, end_at_signals

RECIPES: dict[str, Callable[[Any, Context], int]] = {
    "pretrain": pretrain,
    "finetune": finetune,
    "predict": predict,
    "prepare": prepare_data,
    "evaluate": evaluate_checkpoint,
    "generate": generate,
    "chat": chat,
    "convert": convert,
}
"""Verbs and what they run."""

DRY_RUNS: dict[str, Callable[[Any, Context], int]] = {"pretrain": dry_run, "finetune": dry_run_task}
"""What the verbs that train run where there is no run directory."""

logger = logging.getLogger("llmtrain")
logger.addHandler(logging.NullHandler())  # without a run there is no log, and nothing goes to the terminal


def main(arguments: list[str]) -> int:
    """Run one worker; returns the exit code of the process."""
    garbage.keep_imports()
    stop = StopFlag()
    if dist.world_size() > 1:
        end_at_signals()  # a process that waits for its peers could not look at the flag
    else:
        stop.install()
    run: RunDirectory | None = None
    try:
        run = join(arguments)
        verb, data = read_config(run, arguments)
        stop.install()
        if run is not None:
            open_log(run)
        exit_code = run_recipe(run, verb, data, stop)
        message = ""
    except Stopped as stopped:
        exit_code, message = stopped.exit_code, ""
    except BrokenPipeError:
        # the reader of what `predict` and their like print (`| head`) has gone
        if run is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_code, message = ExitCode.OK, ""
    except UserError as error:
        logger.info("ended by an error of the user", exc_info=error)
        exit_code, message = error.exit_code, str(error)
    except (MemoryError, torch.OutOfMemoryError) as error:
        logger.exception("out of memory")
        exit_code, message = ExitCode.MEMORY, str(out_of_memory(error))
    except Exception as error:
        lost = dist.world_size() > 1 and lost_peer(error)
        logger.exception("a peer was lost" if lost else "this is a bug")
        exit_code, message = ExitCode.BUG, lost_message(run, error) if lost else bug_message(run, error)
    report(run, exit_code, message)
    if run is not None and dist.world_size() == 1 and "LLMTRAIN_PARENT" not in os.environ:
        run.discard(exit_code)  # of several processes the launcher is the last one
    return exit_code


def join(arguments: list[str]) -> RunDirectory | None:
    """Join the process group where there is one; the run directory, if there is one."""
    if len(arguments) == 2:
        return None
    if "LLMTRAIN_PARENT" in os.environ:
        die_with_parent(int(os.environ["LLMTRAIN_PARENT"]))
    elif dist.world_size() > 1:
        die_with_parent(os.getppid())
    own = arguments[0]
    if own != "-" and dist.rank() != 0:
        redirect_output(RunDirectory(own).rank_log(dist.rank()))
    dist.start()
    return RunDirectory(dist.broadcast_json(None if own == "-" else str(Path(own).resolve())))


def read_config(run: RunDirectory | None, arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Verb and plain config.

    Raises:
        UserError: under torchrun the nodes are not alike, or do not share the run directory.
    """
    if run is None:
        return arguments[0], json.loads(arguments[1])
    if dist.world_size() > 1 and not dist.ours():
        here = Member.here(os.environ.get(WORDS, ""), run.config)
        error = compare([Member(**member) for member in gather_json(asdict(here))])
        if error is not None:
            raise error
    if arguments[0] == "-":
        redirect_output(run.rank_log(dist.rank()))
    return read_plain(run.config.read_text(encoding="utf-8"), str(run.config))


def open_log(run: RunDirectory) -> None:
    """Send this process's log to its file."""
    run.logs.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(run.rank_log(dist.rank()))
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger("llmtrain").setLevel(logging.INFO)


def run_recipe(run: RunDirectory | None, verb: str, data: dict[str, Any], stop: StopFlag) -> int:
    """Make the typed config and hand over to the verb's recipe."""
    folders = data.get("run", {}).get("plugins", [])
    registry = builtin_registry()
    load_schemas(registry, folders)
    config = build(ROOTS[verb], data, registry, str(run.config) if run else "config")
    launch = getattr(config, "launch", None)
    if launch is not None and launch.threads is not None:
        torch.set_num_threads(launch.threads)
    builders = {**BUILDERS, **load_builders(folders)}
    if verb not in TRAINING or run is None:
        garbage.as_usual()  # a training has more to build before its first step
    context = Context(run, registry, builders, stop, getattr(config, "allow_bin", False))
    if verb in DRY_RUNS and run is None:
        return DRY_RUNS[verb](config, context)
    with deterministic(config.run.deterministic):
        exit_code = RECIPES[verb](config, context)
    dist.stop()  # not after an error: peers may wait for this process, and its end is what frees them
    return exit_code


def out_of_memory(error: BaseException) -> MemoryFullError:
    """The same in words that help."""
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return MemoryFullError(
        f"memory ran out: {first_line}",
        f"rank {dist.rank()}",
        "halve train.micro_batch_size (gradients are accumulated, the batch stays), or take a smaller model",
    )


def bug_message(run: RunDirectory | None, error: BaseException) -> str:
    """For errors that no user can be blamed for."""
    if run is None:
        traceback.print_exception(error)
        return ""
    first_line = str(error).splitlines()[0] if str(error) else ""
    where = f"rank {dist.rank()}, traceback in {run.rank_log(dist.rank())}"
    return f"error: {type(error).__name__}: {first_line}\n  where: {where}\n  do: please report this as a bug"


def lost_message(run: RunDirectory | None, error: BaseException) -> str:
    """For errors whose cause is another process."""
    where = this_process(dist.rank()) + (f", traceback in {run.rank_log(dist.rank())}" if run else "")
    problem = Problem(
        f"lost the connection to another process: {first_line(error)}",
        where,
        "look for the process that ended first, and why (its log, `dmesg`); a new start of the same command "
        "goes on from the last checkpoint",
    )
    return str(problem)


def report(run: RunDirectory | None, exit_code: int, message: str) -> None:
    """Tell the launcher how this process ended; without a launcher, tell the user."""
    if run is not None and "LLMTRAIN_PARENT" in os.environ:
        try:
            Outcome(exit_code, message).write(run.outcome(dist.rank()))
            return
        except (OSError, UserError):
            pass
    if not message:
        return
    if dist.world_size() > 1 and not first_to_report(run):
        return
    print(message, file=sys.stderr, flush=True)


def first_to_report(run: RunDirectory | None) -> bool:
    """Under a bare torchrun several ranks may fail at once: only the first one speaks.

    Before the run is known the processes have not met: then something is wrong with this node, or with
    the way to the others, and one process of each node says it.
    """
    if run is None:
        return dist.local_rank() == 0
    attempt = f"{os.environ.get('TORCHELASTIC_RUN_ID')}-{os.environ.get('TORCHELASTIC_RESTART_COUNT')}"
    try:
        run.launch.mkdir(exist_ok=True)
        (run.launch / f"reported-{attempt}-{os.environ.get('MASTER_PORT')}").touch(exist_ok=False)
        return True
    except (FileExistsError, FileNotFoundError):  # somebody has; or the run is not to be seen from here
        return False
    except OSError:
        return True


def leave(exit_code: int) -> NoReturn:
    """End this process.

    One of several that ends with an error leaves connections behind, whose threads may abort the process
    while the interpreter is taken apart (`terminate called without an active exception`): it leaves at once.
    """
    if exit_code and dist.world_size() > 1:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    garbage.at_end()
    sys.exit(exit_code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
