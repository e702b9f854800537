"""A tokenizer as a human reads it."""

from __future__ import annotations

from llmtrain.data.tokenizer import Tokenizer

LONGEST = 12
"""Longest tokens that are shown."""

SAMPLE = "The quick brown fox, aged 7.5 years,\n  jumps over naïve 犬 🙂!"


def inspect_tokenizer(tokenizer: Tokenizer) -> str:
    """Size, special tokens, the longest tokens, and a sentence in tokens."""
    inner = tokenizer.inner
    model = type(inner.model).__name__
    lines = [
        f"tokenizer: {model}, {tokenizer.vocab_size:,} tokens, ends documents with {tokenizer.end_token}"
    ]
    added = inner.get_added_tokens_decoder()
    for title, special in (("special", True), ("added", False)):
        chosen = [f"{token.content} = {i}" for i, token in sorted(added.items()) if token.special is special]
        if chosen:
            lines.append(f"{title}: {', '.join(chosen)}")
    plain = {token: i for token, i in inner.get_vocab(with_added_tokens=False).items() if i not in added}
    longest = sorted(plain, key=lambda token: (-len(token), token))[:LONGEST]
    shown = [repr(tokenizer.decode([plain[token]])) for token in longest]
    lines.append(f"longest: {' '.join(shown)}")
    ids = tokenizer.encode(SAMPLE)
    lines.append(f"example: {SAMPLE!r}")
    tokens = " ".join(f"{inner.id_to_token(int(i))}" for i in ids)
    lines.append(f"  {len(ids)} tokens: {tokens!r}")
    back = tokenizer.decode(ids)
    same = "the same text" if back == SAMPLE else repr(back)
    lines.append(f"  gives back {same}")
    return "\n".join(lines)
