"""Text that grows token by token."""

from __future__ import annotations

from collections.abc import Sequence

from llmtrain.data.tokenizer import Tokenizer

BROKEN = "\ufffd"
"""Stands for bytes that are no character, or not yet: several tokens may make one."""

WINDOW = 32
"""Tokens that are decoded together at most, where nothing stands in the way."""

KEPT = 8
"""Tokens before the newest that are decoded with them, since a token's text may depend on what is before."""


class TextStream:
    """The text of tokens that come one by one, of which every part is given out once, when it is certain.

    What is held back: characters whose last bytes are still to come, and what may turn out to be the start of
    a stop string.

    Args:
        tokenizer: of the tokens.
        context: tokens before the first.
        stops: texts that end it; what follows the first of them, and itself, is cut off.

    Attributes:
        text: so far, without what is incomplete.
        stopped: whether a stop string was found; nothing follows then.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = (), stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._ids = list(context[-KEPT:])
        self._told = len(tokenizer.decode(self._ids))
        self._given = 0
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> None:
        """The next token."""
        self._ids.append(token)
        decoded = self._tokenizer.decode(self._ids)
        certain = decoded.rstrip(BROKEN)
        if len(certain) > self._told:
            self._extend(certain[self._told :])
            self._told = len(certain)
        if len(self._ids) > WINDOW and certain == decoded:
            rest = self._tokenizer.decode(self._ids[-KEPT:])
            if not rest.startswith(BROKEN):  # else a character would be torn
                self._ids, self._told = self._ids[-KEPT:], len(rest)

    def take(self) -> str:
        """What has become certain since the last time."""
        end = len(self.text) if self.stopped else len(self.text) - self._waiting()
        piece = self.text[self._given : end]
        self._given = max(self._given, end)
        return piece

    def close(self) -> str:
        """The rest: no token follows."""
        if not self.stopped:
            self._extend(self._tokenizer.decode(self._ids)[self._told :])
        piece = self.text[self._given :]
        self._given = len(self.text)
        return piece

    def _extend(self, more: str) -> None:
        start = max(0, len(self.text) - max(map(len, self._stops), default=1) + 1)
        self.text += more
        found = [place for stop in self._stops if (place := self.text.find(stop, start)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _waiting(self) -> int:
        """Characters at the end that may be the start of a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-length:]) for stop in self._stops):
                return length
        return 0
