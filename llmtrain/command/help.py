"""What `--help` prints. Everything is read from the schemas and the config folders."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable
from enum import Enum
from typing import Any

from llmtrain.command.help_texts import (
    EXAMPLES,
    LAYOUT_HELP,
    OPTIONS,
    OTHER_VERBS,
    VERB_EXAMPLES,
    VERIFY_OPTIONS,
)
from llmtrain.command.runs import SORT_KEYS
from llmtrain.command.style import Style, first_sentence
from llmtrain.compose.folders import EXPERIMENT, ConfigFolders
from llmtrain.compose.yaml_files import read_yaml
from llmtrain.schema.docs import field_docs
from llmtrain.schema.load import field_types, given_types, is_group, strip_optional
from llmtrain.schema.registry import Registry
from llmtrain.schema.roots import ROOTS
from llmtrain.schema.verify import VerifyConfig


def summary_of(verb: str) -> str:
    """One line on a verb, from its schema's docstring where it has one."""
    if verb in OTHER_VERBS:
        return OTHER_VERBS[verb]
    return " ".join((ROOTS[verb].__doc__ or "").split()).partition(": ")[2]


def verb_groups(verb: str, folders: ConfigFolders) -> dict[str, list[str]]:
    """Groups of a verb and their choices."""
    fields = given_types(ROOTS[verb])
    root = folders.find(verb)
    takes_experiment = root is not None and re.search(
        rf"^\s*- {EXPERIMENT}:", root.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {
        group: choices
        for group, choices in folders.groups().items()
        if group in fields or (group == EXPERIMENT and takes_experiment)
    }


def top_help(folders: ConfigFolders, style: Style) -> str:
    """Help for the whole command."""
    groups = {group: choices for verb in ROOTS for group, choices in verb_groups(verb, folders).items()}
    return "\n".join(
        [
            style.bold("llmtrain") + " trains language models from config files.",
            "",
            style.bold("Usage"),
            "  llmtrain VERB [group=choice ...] [key=value ...] [options]",
            "",
            style.bold("Verbs") + style.dim("    (llmtrain VERB --help: its groups and keys)"),
            style.entries((verb, summary_of(verb)) for verb in [*ROOTS, *OTHER_VERBS]),
            "",
            style.bold("Groups") + style.dim("   (llmtrain configs ls GROUP: what each choice is)"),
            style.entries((group, "  ".join(choices)) for group, choices in groups.items()),
            "",
            style.bold("Options"),
            style.entries(OPTIONS),
            "",
            style.bold("Examples"),
            *example_lines(EXAMPLES, style),
        ]
    )


def example_lines(examples: Iterable[tuple[str, str]], style: Style) -> list[str]:
    """Commands, each with what it does."""
    return [f"  {style.name(command)}\n      {style.dim('# ' + text)}" for command, text in examples]


def configs_help(style: Style) -> str:
    """Help for `llmtrain configs`."""
    rows = (
        ("configs ls [GROUP]", "list the files of all groups, or of one"),
        ("configs cat NAME", "print a file, such as model/gpt/small"),
        (
            "configs cp NAME DIR",
            "copy a file into your own folder, to change it there; use it with --config-dir DIR",
        ),
        ("configs check", "check every file, with --config-dir DIR yours too"),
    )
    return "\n".join([f"{style.bold('llmtrain configs')}: {OTHER_VERBS['configs']}", "", style.entries(rows)])


def doctor_help(style: Style) -> str:
    """Help for `llmtrain doctor`."""
    rows = (
        ("dir=DIR", "measure the disk there, not where ./runs is"),
        ("--json", "one JSON object, for programs"),
    )
    title = f"{style.bold('llmtrain doctor')}: {OTHER_VERBS['doctor']}"
    codes = "Ends with exit code 1 where a run could not work; takes a few seconds."
    return "\n".join([title, "", style.entries(rows), "", codes])


def runs_help(style: Style) -> str:
    """Help for `llmtrain runs`."""
    rows = (
        ("runs ls [key=value ...]", "a table of the runs below ./runs"),
        ("runs show RUN", "one run: what was reached, config, curve, checkpoints, samples"),
        ("runs compare RUN RUN [...]", "what differs in their configs, and their curves side by side"),
        ("runs report RUN [...]", "write report.html (and loss.png) anew"),
    )
    keys = (
        ("dir=DIR", "look for runs there, not in ./runs"),
        ("sort=KEY", f"of ls: {', '.join(SORT_KEYS)} [when]"),
        ("last=N", "of ls: only the last lines of the table"),
        ("key=value", "of ls: only runs whose config has it; also name, state, verb; * stands for anything"),
        ("picture=FILE", "of compare: write the curves to FILE.svg or FILE.png"),
    )
    examples = (
        ("llmtrain runs ls state=finished sort=best", "the best ones first"),
        ("llmtrain runs ls model.dim=256 'name=sweep-*' last=5", "those you mean"),
        ("llmtrain runs compare sweep-0 sweep-1 picture=both.svg", "in common axes"),
    )
    return "\n".join(
        [
            f"{style.bold('llmtrain runs')}: {OTHER_VERBS['runs']}",
            "",
            style.entries(rows),
            "",
            style.bold("Words") + style.dim("   (RUN: a path, a name below ./runs, or its beginning)"),
            style.entries(keys),
            "",
            style.bold("Examples"),
            *example_lines(examples, style),
        ]
    )


def verify_help(style: Style) -> str:
    """Help for `llmtrain verify`."""
    return "\n".join(
        [
            f"{style.bold('llmtrain verify')}: {OTHER_VERBS['verify']}",
            "",
            style.bold("Usage"),
            "  llmtrain verify [pretrain|finetune] [group=choice ...] [key=value ...] [verify.key=value ...]",
            "",
            style.bold("Keys")
            + style.dim("   (and those of the verb that is verified: pretrain, if none is named)"),
            _rows("verify", VerifyConfig, {}, style),
            "",
            style.bold("Layouts"),
            style.entries(LAYOUT_HELP),
            "",
            style.bold("Options"),
            style.entries((dict(OPTIONS) | VERIFY_OPTIONS).items()),
            "",
            style.bold("Examples"),
            *example_lines(VERB_EXAMPLES["verify"], style),
        ]
    )


def verb_help(verb: str, folders: ConfigFolders, registry: Registry, style: Style) -> str:
    """Help for one verb: groups, then every key with type, default and meaning."""
    parts = [
        f"{style.bold(f'llmtrain {verb}')}: {summary_of(verb)}",
        "",
        style.bold("Usage"),
        f"  llmtrain {verb} [group=choice ...] [key=value ...] [options]",
    ]
    groups = verb_groups(verb, folders)
    chosen, given = verb_defaults(verb, folders)
    if groups:
        rows = [
            (f"{group}=", "  ".join(f"[{one}]" if one == chosen.get(group) else one for one in choices))
            for group, choices in groups.items()
        ]
        parts += ["", style.bold("Groups") + style.dim("   (default in brackets)"), style.entries(rows)]
    parts += [
        "",
        style.bold("Keys")
        + style.dim("   (default in brackets; the file of a choice, or an experiment, may set another)"),
    ]
    plain: list[tuple[str, str]] = []
    sections: list[str] = []
    docs = field_docs(ROOTS[verb])
    for name, hint in given_types(ROOTS[verb]).items():
        bare = strip_optional(hint)[0]
        if not dataclasses.is_dataclass(bare):
            plain.append(_row(name, ROOTS[verb], name, hint, docs, given))
        elif is_group(name, hint, registry):
            sections += _group_rows(name, docs.get(name, ""), typing.cast(type, bare), registry, given, style)
        else:
            title = f"  {style.bold(name)}  {style.dim(first_sentence(docs.get(name, '')))}"
            sections += ["", title, _rows(name, typing.cast(type, bare), given, style)]
    parts += [style.entries(plain, indent=4, column=34), *sections]
    parts += ["", style.bold("Options"), style.entries(OPTIONS)]
    examples = [one for one in EXAMPLES if one[0].startswith(f"llmtrain {verb} ")]
    examples += VERB_EXAMPLES.get(verb, ())
    if examples:
        parts += ["", style.bold("Examples"), *example_lines(examples, style)]
    return "\n".join(parts)


def verb_defaults(verb: str, folders: ConfigFolders) -> tuple[dict[str, str], dict[str, Any]]:
    """What the verb's own YAML file and the files that it chooses set: choices of groups, values of keys."""
    path = folders.find(verb)
    if path is None:
        return {}, {}
    file = read_yaml(path)
    pairs = [pair for entry, _ in file.defaults if isinstance(entry, dict) for pair in entry.items()]
    chosen = {group: choice for group, choice in pairs if choice}
    given: dict[str, Any] = {}
    for group, choice in chosen.items():
        if (path := folders.find(f"{group}/{choice}")) is not None:
            given |= {f"{group}.{leaf.key}": leaf.value for leaf in read_yaml(path).leaves}
    return chosen, given | {leaf.key: leaf.value for leaf in file.leaves}


def _group_rows(
    group: str, doc: str, base: type, registry: Registry, given: dict[str, Any], style: Style
) -> list[str]:
    """The shared keys of a group, then those of each kind."""
    lines = ["", f"  {style.bold(group)}  {style.dim(first_sentence(doc))}"]
    shared = [name for name in field_types(base) if name != "kind"]
    if shared:
        lines.append(_rows(group, base, given, style, skip=("kind",)))
    for kind, schema in registry.groups[group].items():
        # What is given is for the kind that is chosen, or for all where the verb's own file chooses none.
        known = given if given.get(f"{group}.kind", kind) == kind else {}
        rows = _rows(group, schema, known, style, skip=("kind", *shared))
        lines.append(f"    {style.dim(f'{kind}: {about_schema(schema)}')}")
        if rows:
            lines.append(rows)
    return lines


def about_schema(schema: type) -> str:
    """First sentence of a schema's docstring."""
    return first_sentence(" ".join((schema.__doc__ or "").split()))


def _rows(section: str, schema: type, given: dict[str, Any], style: Style, skip: tuple[str, ...] = ()) -> str:
    """Entries for the keys of one section."""
    return style.entries(_entries(section, schema, given, skip), indent=4, column=34)


def _entries(
    section: str, schema: type, given: dict[str, Any], skip: tuple[str, ...] = ()
) -> list[tuple[str, str]]:
    """Keys of a section and of the sections in it, each with what there is to say."""
    docs = field_docs(schema)
    rows: list[tuple[str, str]] = []
    for name, hint in field_types(schema).items():
        inner = strip_optional(hint)[0]
        if name in skip:
            continue
        if dataclasses.is_dataclass(inner):
            rows += _entries(f"{section}.{name}", typing.cast(type, inner), given)
        else:
            rows.append(_row(f"{section}.{name}", schema, name, hint, docs, given))
    return rows


def _row(
    key: str, schema: type, name: str, hint: Any, docs: dict[str, str], given: dict[str, Any]
) -> tuple[str, str]:
    """Key, and: type [default] meaning."""
    default = value_text(given[key]) if key in given else default_text(schema, name)
    return key, f"{short_type(hint)} [{default}]  {first_sentence(docs.get(name, ''))}"


def default_text(schema: type, name: str) -> str:
    """Default of a field as a user would type it."""
    field = {field.name: field for field in dataclasses.fields(schema)}[name]
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    return value_text(value)


def value_text(value: Any) -> str:
    """A value as a user would type it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Enum):
        return str(value.value)
    return "''" if value == "" else str(value)


def short_type(hint: Any) -> str:
    """A type in a word."""
    bare, _ = strip_optional(hint)
    if isinstance(bare, type) and issubclass(bare, Enum):
        return "|".join(str(member.value) for member in bare)
    if typing.get_origin(bare) is list:
        return "list"
    if typing.get_origin(bare) is dict:
        return "section"
    return {int: "int", float: "float", bool: "true|false", str: "text"}.get(bare, "value")
