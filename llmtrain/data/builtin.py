"""Text that every machine has offline: Python's own standard library, as code and as English prose."""

from __future__ import annotations

import ast
import inspect
import os
import platform
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from llmtrain.data.corpus import Corpus, Document, HashFile, Source, clean, hash_texts
from llmtrain.schema.data import PythonCodeData, PythonProseData
from llmtrain.utils.errors import DataError

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}
"""Folders that are not the library's code: other packages, tests, and texts that `python_prose` takes."""

MIN_FILES = 100
"""With fewer files the system has stripped its standard library."""

MIN_PROSE = 80
"""Characters of the shortest docstring that is taken; shorter ones are labels, not prose."""


def library_files() -> list[tuple[str, Path]]:
    """Name and path of each source file of the standard library, sorted by name.

    Raises:
        DataError: the system has no source files of it.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files: list[tuple[str, Path]] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        paths = [Path(folder, name) for name in names if name.endswith(".py")]
        files += [(path.relative_to(root).as_posix(), path) for path in paths]
    if len(files) < MIN_FILES:
        raise DataError(
            f"this Python comes without the source of its standard library ({len(files)} files)",
            str(root),
            "use data=text data.paths=[...], or a Python that was not stripped",
        )
    return sorted(files)


class LibraryCorpus(Corpus):
    """Source files of the standard library, one document each."""

    name = "python_code"

    def fingerprint(self, hash_file: HashFile) -> str:
        contents = (f"{name}:{hash_file(path)}" for name, path in self._files())
        return hash_texts(self.name, platform.python_version(), *contents)

    def documents(self) -> Iterator[Document]:
        for name, path in self._files():
            text = _read(path)
            if text.strip():  # an empty __init__.py is nothing to tell about
                yield Document(name, (text,))

    def _files(self) -> list[tuple[str, Path]]:
        return library_files()


class ProseCorpus(LibraryCorpus):
    """Docstrings, one document for each file, then the topics of `help()`, one document each."""

    name = "python_prose"

    def documents(self) -> Iterator[Document]:
        for where, text in self._texts:
            yield Document(where, (text,))

    @cached_property
    def _texts(self) -> list[tuple[str, str]]:
        """Where and text of each document, 2 MB in all; parsing the library takes seconds."""
        texts = []
        *modules, (topics_name, topics_path) = self._files()
        for name, path in modules:
            text = "\n\n".join(_docstrings(_read(path)))
            if text:
                texts.append((name, text))
        topics = _topics(_read(topics_path))
        return texts + [(f"{topics_name}: {topic}", text) for topic, text in topics if text]

    def _files(self) -> list[tuple[str, Path]]:
        path = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
        if not path.is_file():
            raise DataError(
                "this Python comes without the topics of help()",
                str(path),
                "use data=text data.paths=[...], or a Python that was not stripped",
            )
        return [*library_files(), ("pydoc_data/topics.py", path)]


def _read(path: Path) -> str:
    with tokenize.open(path) as file:  # honours a coding line
        return clean(file.read())


def _docstrings(code: str) -> Iterator[str]:
    """Prose of the docstrings in a file, in the order of the code."""
    waiting: list[ast.AST] = [ast.parse(code)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node, clean=False)
            prose = _prose(inspect.cleandoc(docstring)) if docstring else ""
            if len(prose) >= MIN_PROSE:
                yield prose
        children = ast.iter_child_nodes(node)
        blocks = [child for child in children if isinstance(child, (ast.stmt, ast.ExceptHandler))]
        waiting += reversed(blocks)


def _topics(code: str) -> Iterator[tuple[str, str]]:
    """The texts of `help()`: the one dictionary that the module assigns, read without running it."""
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for topic, text in sorted(ast.literal_eval(node.value).items()):
                yield topic, _prose(clean(text))


def _prose(text: str) -> str:
    """Paragraphs without examples of code: no prompts, no tables, mostly letters."""
    kept = []
    for paragraph in re.split(r"\n[ \t]*\n", text.strip("\n")):
        letters = sum(character.isalpha() or character in " \n" for character in paragraph)
        if ">>>" not in paragraph and letters >= 0.85 * len(paragraph):
            kept.append(inspect.cleandoc(paragraph))
    return "\n\n".join(kept)


def python_code_source(config: PythonCodeData) -> Source:
    """Source code of the standard library."""
    return Source(LibraryCorpus())


def python_prose_source(config: PythonProseData) -> Source:
    """English prose inside Python."""
    return Source(ProseCorpus())
