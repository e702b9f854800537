"""Completion of verbs, groups, choices, keys and values in bash and zsh.

The shell functions hand the words so far to `llmtrain --complete`, which prints what may follow.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from enum import Enum
from typing import Any

from llmtrain.command.configs_verb import ACTIONS
from llmtrain.command.help import verb_groups
from llmtrain.command.layouts import ALL, SELECTION
from llmtrain.command.runs import complete_runs
from llmtrain.compose.folders import ConfigFolders
from llmtrain.compose.keys import KeySpace
from llmtrain.schema.load import field_types, strip_optional
from llmtrain.schema.registry import builtin_registry
from llmtrain.schema.roots import ROOTS, TRAINING
from llmtrain.schema.verify import VerifyConfig
from llmtrain.utils.errors import ConfigError

BASH = r"""
_llmtrain() {
    local line="${COMP_LINE:0:COMP_POINT}" words current
    read -ra words <<< "$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    current="${words[${#words[@]}-1]}"
    local IFS=$'\n'
    COMPREPLY=($(llmtrain --complete "${words[@]:1}" 2>/dev/null))
    # readline looks only at what stands after the last "="
    if [[ "$current" == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${current%=*}="}")
    fi
    if [[ "${COMPREPLY[0]}" == *[=./] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o default -F _llmtrain llmtrain
"""

ZSH = r"""
#compdef llmtrain
_llmtrain() {
    local -a found
    found=("${(@f)$(llmtrain --complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    if (( $#found )); then compadd -Q -S '' -- $found; else _files; fi
}
compdef _llmtrain llmtrain
"""

FLAGS = ("--help", "--version", "--config-dir", "--cfg", "--dry-run", "-m")


def script(shell: str) -> str:
    """The text for `eval "$(llmtrain --completion SHELL)"`.

    Raises:
        ConfigError: another shell.
    """
    scripts = {"bash": BASH, "zsh": ZSH}
    if shell not in scripts:
        raise ConfigError(f"no completion for {shell!r}", "command line", "give bash or zsh")
    return scripts[shell].strip()


def candidates(words: Sequence[str]) -> list[str]:
    """What may stand in place of the last word.

    Args:
        words: the command line without `llmtrain`, up to the cursor; the last one may be empty.
    """
    *before, current = words or [""]
    if before and before[-1] == "--config-dir":
        return []
    if before and before[-1] == "--cfg":
        return _starting(current, ["job"])
    if current.startswith("-"):
        return _starting(current, FLAGS)
    folders = ConfigFolders.make(_config_dir(before))
    verbs = (*ROOTS, "verify", "runs", "configs", "doctor")
    verb = next((word for word in before if word in verbs), None)
    if verb is None:
        return _starting(current, verbs)
    if verb == "configs":
        return _after_configs(before, current, folders)
    if verb == "doctor":
        return _starting(current, ["dir="])
    if verb == "runs":
        return _starting(current, complete_runs(before[before.index(verb) + 1 :]))
    found: list[str] = []
    if verb == "verify":
        found = _after_verify(before, current)
        verb = next((word for word in before if word in TRAINING), TRAINING[0])
    return [*found, *_after_verb(verb, current, folders)]


def _after_verb(verb: str, current: str, folders: ConfigFolders) -> list[str]:
    """Groups, choices, keys and values."""
    groups = verb_groups(verb, folders)
    space = KeySpace.make(ROOTS[verb], builtin_registry(), {})
    key, equals, value = current.partition("=")
    if not equals:
        return _keys(current, groups, space)
    if key in groups:
        return [f"{key}={choice}" for choice in _starting(value, groups[key])]
    return [f"{key}={choice}" for choice in _starting(value, _values(space.hints.get(key)))]


def _config_dir(before: Sequence[str]) -> str | None:
    """The value of `--config-dir`, if there is one."""
    for word, following in itertools.pairwise(before):
        if word == "--config-dir":
            return following
    return next((word.partition("=")[2] for word in before if word.startswith("--config-dir=")), None)


def _after_configs(before: Sequence[str], current: str, folders: ConfigFolders) -> list[str]:
    """Words after `configs`."""
    action = next((word for word in before if word in ACTIONS), None)
    if action is None:
        return _starting(current, ACTIONS)
    if before[-1] != action:
        return []
    names = {"ls": list(folders.groups()), "cat": list(folders.names()), "cp": list(folders.names())}
    return _starting(current, names.get(action, []))


def _after_verify(before: Sequence[str], current: str) -> list[str]:
    """Words that only `verify` takes: the verb to verify, its own keys, names of layouts."""
    key, equals, value = current.partition("=")
    if equals:
        return [f"{key}={name}" for name in _starting(value, [ALL, *SELECTION]) if key == "verify.layouts"]
    verbs = () if set(TRAINING) & set(before) else TRAINING
    if "." not in current:
        return _starting(current, [*verbs, "verify."])
    return _starting(current, [f"verify.{name}=" for name in field_types(VerifyConfig)])


def _keys(current: str, groups: dict[str, list[str]], space: KeySpace) -> list[str]:
    """Groups and top keys; keys of a section once its name is there."""
    if "." in current:
        return _starting(current, [f"{key}=" for key in space.leaves() if not key.endswith(".kind")])
    tops = [f"{group}=" for group in groups]
    for key in space.below(""):
        tops.append(f"{key}." if space.is_section(key) else f"{key}=")
    return _starting(current, tops)


def _values(hint: Any) -> list[str]:
    """The values of a key, where they can be listed."""
    bare, optional = strip_optional(hint)
    values: list[str] = []
    if isinstance(bare, type) and issubclass(bare, Enum):
        values = [str(member.value) for member in bare]
    elif bare is bool:
        values = ["true", "false"]
    return [*values, "null"] if optional and values else values


def _starting(prefix: str, words: Sequence[str]) -> list[str]:
    return [word for word in words if word.startswith(prefix)]
