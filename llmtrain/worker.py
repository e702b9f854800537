"""What each process runs: config -> process group -> recipe.

python -m llmtrain.worker RUN            a run directory with its config.yaml
python -m llmtrain.worker -              under torchrun: wait for rank 0 to tell the run directory
python -m llmtrain.worker VERB JSON      verbs that leave no run directory behind
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

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
from llmtrain.schema.roots import ROOTS
from llmtrain.schema.stored import read_plain
from llmtrain.utils import dist
from llmtrain.utils.errors import ExitCode, MemoryFullError, Stopped, UserError
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
    "convert": convert,
}
"""Verbs and what they run."""

DRY_RUNS: dict[str, Callable[[Any, Context], int]] = {"pretrain": dry_run, "finetune": dry_run_task}
"""What the verbs that train run where there is no run directory."""

logger = logging.getLogger("llmtrain")
logger.addHandler(logging.NullHandler())  # without a run there is no log, and nothing goes to the terminal


def main(arguments: list[str]) -> int:
    """Run one worker; returns the exit code of the process."""
    stop = StopFlag()
    if dist.world_size() > 1:
        end_at_signals()  # a process that waits for its peers could not look at the flag
    else:
        stop.install()
    run: RunDirectory | None = None
    try:
        run, verb, data = read_config(arguments)
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
        logger.exception("this is a bug")
        exit_code, message = ExitCode.BUG, bug_message(run, error)
    report(run, exit_code, message)
    return exit_code


def read_config(arguments: list[str]) -> tuple[RunDirectory | None, str, dict[str, Any]]:
    """The run directory (if any), verb and plain config; joins the process group where there is one."""
    if len(arguments) == 2:
        return None, arguments[0], json.loads(arguments[1])
    if "LLMTRAIN_PARENT" in os.environ:
        die_with_parent(int(os.environ["LLMTRAIN_PARENT"]))
    elif dist.world_size() > 1:
        die_with_parent(os.getppid())
    own = arguments[0]
    if own != "-" and dist.rank() != 0:
        redirect_output(RunDirectory(own).rank_log(dist.rank()))
    dist.start()
    path = dist.broadcast_json(None if own == "-" else str(Path(own).resolve()))
    run = RunDirectory(path)
    if own == "-":
        redirect_output(run.rank_log(dist.rank()))
    return run, *read_plain(run.config.read_text(encoding="utf-8"), str(run.config))


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
    context = Context(run, registry, {**BUILDERS, **load_builders(folders)}, stop)
    if verb in DRY_RUNS and run is None:
        return DRY_RUNS[verb](config, context)
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
    if dist.world_size() > 1 and run is not None and not first_to_report(run):
        return
    print(message, file=sys.stderr, flush=True)


def first_to_report(run: RunDirectory) -> bool:
    """Under a bare torchrun several ranks may fail at once: only the first one speaks."""
    attempt = f"{os.environ.get('TORCHELASTIC_RUN_ID')}-{os.environ.get('TORCHELASTIC_RESTART_COUNT')}"
    try:
        run.launch.mkdir(exist_ok=True)
        (run.launch / f"reported-{attempt}-{os.environ.get('MASTER_PORT')}").touch(exist_ok=False)
        return True
    except FileExistsError:
        return False
    except OSError:
        return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
