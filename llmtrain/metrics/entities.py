"""Entities in sequences of tags, and their precision, recall and F1 as conlleval counts them.

The rules are those of the shared tasks' script (`conlleval.pl`, CoNLL-2000; Tjong Kim Sang & Buchholz 2000)
with its usual extension to E- and S- tags; M- (BMES) means the same as I-. They make sense of any sequence,
well formed or not: a word with a tag other than O always belongs to an entity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmtrain.schema.task import Scheme

OUTSIDE = "O"
"""Tag of a word that belongs to no entity."""

PREFIXES = {Scheme.bio: "BI", Scheme.bioes: "BIES", Scheme.bmes: "BMES"}
"""First letters of the tags of a scheme besides O."""


class Entity(NamedTuple):
    """Words `start` to `end` (the first behind it) of a sentence; `type` is empty for tags without one."""

    type: str
    start: int
    end: int


def is_tag(tag: str, scheme: Scheme) -> bool:
    """Whether a tag belongs to a scheme: O, or one of its letters alone or followed by `-` and a type."""
    prefix, _, _ = tag.partition("-")
    return tag == OUTSIDE or (len(prefix) == 1 and prefix in PREFIXES[scheme])


def entities(tags: Sequence[str]) -> list[Entity]:
    """Entities of one sentence, in order.

    A word goes on with the entity of the word before it if that one's tag is B- or I- (M-), its own is
    I- (M-) or E-, and both name the same type. Else, unless its tag is O, it begins a new one: so I- after
    O, after E- or S-, or after another type begins an entity, and so does E-.
    """
    found: list[Entity] = []
    open_type: str | None = None  # of the entity that the next word may go on with
    for place, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix in ("I", "M", "E") and kind == open_type:
            found[-1] = found[-1]._replace(end=place + 1)
        elif prefix != OUTSIDE:
            found.append(Entity(kind, place, place + 1))
        open_type = kind if prefix in ("B", "I", "M") else None
    return found


@dataclass
class EntityCounts:
    """How many entities there are, were predicted, and were predicted rightly (type, start and end)."""

    correct: int = 0
    predicted: int = 0
    actual: int = 0

    def __add__(self, other: EntityCounts) -> EntityCounts:
        return EntityCounts(
            self.correct + other.correct, self.predicted + other.predicted, self.actual + other.actual
        )

    @property
    def precision(self) -> float:
        """Share of the predicted entities that are right; 0 where none was predicted."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the actual entities that were found; 0 where there is none."""
        return self.correct / self.actual if self.actual else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where nothing is right."""
        total = self.predicted + self.actual
        return 2 * self.correct / total if total else 0.0


def count_entities(
    predicted: Iterable[Sequence[str]], actual: Iterable[Sequence[str]]
) -> dict[str, EntityCounts]:
    """Counts for each type, sorted by name.

    Args:
        predicted: tags of each sentence.
        actual: tags of the same sentences.
    """
    counts: dict[str, EntityCounts] = {}
    for predicted_tags, actual_tags in zip(predicted, actual, strict=True):
        assert len(predicted_tags) == len(actual_tags), (len(predicted_tags), len(actual_tags))
        said, true = set(entities(predicted_tags)), set(entities(actual_tags))
        for entity in said | true:
            one = counts.setdefault(entity.type, EntityCounts())
            one.predicted += entity in said
            one.actual += entity in true
            one.correct += entity in said and entity in true
    return dict(sorted(counts.items()))
