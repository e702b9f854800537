"""The keys that a configuration has, given the kinds of its groups; and what was meant by a wrong one."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from llmtrain.schema.load import (
    check_value,
    field_types,
    given_types,
    is_group,
    kinds_of_named,
    named_sections,
    strip_optional,
    suggest,
)
from llmtrain.schema.registry import Registry
from llmtrain.utils.errors import Problem

COMMON_NAMES: dict[str, str] = {
    "learning_rate": "optim.lr",
    "max_lr": "optim.lr",
    "max_steps": "train.steps",
    "max_iters": "train.steps",
    "block_size": "train.sequence_length",
    "seq_len": "train.sequence_length",
    "seq_length": "train.sequence_length",
    "max_length": "train.sequence_length",
    "n_layer": "model.num_layers",
    "n_head": "model.num_heads",
    "n_embd": "model.dim",
    "hidden_size": "model.dim",
    "d_model": "model.dim",
    "grad_clip": "optim.clip_norm",
    "warmup_steps": "schedule.warmup",
    "num_workers": "launch.threads",
    "nproc_per_node": "launch.num_processes",
    "resume_from": "resume",
    "checkpoint_path": "init_from",
    "model_name_or_path": "init_from",
    "max_seq_length": "train.sequence_length",
    "per_device_train_batch_size": "train.batch_size",
    "early_stopping_patience": "eval.patience",
    "layerwise_lr_decay": "optim.layer_decay",
    "train_file": "task.paths",
    "validation_file": "task.validation_paths",
}
"""Keys of other tools, and ours."""

CARRIED = ("model", "tokenizer", "objective")
"""Groups that verbs which start from a checkpoint take from there."""


ANY_NAME = "NAME"
"""Stands in keys for a name that the user gives: data.sources.NAME.paths."""


@dataclasses.dataclass
class KeySpace:
    """All dotted keys of a configuration with their types.

    Attributes:
        hints: type of every key, sections included.
    """

    root: type
    registry: Registry
    hints: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def make(cls, root: type, registry: Registry, kinds: Mapping[str, Any]) -> KeySpace:
        """The keys of a verb's schema where each group is of the given kind."""
        space = cls(root, registry)
        space._add(root, "", kinds)
        return space

    def _add(self, schema: type, prefix: str, kinds: Mapping[str, Any]) -> None:
        for name, hint in given_types(schema).items():
            key = f"{prefix}{name}"
            self.hints.setdefault(key, hint)
            bare = strip_optional(hint)[0]
            if (section := named_sections(bare)) is not None:
                self.hints.setdefault(f"{key}.{ANY_NAME}", section)
                for schema in kinds_of_named(section, self.registry).values():
                    self._add(schema, f"{key}.{ANY_NAME}.", kinds)
                continue
            if not dataclasses.is_dataclass(bare):
                continue
            inner: Any = bare
            if is_group(name, hint, self.registry):
                inner = self.registry.groups[name].get(kinds.get(name, ""))
                if inner is None:
                    # which kind it will be is not known: take a key that any of them has
                    for schema in self.registry.groups[name].values():
                        self._add(schema, f"{key}.", kinds)
                    continue
            self._add(inner, f"{key}.", kinds)

    def has(self, key: str) -> bool:
        """Whether there is such a key."""
        return self.known_as(key) in self.hints or self.is_free(key)

    def hint(self, key: str) -> Any:
        """The type of a key, or None where there is no such key."""
        return self.hints.get(self.known_as(key))

    def known_as(self, key: str) -> str:
        """A key as it stands in `hints`: with `ANY_NAME` in the place of a name that the user gives."""
        parts = key.split(".")
        for i in range(1, len(parts)):
            if named_sections(strip_optional(self.hints.get(".".join(parts[:i])))[0]) is not None:
                return ".".join([*parts[:i], ANY_NAME, *parts[i + 1 :]])
        return key

    def is_section(self, key: str) -> bool:
        """Whether a key holds other keys."""
        bare = strip_optional(self.hint(key))[0]
        return dataclasses.is_dataclass(bare) or named_sections(bare) is not None

    def is_free(self, key: str) -> bool:
        """Whether a key lies in the section `extra`, where everything is allowed."""
        return key.startswith("extra.")

    def check(self, key: str, value: Any, where: str) -> list[Problem]:
        """Problems of one key and its value."""
        if self.is_free(key):
            return []
        if not self.has(key):
            return [Problem(f"unknown key {key!r}", where, self.nearest(key))]
        hint = self.hint(key)
        optional = strip_optional(hint)[1]
        if not self.is_section(key):
            return check_value(key, value, hint, where)
        if value is None and optional:
            return []
        if not isinstance(value, dict):
            known = self.known_as(key)
            inner = ", ".join(name.replace(known, key, 1) for name in self.below(known)[:4])
            return [Problem(f"{key} is a section, not a value", where, f"set keys in it: {inner} ...")]
        problems = []
        for name, item in value.items():
            problems += self.check(f"{key}.{name}", item, where)
        return problems

    def below(self, key: str) -> list[str]:
        """The keys directly in a section; "" means the top."""
        prefix = f"{key}." if key else ""
        return [name for name in self.hints if name.startswith(prefix) and "." not in name[len(prefix) :]]

    def leaves(self) -> list[str]:
        """The keys that hold values."""
        return [key for key in self.hints if not self.is_section(key)]

    def nearest(self, key: str) -> str:
        """What to do about an unknown key: the likeliest one that was meant, or what there is."""
        if (known := self.known_as(key)) != key:
            name = key.split(".")[known.split(".").index(ANY_NAME)]
            return self.nearest(known).replace(ANY_NAME, name)
        section, _, last = key.rpartition(".")
        top = key.partition(".")[0]
        if top in CARRIED and top not in self.hints and "init_from" in self.hints:
            return f"leave it out: the {top} comes with init_from"
        kinds = self.registry.groups.get(section, {}) if section in self.hints else {}
        if owners := [kind for kind, schema in kinds.items() if last in field_types(schema)]:
            return f"{key} is for {section}={' or '.join(owners)}: choose that, or leave the key out"
        if section and section in self.hints and self.is_section(section):
            siblings = {name.rpartition(".")[2]: name for name in self.below(section)}
            if close := difflib.get_close_matches(last, siblings, n=1, cutoff=0.6):
                return f"did you mean {siblings[close[0]]!r}?"
        same = [name for name in self.leaves() if name.rpartition(".")[2] == last]
        if not same and COMMON_NAMES.get(last) in self.hints:
            same = [COMMON_NAMES[last]]
        if same:
            return "did you mean " + " or ".join(repr(name) for name in same[:4]) + "?"
        if close := difflib.get_close_matches(key, self.hints, n=1, cutoff=0.6):
            return f"did you mean {close[0]!r}?"
        if not section:
            lasts = {name.rpartition(".")[2]: name for name in self.leaves()}
            if close := difflib.get_close_matches(last, lasts, n=1, cutoff=0.75):
                return f"did you mean {lasts[close[0]]!r}?"
        while section and section not in self.hints:
            section = section.rpartition(".")[0]
        return "known: " + ", ".join(name for name in self.below(section))


def suggest_choice(choice: str, group: str, choices: Iterable[str]) -> str:
    """What to do about an unknown choice of a group."""
    choices = sorted(choices)
    inside = [name for name in choices if choice and name.startswith(f"{choice}/")]
    if inside:
        return f"give one of {', '.join(inside)}"
    hint = suggest(choice, choices)
    if hint.startswith("known") and "/" not in choice:
        ends = {name.rpartition("/")[2]: name for name in reversed(choices)}
        if close := difflib.get_close_matches(choice, ends, n=1):
            return f"did you mean {ends[close[0]]!r}?"
    return f"{hint} (see: llmtrain configs ls {group})" if hint.startswith("known") else hint
