"""Examples of made-up tasks, in the file forms of real ones."""

from __future__ import annotations

import json
import random
from pathlib import Path

SMALL = ["train.batch_size=16", "train.sequence_length=48", "launch.threads=1", "compile=never"]
"""Settings of a training that is small enough for any test."""

NAMES = ["the cat", "a dog", "my aunt", "the old captain", "every student", "no machine"]
VERBS = ["sees", "follows", "paints", "forgets", "measures", "counts"]
THINGS = ["the river", "two apples", "a quiet song", "its own shadow", "the first page", "many stars"]


def write_classification(path: Path, rows: int, seed: int = 0) -> Path:
    """Sentences by their verb: `action` for the first three, else `thought`."""
    chooser = random.Random(seed)
    lines = ["text\tlabel"]
    for _ in range(rows):
        verb = chooser.choice(VERBS)
        label = "action" if VERBS.index(verb) < 3 else "thought"
        lines.append(f"{chooser.choice(NAMES)} {verb} {chooser.choice(THINGS)}\t{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_numbers(path: Path, rows: int, seed: int = 0) -> Path:
    """Sentences with a number that depends on their verb: about 1000, and 50 to either side."""
    chooser = random.Random(seed)
    lines = ["text\tnumber"]
    for _ in range(rows):
        verb = chooser.choice(VERBS)
        number = 1000 + 30 * (VERBS.index(verb) - 2.5)
        lines.append(f"{chooser.choice(NAMES)} {verb} {chooser.choice(THINGS)}\t{number}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_pairs(path: Path, rows: int, seed: int = 0) -> Path:
    """Pairs of sentences with a number: the place of the second verb in the list."""
    chooser = random.Random(seed)
    lines = ["first\tsecond\tscore"]
    for _ in range(rows):
        parts = [chooser.choice(words) for words in (NAMES, VERBS, THINGS)]
        other = [
            part if chooser.random() < 0.5 else chooser.choice(words)
            for part, words in zip(parts, (NAMES, VERBS, THINGS), strict=True)
        ]
        lines.append(f"{' '.join(parts)}\t{' '.join(other)}\t{VERBS.index(other[1])}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_entities(path: Path, sentences: int, seed: int = 0) -> Path:
    """CoNLL columns: who does something is a WHO, what it is done to a WHAT."""
    chooser = random.Random(seed)
    lines: list[str] = []
    for _ in range(sentences):
        for part, kind in (
            (chooser.choice(NAMES), "WHO"),
            (chooser.choice(VERBS), None),
            (chooser.choice(THINGS), "WHAT"),
        ):
            for number, word in enumerate(part.split()):
                tag = "O" if kind is None else f"{'I' if number else 'B'}-{kind}"
                lines.append(f"{word} x {tag}")
        lines.append("")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_questions(path: Path, paragraphs: int, seed: int = 0) -> Path:
    """SQuAD v1.1: of two sentences, who does a thing?"""
    chooser = random.Random(seed)
    articles = []
    for number in range(paragraphs):
        names, verbs = chooser.sample(NAMES, 2), chooser.sample(VERBS, 2)
        context = " ".join(
            f"{name} {verb} {chooser.choice(THINGS)} ." for name, verb in zip(names, verbs, strict=True)
        )
        questions = [
            {
                "id": f"q{number}-{k}",
                "question": f"who {verb} ?",
                "answers": [{"text": name, "answer_start": context.index(name)}],
            }
            for k, (name, verb) in enumerate(zip(names, verbs, strict=True))
        ]
        articles.append({"context": context, "qas": questions})
    data = {"version": "1.1", "data": [{"title": "made up", "paragraphs": articles}]}
    path.write_text(json.dumps(data), encoding="utf-8")
    return path
