"""Every field of every schema says what it means."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from llmtrain.schema.docs import field_docs
from llmtrain.schema.load import field_types, strip_optional
from llmtrain.schema.registry import BUILTIN
from llmtrain.schema.roots import ROOTS
from llmtrain.schema.verify import VerifyWords


def schemas() -> list[type]:
    found: dict[type, None] = {}

    def visit(schema: Any) -> None:
        found[schema] = None
        for hint in field_types(schema).values():
            bare = strip_optional(hint)[0]
            if dataclasses.is_dataclass(bare) and bare not in found:
                visit(bare)

    for schema in [*ROOTS.values(), VerifyWords, *(kind for kinds in BUILTIN.values() for kind in kinds)]:
        visit(schema)
    return list(found)


@pytest.mark.parametrize("schema", schemas(), ids=lambda schema: schema.__name__)
def test_every_field_has_a_docstring(schema: type) -> None:
    docs = field_docs(schema)
    for field in dataclasses.fields(schema):
        assert len(docs.get(field.name, "")) > 5, f"{schema.__name__}.{field.name}"
    assert schema.__doc__
    assert not schema.__doc__.startswith(f"{schema.__name__}(")
