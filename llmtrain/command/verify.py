"""`llmtrain verify`: the user's own training, a few steps long, on one process and under other layouts.

The words that start with `verify.` say what to compare; all others are those of the verb that is verified,
and are composed and checked as always. Each layout is trained by the normal command in a process of its
own; its curve is read from its run directory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llmtrain.command.layouts import OWN, SINGLE, Layout, choose_layouts, closest, named_layout, word_of
from llmtrain.command.style import Style
from llmtrain.command.verification import Result, Verdict, Verification, in_a_line
from llmtrain.compose.compose import Composed, compose, in_order
from llmtrain.compose.keys import KeySpace
from llmtrain.compose.overrides import parse_overrides, settle
from llmtrain.compose.resolve import absolute, locate, set_key
from llmtrain.schema.load import build, dump, flatten, suggest
from llmtrain.schema.parallel import count_processes, resolve_degrees
from llmtrain.schema.registry import Registry
from llmtrain.schema.roots import ROOTS, TRAINING
from llmtrain.schema.stored import config_text
from llmtrain.schema.validate import validate
from llmtrain.schema.verify import VerifyConfig, VerifyWords
from llmtrain.utils.errors import ConfigError, ExitCode, Problem
from llmtrain.utils.machine import num_cores

SECTION = "verify"


@dataclass(frozen=True)
class Change:
    """A setting that is not as in the user's config, since curves could not be compared otherwise."""

    key: str
    old: Any
    new: Any
    reason: str

    @property
    def word(self) -> str:
        """As it is given to the training."""
        return f"{self.key}={word_of(self.new)}"


@dataclass
class Plan:
    """What is to be trained.

    Attributes:
        verb: that is verified.
        words: of the user, without those for `verify` itself.
        options: from `--config-dir`.
        told: the values of `verify.*`.
        composed: the config with its changes, as it is trained on one process.
        changes: what is different from the user's config in all trainings.
        layouts: one process first; with the problems of those that cannot work.
    """

    verb: str
    words: list[str]
    options: list[str]
    told: VerifyConfig
    composed: Composed
    changes: list[Change]
    layouts: list[tuple[Layout, list[Problem]]] = field(default_factory=list)

    def words_for(self, layout: Layout) -> list[str]:
        """The command line that trains under a layout, without where to."""
        words = [*self.words, *(change.word for change in self.changes)]
        words += layout.words(self.composed.config.parallel)
        threads = ["launch.threads=1"] if layout.processes > num_cores() else []
        return [self.verb, *words, *threads, *self.options]


def verify(words: Sequence[str], config_dir: str | None, style: Style, cfg: bool, dry_run: bool) -> int:
    """Run the verb.

    Args:
        words: after `verify`.
        config_dir: the user's folder of configs.
        style: for the terminal.
        cfg: only print the config that is trained.
        dry_run: only print what would be done.

    Returns:
        0 where every layout that ran is equal, 1 where one differs or failed, 2 where every one was refused;
        that of the training on one process where it fails; that of the signal which stopped us.

    Raises:
        ConfigError: with everything that is wrong on the command line.
    """
    plan = make_plan(words, config_dir)
    if cfg:
        print(config_text(plan.verb, plan.composed.shown), end="")
        return ExitCode.OK
    print(introduction(plan, style), flush=True)
    if dry_run:
        print(commands(plan, style))
        return ExitCode.OK
    results = [Result(layout, plan.words_for(layout), problems) for layout, problems in plan.layouts]
    verification = Verification(results, plan.told, style, accumulated(plan))
    code = verification.run()
    if plan.told.json is not None and results[0].verdict is Verdict.reference:
        changes = [asdict(change) for change in plan.changes]
        verification.write(Path(plan.told.json), {"verb": plan.verb, "words": plan.words, "changes": changes})
    return code


def make_plan(words: Sequence[str], config_dir: str | None) -> Plan:
    """Read the command line.

    Raises:
        ConfigError: with every problem.
    """
    verb, problems = which_verb([word for word in words if "=" not in word])
    own_words = [word for word in words if "=" in word and is_ours(word)]
    training_words = [word for word in words if "=" in word and not is_ours(word)]
    told, found = read_options(own_words)
    problems += found
    try:
        composed = compose(verb, training_words, config_dir)[0]
        own = own_layout(composed.config)
        layouts, found = choose_layouts(told.layouts, composed.config.parallel, own)
        where = next((f"command line: {word}" for word in own_words if "layouts" in word), "")
        problems += [replace(problem, where=where) for problem in found]
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(in_order(problems, words))
    changes = changes_of(composed.config, told)
    composed = compose(verb, [*training_words, *(change.word for change in changes)], config_dir)[0]
    layouts = [named_layout(SINGLE, composed.config.parallel), *layouts]
    checked = [(layout, refusals(composed, layout)) for layout in layouts]
    if checked[0][1]:
        raise ConfigError(checked[0][1])
    options = ["--config-dir", config_dir] if config_dir else []
    return Plan(verb, training_words, options, told, composed, changes, checked)


def accumulated(plan: Plan) -> Result | None:
    """One process that takes a batch in smaller parts than it would; None where it cannot."""
    train = plan.composed.config.train
    size = train.micro_batch_size or train.batch_size
    if size == 1:
        return None
    smaller = next(n for n in range(size // 2, 0, -1) if size % n == 0)
    words = [*plan.words_for(plan.layouts[0][0]), f"train.micro_batch_size={smaller}"]
    return Result(replace(plan.layouts[0][0], name="accumulating"), words)


def is_ours(word: str) -> bool:
    """Whether a word is for `verify` itself; a misspelt section too, so that it is told apart from others."""
    section, dot, _ = word.partition("=")[0].lstrip("+").partition(".")
    return section == SECTION or (bool(dot) and closest(section, [SECTION]) is not None)


def which_verb(words: Sequence[str]) -> tuple[str, list[Problem]]:
    """The verb to verify, `pretrain` where none is named; and problems of words that are none."""
    problems = []
    for word in words:
        if word in TRAINING:
            continue
        what, fix = f"{word!r} is no key=value, and no verb that trains", suggest(word, TRAINING)
        if word in ROOTS:
            what, fix = f"{word} trains nothing that could be verified", f"give {' or '.join(TRAINING)}"
        problems.append(Problem(what, f"command line: {word}", fix))
    verbs = [word for word in words if word in TRAINING]
    if len(set(verbs)) > 1:
        problems.append(
            Problem("one verb can be verified at a time", "command line", f"give {verbs[0]} only")
        )
    return (verbs or ["pretrain"])[0], problems


def read_options(words: Sequence[str]) -> tuple[VerifyConfig, list[Problem]]:
    """The values of `verify.*`, and what is wrong with them."""
    overrides, problems = parse_overrides(words, {})
    registry = Registry()
    space = KeySpace.make(VerifyWords, registry, {})
    data: dict[str, Any] = {}
    for override in overrides:
        settled, found = settle(override, space, multirun=False)
        problems += found
        for key, value in {} if found else flatten({settled.key: settled.values[0]}).items():
            set_key(data, key, value)
    told = VerifyConfig()
    try:
        told = build(VerifyWords, data, registry).verify
    except ConfigError as error:
        problems += locate(error.problems, {override.key: override.where for override in overrides})
    if told.json is not None:
        told.json = absolute(told.json)
        if not Path(told.json).parent.is_dir():
            what, fix = f"there is no folder {Path(told.json).parent}", "make it, or give another verify.json"
            problems.append(Problem(what, "verify.json", fix))
    return told, problems


def own_layout(config: Any) -> Layout | None:
    """The layout of the user's config, its degrees resolved; None where it takes one process.

    Raises:
        ConfigError: degrees and processes do not fit.
    """
    processes = count_processes(config.launch, config.parallel)
    degrees, problems = resolve_degrees(config.parallel, processes)
    if problems:
        raise ConfigError(problems)
    return None if processes == 1 else Layout(OWN, processes, replace(config.parallel, **asdict(degrees)))


def changes_of(config: Any, told: VerifyConfig) -> list[Change]:
    """What is changed of a config, and why. Model, data and batch stay as they are."""
    dropout = "draws of dropout depend on the layout"
    length = "the length of the comparison"
    wanted: list[tuple[str, Any, str]] = [
        ("train.steps", told.steps, length),
        *((f"train.{key}", None, length) for key in ("epochs", "tokens", "minutes")),
        ("precision", "fp32", "the roundings of bf16 and fp16 are greater than the tolerance"),
        ("compile", "never", "compiled blocks round otherwise"),
        ("eval.every", 0, "evaluated once, at the end"),
        ("checkpoint.every", 0, "saved once, at the end"),
        ("log.every", 1, "every step is compared"),
        ("resume", "auto", "each training is new"),
    ]
    if hasattr(config, "dropout"):
        wanted.append(("dropout", 0.0, dropout))
    elif hasattr(config.model, "dropout"):
        wanted.append(("model.dropout", 0.0, dropout))
    if config.schedule.warmup >= told.steps:
        wanted.append(("schedule.warmup", 0.5, "it is longer than the comparison: the first half of it then"))
    elif config.schedule.warmup < 0.5:
        # The first step of Adam is as long for a gradient that is all rounding as for any other: at the full
        # rate weights then differ so much that one process that accumulates differs from one that does not
        # (measured: gradient norms by 2e-5 at one of 20 steps, with the warm-up by 8e-8).
        reason = "without warm-up the first steps of Adam make different weights of roundings"
        wanted.append(("schedule.warmup", 0.5, reason))
    flat = flatten(dump(config))
    return [Change(key, flat[key], new, reason) for key, new, reason in wanted if flat[key] != new]


def refusals(composed: Composed, layout: Layout) -> list[Problem]:
    """What speaks against a layout for this config."""
    launch = dataclasses.replace(composed.config.launch, num_processes=layout.processes)
    config = dataclasses.replace(composed.config, launch=launch, parallel=layout.parallel)
    return validate(composed.verb, config)


def introduction(plan: Plan, style: Style) -> str:
    """What will be compared, and every setting that is not the user's."""
    count = len(plan.layouts) - 1
    title = (
        f"{plan.verb}: {plan.told.steps} steps on one process and under {count} layout{'s' * (count != 1)}"
    )
    rows = [
        (change.key, f"{word_of(change.old)} -> {word_of(change.new)}", change.reason)
        for change in plan.changes
    ]
    threads = plan.composed.config.launch.threads
    if threads != 1 and any(layout.processes > num_cores() for layout, _ in plan.layouts):
        reason = f"where there are more processes than the {num_cores()} cores"
        rows.append(("launch.threads", f"{word_of(threads)} -> 1", reason))
    heading = "changed for the comparison; model, data and batch are yours:"
    return "\n".join(
        [style.bold(title), style.dim(heading), style.table(("setting", "", "because"), rows), ""]
    )


def commands(plan: Plan, style: Style) -> str:
    """What each layout is asked for with, beside the user's words; or why it is refused."""
    rows = []
    for layout, problems in plan.layouts:
        words = " ".join(layout.words(plan.composed.config.parallel))
        reasons = "; ".join(map(in_a_line, problems))
        rows.append((layout.name, f"refused: {reasons}" if problems else words))
    return style.entries(rows)
