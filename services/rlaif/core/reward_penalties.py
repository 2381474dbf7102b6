"""Penalties on the text of a response. Each is a number of at most 0, so that a weight of 1 takes it off the reward."""

from __future__ import annotations

from collections.abc import Sequence


def length_penalty(length: int, *, limit: int, per_unit: float, cap: float) -> float:
    """-min(cap, per_unit · max(0, length - limit)), lengths in words or tokens.

    With per_unit = 1 / L_cache, limit = L_max - L_cache and cap = 1 it is the soft overlong punishment of DAPO
    (Yu et al. 2025, arXiv 2503.14476, eq. 13).
    """
    excess = length - limit
    return -min(cap, per_unit * excess) if excess > 0 else 0.0


def repetition_penalty(words: Sequence[str], *, ngram_size: int) -> float:
    """Minus the share of n-grams that repeat an earlier one, in (-1, 0]; 0 where there is no n-gram.

    The share is seq-rep-n = 1 - |unique n-grams| / |n-grams| (Welleck et al. 2019, arXiv 1908.04319), taken over
    words instead of tokens, so that it does not depend on a tokenizer.
    """
    num_ngrams = len(words) - ngram_size + 1
    if num_ngrams < 2:
        return 0.0
    unique = set(zip(*(words[start:] for start in range(ngram_size)), strict=False))
    return len(unique) / num_ngrams - 1.0


def words_of(text: str) -> list[str]:
    """Its words: what stands between white space, in lower case."""
    return text.lower().split()
