"""Documents that stood before: the same text, or nearly the same by MinHash.

What is computed of a document by itself (digest, signature) is apart from what is remembered of all of them,
so that the first can be done in many processes and the second in one, in the order of the documents.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np

from llmtrain.schema.clean import NearDuplicatesConfig
from llmtrain.utils.errors import ConfigError

_WORDS = re.compile(r"\w+")

SCHEME = "affine32"
"""Way of hashing: values of 32 bits, without the bias of older versions on large sets."""

FIX = "pip install 'llmtrain[clean]'"


def text_digest(text: str) -> str:
    """Hash of a text, blanks and line ends at its borders left out: 32 hex digits."""
    return hashlib.blake2b(text.strip().encode(errors="surrogatepass"), digest_size=16).hexdigest()


def signature(text: str, config: NearDuplicatesConfig) -> str:
    """MinHash signature of the runs of words of a text, as hex of (permutations,) uint32.

    Words are compared in lower case; a text of fewer words than a run is one run.
    """
    from datasketch import MinHash

    words = _WORDS.findall(text.lower())
    n = config.ngram
    runs = {" ".join(words[i : i + n]).encode() for i in range(max(1, len(words) - n + 1))}
    sketch = MinHash(config.permutations, seed=1, scheme=SCHEME)
    sketch.update_batch(runs)
    return np.asarray(sketch.hashvalues, np.uint32).tobytes().hex()


def version() -> str:
    """Of the package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import datasketch
    except ImportError:
        key = "data.clean.near_duplicates"
        raise ConfigError(f"{key} needs the package datasketch", key, FIX) from None
    return str(datasketch.__version__)


class ExactDuplicates:
    """The texts that were seen, by their hashes: about 160 bytes of memory for each."""

    def __init__(self) -> None:
        self._seen: dict[bytes, str] = {}

    def first(self, digest: str, where: str) -> str | None:
        """Where the same text stood first; None for a new one, which is remembered."""
        key = bytes.fromhex(digest)
        found = self._seen.get(key)
        if found is None:
            self._seen[key] = where
        return found


class NearDuplicates:
    """The documents that were kept, by their signatures: about 4 KB of memory for each.

    Candidates come from hashing bands of the signature (`datasketch.MinHashLSH`); one counts if the
    similarity that the signatures tell reaches the threshold.
    """

    def __init__(self, config: NearDuplicatesConfig) -> None:
        from datasketch import MinHash, MinHashLSH

        self._config = config
        self._sketch = MinHash
        self._index: Any = MinHashLSH(threshold=config.threshold, num_perm=config.permutations)
        self._kept: list[tuple[np.ndarray, str]] = []

    def first(self, signature: str, where: str) -> tuple[str, float] | None:
        """The most similar document that stood before, and its similarity; None for a new one, which is
        remembered."""
        values = np.frombuffer(bytes.fromhex(signature), np.uint32)
        sketch = self._sketch(hashvalues=values, seed=1, scheme=SCHEME)
        found = [
            (float((self._kept[number][0] == values).mean()), -number) for number in self._index.query(sketch)
        ]
        similarity, number = max(found, default=(0.0, 0))
        if similarity >= self._config.threshold:
            return self._kept[-number][1], similarity
        self._index.insert(len(self._kept), sketch, check_duplication=False)
        self._kept.append((values, where))
        return None
