"""What a model declares about itself, so that layouts can be applied from outside."""

from __future__ import annotations

from enum import Enum


class Split(str, Enum):
    """What tensor parallelism does with a module.

    Between modules each process has its share of the tokens of a row (sequence parallel, Korthikanti et al.
    2022); inside attention and feed-forward layers it has all tokens and its share of the heads or hidden
    units (Shoeybi et al. 2019, "Megatron-LM").
    """

    gather = "gather"
    """Its first input is gathered to all tokens; it works with its share of what comes after."""

    gather_whole = "gather_whole"
    """Its first input is gathered to all tokens, and every process goes on with the same."""

    columns = "columns"
    """A linear layer with a share of the output features."""

    rows = "rows"
    """A linear layer with a share of the input features; the sums are shared out over the tokens."""

    lookup = "lookup"
    """The embedding of the tokens, with a share of the vocabulary; gives the own share of the tokens."""

    vocabulary = "vocabulary"
    """Parameters with a share of the vocabulary; the module itself knows how to work with it."""

    own_tokens = "own_tokens"
    """Whole parameters, used on the own share of the tokens: norms."""

    own_heads = "own_heads"
    """Whole parameters, used on the own share of the heads, (B, H, T, K): norms of queries and keys."""

    own_lookup = "own_lookup"
    """An embedding that is whole, looked up for the own share of the tokens: positions, segments."""

    whole = "whole"
    """Whole parameters, used on the same input by every process: small layers of heads."""


TensorPlan = dict[str, Split]
"""Patterns of module names (`blocks.*.attention.query`), relative to the module that declares them."""
