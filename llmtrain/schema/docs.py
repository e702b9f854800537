"""Docstrings of config fields, read from the source: help and reference are made from them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap


def field_docs(schema: type) -> dict[str, str]:
    """Docstring of every field of a dataclass, base classes included; missing ones are left out."""
    docs: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for statement, follower in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(follower, ast.Expr)
                and isinstance(follower.value, ast.Constant)
                and isinstance(follower.value.value, str)
            ):
                docs[statement.target.id] = " ".join(follower.value.value.split())
    return docs
