"""A configuration as text: `config.yaml` of a run, and the JSON that verbs without a run directory get.

The first key is `verb`, the rest is the dump of the verb's dataclass. It is read as plain data: nothing
is composed, resolved or executed.
"""

from __future__ import annotations

from typing import Any

import yaml

from llmtrain.schema.load import dump, suggest
from llmtrain.schema.roots import ROOTS
from llmtrain.utils.errors import ConfigError


def config_text(verb: str, config: Any) -> str:
    """YAML of a configuration (dataclass or plain data), with the verb first."""
    return yaml.safe_dump({"verb": verb, **dump(config)}, sort_keys=False, allow_unicode=True, width=110)


def read_plain(text: str, where: str) -> tuple[str, dict[str, Any]]:
    """Verb and plain data of a stored configuration.

    Raises:
        ConfigError: it is none.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the stored config is not valid YAML: {error}", where) from None
    if not isinstance(data, dict) or data.get("verb") not in ROOTS:
        verb = data.get("verb") if isinstance(data, dict) else None
        raise ConfigError(f"the stored config has no known verb: {verb!r}", where, suggest(str(verb), ROOTS))
    return str(data.pop("verb")), data
