"""The parts of docs/ that are made from the program: the config reference, and the table of exit codes.

    python scripts/reference.py            write them
    python scripts/reference.py --check    exit code 1 where a page is not what it would be

`make docs` writes; a test checks.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llmtrain.command.configs_verb import about
from llmtrain.command.help import default_text, short_type, summary_of, verb_groups
from llmtrain.compose.folders import ConfigFolders
from llmtrain.schema.docs import field_docs
from llmtrain.schema.frozen import is_frozen
from llmtrain.schema.load import field_types, given_types, is_group, strip_optional
from llmtrain.schema.registry import Registry, builtin_registry
from llmtrain.schema.roots import ROOTS, TrainingConfig, UseConfig
from llmtrain.schema.verify import VerifyConfig
from llmtrain.utils.errors import EXIT_MEANING, ExitCode

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- written by `make docs` -->", "<!-- end -->"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a Markdown table; `|` in a cell is made harmless."""
    head = list(header)
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


def type_text(hint: Any) -> str:
    """`int`, `text`, `a | b`; `?` behind it where null may be given."""
    optional = strip_optional(hint)[1]
    return short_type(hint).replace("|", " | ") + ("?" if optional else "")


def keys(section: str, schema: type, skip: Iterable[str] = ()) -> Iterator[list[str]]:
    """Key, type, default and meaning of the fields of a dataclass, and of the sections in it."""
    docs = field_docs(schema)
    for name, hint in given_types(schema).items():
        key, inner = f"{section}.{name}" if section else name, strip_optional(hint)[0]
        if name in skip:
            continue
        if is_section(hint):
            yield from keys(key, typing.cast(type, inner))
            continue
        mark = "**" if is_frozen(key) and not issubclass(schema, UseConfig) else ""
        default = default_text(schema, name)
        yield [f"{mark}`{key}`{mark}", type_text(hint), f"`{default}`", docs[name]]


KEY_HEADER = ("key", "type", "default", "meaning")


COMMON: dict[str, type] = {
    "Every training (pretrain, finetune, prepare)": TrainingConfig,
    "Every verb that uses a checkpoint (evaluate, predict, generate, chat)": UseConfig,
}
"""What verbs share."""


def verbs(folders: ConfigFolders, registry: Registry) -> list[str]:
    """What each verb takes: groups, sections, and keys of its own."""
    lines = ["## Verbs", ""]
    for title, schema in COMMON.items():
        sections = [n for n, hint in field_types(schema).items() if is_section(hint)]
        lines += [f"### {title}", "", *table(KEY_HEADER, keys("", schema, skip=sections)), ""]
    for verb, schema in ROOTS.items():
        types = given_types(schema)
        groups = [name for name, hint in types.items() if is_group(name, hint, registry)]
        groups += [name for name in verb_groups(verb, folders) if name not in types]
        sections = [name for name, hint in types.items() if is_section(hint) and name not in groups]
        lines += [f"### {verb}", "", f"{summary_of(verb)[0].upper()}{summary_of(verb)[1:]}", ""]
        for title, names in (("Groups", groups), ("Sections", sections)):
            links = ", ".join(f"[{name}](#{name})" if name in types else f"`{name}`" for name in names)
            lines += [f"{title}: {links}.", ""] if names else []
        known = [
            name
            for base in COMMON.values()
            if issubclass(schema, base)
            for name in unchanged(base, schema, list(field_types(base)))
        ]
        own = [*keys("", schema, skip=(*groups, *sections, *known))]
        lines += [*table(KEY_HEADER, own), ""] if own else []
    return lines


def is_section(hint: Any) -> bool:
    """Whether a field has keys of its own."""
    return dataclasses.is_dataclass(strip_optional(hint)[0])


def group_lines(group: str, base: type, folders: ConfigFolders, registry: Registry) -> list[str]:
    """A config group: files to choose from, keys that all kinds share, and those of each kind."""
    shared = [name for name in field_types(base) if name != "kind"]
    choices = [
        [f"`{group}={choice}`", about(path, group, registry)]
        for choice in folders.groups().get(group, [])
        if (path := folders.find(f"{group}/{choice}")) is not None
    ]
    lines = [f"### {group}", "", *table(("choice", "what it is"), choices), ""]
    if shared:
        lines += ["All kinds:", "", *table(KEY_HEADER, keys(group, base, skip=("kind",))), ""]
    for kind, schema in registry.groups[group].items():
        own = [*keys(group, schema, skip=("kind", *unchanged(base, schema, shared)))]
        title = " ".join((schema.__doc__ or "").split())
        lines += [f"**`{group}.kind={kind}`**: {title}", ""]
        lines += [*table(KEY_HEADER, own), ""] if own else []
    return lines


def unchanged(base: type, schema: type, shared: list[str]) -> list[str]:
    """Shared keys that mean the same in a kind, with the same default."""
    docs, own = field_docs(base), field_docs(schema)
    return [
        name
        for name in shared
        if docs[name] == own[name] and default_text(base, name) == default_text(schema, name)
    ]


def configuration() -> str:
    """The whole reference."""
    folders, registry = ConfigFolders.make(None), builtin_registry()
    groups: dict[str, type] = {}
    sections: dict[str, type] = {}
    for schema in ROOTS.values():
        for name, hint in given_types(schema).items():
            inner = strip_optional(hint)[0]
            if is_group(name, hint, registry):
                groups.setdefault(name, inner)
            elif is_section(hint):
                sections.setdefault(name, typing.cast(type, inner))
    sections["verify"] = VerifyConfig
    lines = [*verbs(folders, registry), "## Groups", ""]
    for name, schema in groups.items():
        lines += group_lines(name, schema, folders, registry)
    lines += ["## Sections", ""]
    for name, schema in sections.items():
        presets = folders.groups().get(name, [])
        lines += [f"### {name}", ""]
        lines += [f"Presets: {', '.join(f'`{name}={one}`' for one in presets)}.", ""] if presets else []
        lines += [*table(KEY_HEADER, keys(name, schema)), ""]
    return "\n".join(lines).rstrip()


def exit_codes() -> str:
    """Every code with its name and meaning."""
    names = {value: name for name, value in vars(ExitCode).items() if name.isupper()}
    rows = [[str(code), f"`{names[code]}`", meaning] for code, meaning in EXIT_MEANING.items()]
    return "\n".join(table(("code", "name", "in a word"), rows))


PARTS = {"configuration.md": configuration, "exit_codes.md": exit_codes}
"""Pages with a part that is written here."""


def page_with(text: str, inner: str) -> str:
    """A page with what stands between its two comments replaced.

    Raises:
        ValueError: they are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs a line {BEGIN} and a line {END}")
    return f"{before}{BEGIN}\n\n{inner}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write the pages, or say which are stale."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is stale")
    options = parser.parse_args(arguments)
    stale = []
    for name, make in PARTS.items():
        path = DOCS / name
        text = path.read_text(encoding="utf-8")
        new = page_with(text, make())
        if new != text:
            stale.append(name)
            if not options.check:
                path.write_text(new, encoding="utf-8")
    verb = "stale" if options.check else "written"
    print(f"{verb}: {', '.join(stale) or 'nothing'}")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
