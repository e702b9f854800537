"""The command `llmtrain`: words -> checked configuration -> run directory -> worker or launcher.

Nothing here imports torch: a mistake is reported in a fraction of a second.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from llmtrain import __version__
from llmtrain.command.completion import candidates, script
from llmtrain.command.configs_verb import configs
from llmtrain.command.doctor import doctor
from llmtrain.command.help import configs_help, doctor_help, runs_help, top_help, verb_help, verify_help
from llmtrain.command.placement import place
from llmtrain.command.runs import runs
from llmtrain.command.start import Start, open_run
from llmtrain.command.style import Style
from llmtrain.command.sweep import Sweep, plan
from llmtrain.command.verify import verify
from llmtrain.compose.compose import Composed, compose
from llmtrain.compose.folders import ConfigFolders, shown_path
from llmtrain.compose.keys import KeySpace
from llmtrain.metrics.summary import summary_rows, task_commands, text_commands, typed_path
from llmtrain.schema.fields import LaunchConfig
from llmtrain.schema.load import dump, suggest
from llmtrain.schema.parallel import count_processes, layout_warnings
from llmtrain.schema.plugins import config_dirs, registry_with
from llmtrain.schema.registry import builtin_registry
from llmtrain.schema.roots import ROOTS, TRAINING, PretrainConfig, TrainingConfig
from llmtrain.schema.stored import config_text
from llmtrain.utils.errors import ConfigError, ExitCode, Problem, UserError
from llmtrain.utils.machine import PLACEMENT
from llmtrain.utils.members import WORDS
from llmtrain.utils.signals import hold_signals

VERBS = (*ROOTS, "verify", "runs", "configs", "doctor")


@dataclass
class Invocation:
    """The words of the command line, sorted."""

    verb: str | None = None
    words: list[str] = field(default_factory=list)
    config_dir: str | None = None
    cfg: bool = False
    dry_run: bool = False
    multirun: bool = False
    help: bool = False
    version: bool = False
    completion: str | None = None
    json: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: words after `llmtrain`; by default those of the process.

    Returns:
        the exit code. Verbs that train, evaluate or generate turn into another program instead.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return run(arguments)
    except UserError as error:
        sys.stdout.flush()
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPT
    except BrokenPipeError:
        # the reader (`| head`) has gone: what is still in the buffer must not raise at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK


def run(arguments: list[str]) -> int:
    """Do what the words say; returns the exit code.

    Raises:
        UserError: the user has to act.
    """
    if arguments[:1] == ["--complete"]:
        try:
            print("\n".join(candidates(arguments[1:])))
        except UserError:
            return ExitCode.CONFIG
        return ExitCode.OK
    call = sort_words(arguments)
    style = Style()
    if call.version:
        print(f"llmtrain {__version__}")
    elif call.completion is not None:
        print(script(call.completion))
    elif call.help or call.verb is None:
        print(help_text(call, style))
        return ExitCode.OK if call.help else ExitCode.CONFIG
    elif call.verb == "configs":
        print(configs(call.words, call.config_dir, style))
    elif call.verb == "runs":
        print(runs(call.words, style))
    elif call.verb == "doctor":
        return doctor(call.words, style, call.json)
    elif call.verb == "verify":
        return run_verify(call, style)
    else:
        return run_verb(call, style, arguments)
    return ExitCode.OK


def sort_words(arguments: Sequence[str]) -> Invocation:
    """Tell verb, options and overrides apart.

    Raises:
        ConfigError: with every option that is unknown or incomplete.
    """
    call = Invocation()
    problems: list[Problem] = []
    switches = {"--dry-run": "dry_run", "-m": "multirun", "--multirun": "multirun", "--version": "version"}
    switches |= {"--help": "help", "-h": "help", "--json": "json"}
    valued = {"--config-dir": "config_dir", "--cfg": "cfg", "--completion": "completion"}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word in switches:
            setattr(call, switches[word], True)
        elif name in valued:
            if not equals and (not rest or rest[0].startswith("-")):
                problems.append(Problem(f"{name} needs a value", "command line", f"write {name} VALUE"))
                continue
            value = value if equals else rest.pop(0)
            if name == "--cfg" and value != "job":
                problems.append(Problem(f"--cfg {value} is unknown", "command line", "write --cfg job"))
            setattr(call, valued[name], True if name == "--cfg" else value)
        elif word.startswith("-"):
            problems.append(_unknown_option(word, rest, [*switches, *valued], call.verb))
        elif call.verb is None and word in VERBS:
            call.verb = word
        else:
            call.words.append(word)
    if call.json and call.verb not in ("doctor", None):
        problems.append(Problem(f"{call.verb} knows no --json", "command line: --json", "leave it out"))
    if call.verb is None and call.words and not problems:
        problems.append(_no_verb(call.words[0]))
    if problems:
        raise ConfigError(problems)
    return call


def _unknown_option(word: str, rest: list[str], known: Sequence[str], verb: str | None) -> Problem:
    """`--lr 1e-3` is the habit of other tools: keys take no dashes here."""
    name, equals, value = word.partition("=")
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if close:
        return Problem(f"there is no option {name!r}", "command line", f"did you mean {close[0]!r}?")
    if not equals and rest and not rest[0].startswith("-") and "=" not in rest[0] and rest[0] not in VERBS:
        value = rest.pop(0)
    key = name.lstrip("-").replace("-", "_")
    space = KeySpace.make(ROOTS.get(verb or "", ROOTS["pretrain"]), builtin_registry(), {})
    meant = re.match(r"did you mean '([^']+)'", space.nearest(key))
    if key in space.hints or meant:
        key = key if key in space.hints or not meant else meant[1]
        fix = f"keys take no dashes: {key}={value or 'VALUE'}"
    else:
        fix = f"options: {', '.join(known)}; keys are written without dashes, key=value"
    return Problem(f"there is no option {name!r}", "command line", fix)


def _no_verb(word: str) -> Problem:
    if "=" in word:
        return Problem("the verb is missing", "command line", f"write llmtrain pretrain {word} ...")
    return Problem(f"there is no verb {word!r}", "command line", suggest(word, VERBS))


def help_text(call: Invocation, style: Style) -> str:
    """The help that was asked for."""
    folders = ConfigFolders.make(call.config_dir, config_dirs([]))
    if call.verb is None:
        return top_help(folders, style)
    if call.verb == "configs":
        return configs_help(style)
    if call.verb == "runs":
        return runs_help(style)
    if call.verb == "doctor":
        return doctor_help(style)
    if call.verb == "verify":
        return verify_help(style)
    return verb_help(call.verb, folders, registry_with([]), style)


def run_verb(call: Invocation, style: Style, arguments: Sequence[str]) -> int:
    """Compose, and hand over to the worker, the launcher or the sweep."""
    assert call.verb is not None
    distributed = {"TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE"} <= os.environ.keys()
    if distributed:
        os.environ[WORDS] = shlex.join(arguments)  # the workers compare them
    if distributed and os.environ["RANK"] != "0":
        if call.verb in TRAINING and not (call.cfg or call.dry_run or call.multirun):
            settle_placement(LaunchConfig(bind=False), local_processes())
            execute("llmtrain.worker", "-")
        return ExitCode.OK
    if distributed and call.multirun:
        raise ConfigError("-m cannot run under torchrun", "command line: -m", "start the sweep without it")
    if distributed and call.verb not in TRAINING and os.environ["WORLD_SIZE"] != "1":
        raise ConfigError(
            f"{call.verb} takes one process", "torchrun", f"run llmtrain {call.verb} without it"
        )
    composed = compose(call.verb, call.words, call.config_dir, call.multirun)
    if call.cfg:
        for index, one in enumerate(composed):
            title = f"# trial {index}: {' '.join(one.overrides)}\n" if call.multirun else ""
            print("---\n" * (index > 0) + title + config_text(one.verb, one.shown), end="")
        return ExitCode.OK
    if call.multirun:
        if distributed:
            raise ConfigError(
                "-m cannot run under torchrun", "command line: -m", "start the sweep without it"
            )
        options = ["--config-dir", call.config_dir] if call.config_dir else []
        options += ["--dry-run"] if call.dry_run else []
        at_once = getattr(getattr(composed[0].config, "launch", None), "parallel_trials", 1)
        return Sweep(call.verb, plan(composed, call.words), options, style, at_once).run()
    return start(call, composed[0], style, arguments, distributed)


def run_verify(call: Invocation, style: Style) -> int:
    """Compare layouts; it starts processes of its own, as many as each of them takes.

    Raises:
        ConfigError: it was started as one of several processes, or as a sweep.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("verify starts its own processes", "torchrun", "run llmtrain verify without it")
    if call.multirun:
        fix = "verify one configuration at a time"
        raise ConfigError("verify takes no sweep", "command line: -m", fix)
    return verify(call.words, call.config_dir, style, call.cfg, call.dry_run)


def start(
    call: Invocation, composed: Composed, style: Style, arguments: Sequence[str], distributed: bool
) -> int:
    """Start one run, or another verb."""
    data = dump(composed.config)
    if call.dry_run:
        print(config_text(composed.verb, composed.shown))
        if composed.verb in TRAINING:
            data["launch"]["num_processes"] = settled_processes(composed.config, distributed)
            execute("llmtrain.worker", composed.verb, json.dumps(data))
        return ExitCode.OK
    if composed.verb not in TRAINING:
        settle_placement(getattr(composed.config, "launch", LaunchConfig()), 1)
        execute("llmtrain.worker", composed.verb, json.dumps(data))
    processes = settled_processes(composed.config, distributed)
    if distributed:  # the others start without knowing the config
        settle_placement(LaunchConfig(bind=False), local_processes())
    else:
        settle_placement(composed.config.launch, processes)
    started: Start = open_run(composed, arguments)
    if started.finished is not None and not distributed:  # the other ranks wait: their worker says it
        os.close(started.descriptor)
        print(finished_text(started.finished, composed, started.directory.path, style))
        return ExitCode.OK
    several = processes > 1 and not distributed
    execute("llmtrain.launch" if several else "llmtrain.worker", str(started.directory.path))


def settle_placement(config: LaunchConfig, processes: int) -> None:
    """Settle threads, cores and allocator, and put what has to be known at its start into the environment of
    the program that this process turns into."""
    placement = place(config, processes)
    if placement.allocator.problem:
        print(f"warning: {placement.allocator.problem}", file=sys.stderr)
    os.environ.update({**placement.allocator.variables, PLACEMENT: placement.line})


def local_processes() -> int:
    """Workers of this machine, as torchrun tells."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def settled_processes(config: TrainingConfig, distributed: bool) -> int:
    """Number of processes of a training; settings that it leaves without effect are told."""
    world = count_processes(config.launch, config.parallel)
    warnings = layout_warnings(config.parallel, world)
    if distributed and config.launch.num_processes is not None:
        warnings.append("launch.num_processes is ignored: torchrun decides")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return world


def finished_text(summary: dict[str, Any], composed: Composed, path: Path, style: Style) -> str:
    """What is said of a run that is complete already."""
    config, typed = composed.config, typed_path(path)
    commands = (
        text_commands(typed, config.model.causal)
        if isinstance(config, PretrainConfig)
        else task_commands(typed)
    )
    length = "eval.patience" if summary.get("ended_early") else "length"
    more = f"a greater {length} trains on, another run.name starts a new run"
    title = style.bold(f"finished already: {shown_path(path)}")
    rows = style.entries(summary_rows(summary))
    return "\n".join([title, rows, "", style.bold("next:"), *(f"  {one}" for one in [*commands, more])])


def execute(module: str, *words: str) -> NoReturn:
    """Turn this process into another program of ours; the run's lock stays with it."""
    sys.stdout.flush()
    sys.stderr.flush()
    hold_signals()
    os.execv(sys.executable, [sys.executable, "-m", module, *words])
