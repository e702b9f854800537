"""The pages of the documentation: fenced blocks, the commands in them, the files that they bring along."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
"""What is written for users."""

SHELL = ("", "bash", "sh", "console")
"""Languages of blocks with commands; one without a language may show output too."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: file name.
        line: of its first line, from 1.
        language: behind the opening fence.
        text: what it holds.
        run: X of a comment `<!-- run: X -->` right above it: a test runs the commands of the block; else "".
    """

    page: str
    line: int
    language: str
    text: str
    run: str = ""


@dataclass(frozen=True)
class Command:
    """A command line of a page.

    Attributes:
        where: `page:line`.
        words: behind `llmtrain`, as the shell gives them.
    """

    where: str
    words: tuple[str, ...]


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a page."""
    found: list[Block] = []
    lines, number = path.read_text(encoding="utf-8").splitlines(), 0
    while number < len(lines):
        opening = re.match(r"( *)```(\w*)", lines[number])
        number += 1
        if opening is None:
            continue
        start, indent = number, len(opening[1])
        while not lines[number].strip().startswith("```"):
            number += 1
        text = "\n".join(line[indent:] for line in lines[start:number])
        above = re.fullmatch(r"<!-- run: (\w+) -->", lines[start - 2].strip()) if start > 1 else None
        found.append(Block(path.name, start + 1, opening[2], text, above[1] if above else ""))
        number += 1
    return found


def commands(block: Block) -> list[Command]:
    """The command lines of `llmtrain` in a block; `python -m llmtrain` and torchrun's are such lines too."""
    found: list[Command] = []
    if block.language not in SHELL:
        return found
    whole, start = "", 0
    for number, line in enumerate(block.text.splitlines()):
        start = start if whole else number
        whole += line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        if not re.search(r"\bllmtrain\s+[\w-]", whole):
            whole = ""
            continue
        for part in re.split(r"\s(?:\||&&)\s|;\s", whole):
            words = shlex.split(part.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*|until|while|if|exec|srun", words[0]):
                words = words[1:]
            if "llmtrain" in words and words[0] in ("llmtrain", "python", "torchrun"):
                behind = words[words.index("llmtrain") + 1 :]
                found.append(Command(f"{block.page}:{block.line + start}", tuple(behind)))
        whole = ""
    return found


def write_files(path: Path, folder: Path) -> list[Path]:
    """Write what a page brings along: blocks that start with a comment such as `# folder/name.py`."""
    written = []
    for block in blocks(path):
        first, _, rest = block.text.partition("\n")
        name = re.fullmatch(r"# ([\w.-]+(?:/[\w.-]+)+)", first)
        if name and block.language in ("python", "yaml"):
            target = folder / name[1]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(rest + "\n", encoding="utf-8")
            written.append(target)
    return written
