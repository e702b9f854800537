"""What is done to documents before they are tokenised. Every step is off unless it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from llmtrain.schema.fields import require


class UnicodeForm(str, Enum):
    """Normal forms of Unicode (UAX 15)."""

    none = "none"
    NFC = "NFC"
    NFKC = "NFKC"


class Personal(str, Enum):
    """Personal data that can be told by their form."""

    email = "email"
    phone = "phone"
    ip = "ip"
    card = "card"


def _share(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(value is None or 0 <= value <= 1, name, "must be from 0 to 1, or null")


@dataclass
class QualityConfig:
    """Rules about words and lines (Rae et al. 2021, "Scaling Language Models: ... Gopher", section A.1.1).

    A document that breaks a rule is removed. Each limit can be moved, or left out with null.
    """

    apply: bool = True
    """Remove documents by these rules; true as soon as one of these keys is set."""

    min_words: int | None = 50
    """Fewest words."""

    max_words: int | None = 100_000
    """Most words."""

    min_word_length: float | None = 3.0
    """Shortest mean length of a word, in characters."""

    max_word_length: float | None = 10.0
    """Longest mean length of a word, in characters."""

    max_symbols_per_word: float | None = 0.1
    """Most hash signs, and most ellipses, for each word."""

    max_bullet_lines: float | None = 0.9
    """Greatest share of lines that start with a bullet."""

    max_ellipsis_lines: float | None = 0.3
    """Greatest share of lines that end with an ellipsis."""

    min_alphabetic_words: float | None = 0.8
    """Smallest share of words with a letter in them."""

    min_stop_words: int | None = None
    """Fewest occurrences of the, be, to, of, and, that, have, with; the paper asks for 2. Default: not
    asked, for it is a rule for English only."""

    def __post_init__(self) -> None:
        _share(self, "max_bullet_lines", "max_ellipsis_lines", "min_alphabetic_words")


@dataclass
class RepetitionConfig:
    """Rules about text that repeats itself (Rae et al. 2021, table A1).

    A document that breaks a rule is removed. Each limit can be moved, or left out with null.
    """

    apply: bool = True
    """Remove documents by these rules; true as soon as one of these keys is set."""

    max_duplicate_lines: float | None = 0.3
    """Greatest share of lines that stood before."""

    max_duplicate_paragraphs: float | None = 0.3
    """Greatest share of paragraphs that stood before."""

    max_duplicate_line_characters: float | None = 0.2
    """Greatest share of characters in lines that stood before."""

    max_duplicate_paragraph_characters: float | None = 0.2
    """Greatest share of characters in paragraphs that stood before."""

    max_top_ngrams: list[float] = field(default_factory=lambda: [0.2, 0.18, 0.16])
    """Greatest share of characters in the most frequent run of 2, 3, 4 words."""

    max_duplicate_ngrams: list[float] = field(default_factory=lambda: [0.15, 0.14, 0.13, 0.12, 0.11, 0.1])
    """Greatest share of characters in runs of 5, 6, 7, 8, 9, 10 words that stood before."""

    def __post_init__(self) -> None:
        _share(self, "max_duplicate_lines", "max_duplicate_paragraphs")
        _share(self, "max_duplicate_line_characters", "max_duplicate_paragraph_characters")
        for name in ("max_top_ngrams", "max_duplicate_ngrams"):
            require(all(0 <= one <= 1 for one in getattr(self, name)), name, "must be shares from 0 to 1")
        require(len(self.max_top_ngrams) <= 3, "max_top_ngrams", "has limits for 2, 3 and 4 words")


@dataclass
class NearDuplicatesConfig:
    """Documents that are nearly equal, found by MinHash (Broder 1997; Lee et al. 2022).

    Needs the package `datasketch`.
    """

    apply: bool = True
    """Remove documents that are nearly equal to one before them; true as soon as one of these keys is set."""

    threshold: float = 0.8
    """Share of their runs of words that two documents must have in common (Jaccard similarity)."""

    ngram: int = 5
    """Words in a run."""

    permutations: int = 128
    """Hash functions; the similarity is estimated within about 1 / sqrt(permutations)."""

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, "threshold", "must be above 0 and at most 1")
        require(self.ngram > 0, "ngram", "must be greater than 0")
        require(self.permutations >= 16, "permutations", "must be at least 16")


@dataclass
class CleanConfig:
    """Steps of cleaning, done in the order in which they stand here."""

    html: bool = False
    """Take the main text out of HTML. Needs the package `trafilatura`."""

    unicode: UnicodeForm = UnicodeForm.none
    """Normal form of Unicode: NFC joins letters and accents; NFKC also replaces ligatures, full-width
    letters and the like."""

    control_characters: bool = False
    """Remove control characters (but tab and line end), byte order marks and half or unassigned
    characters (noncharacters)."""

    quality: QualityConfig | None = None
    """Rules about words and lines."""

    repetition: RepetitionConfig | None = None
    """Rules about text that repeats itself."""

    personal: list[Personal] = field(default_factory=list)
    """Kinds of personal data that are replaced by a mark such as <email>: email, phone, ip, card (numbers
    whose check digit is right)."""

    exact_duplicates: bool = False
    """Remove documents whose text stood before."""

    near_duplicates: NearDuplicatesConfig | None = None
    """Documents that are nearly equal."""
