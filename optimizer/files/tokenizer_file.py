"""The vocabulary in a tokenizer.json of the tokenizers package, read without that package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.files.untrusted import UnreadableError, parse_json, read_bytes

TOKENIZER_FILE = "tokenizer.json"

_BEGINS_WORD = ("Ġ", "▁")
"""Marks of tokens that begin a word, in vocabularies that mark these and not the others."""


@dataclass(frozen=True)
class Vocabulary:
    """What a tokeniser can answer.

    Attributes:
        size: one more than the largest token.
        words: texts of lower-case letters that are one token each, in the order of their tokens.
    """

    size: int
    words: tuple[str, ...]


def read_vocabulary(path: Path) -> Vocabulary:
    """Return the vocabulary of a tokenizer.json.

    Raises:
        UnreadableError: when it is none, with the rule that it breaks.
    """
    content = parse_json(read_bytes(path))
    tokens = dict(_tokens(content))
    if not tokens:
        raise UnreadableError("must be a tokenizer.json of the tokenizers package")
    in_order = sorted(tokens, key=lambda token: tokens[token])
    marked = any(token.startswith(_BEGINS_WORD) for token in in_order)
    begun = (token[1:] for token in in_order if token.startswith(_BEGINS_WORD))
    words = begun if marked else in_order
    return Vocabulary(
        max(tokens.values()) + 1,
        tuple(
            word
            for word in words
            if len(word) > 1 and word.isascii() and word.islower() and word.isalpha()
        ),
    )


def _tokens(content: Any) -> Iterator[tuple[str, int]]:
    """Yield each token with its number."""
    model = content.get("model") if isinstance(content, Mapping) else None
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, Mapping):
        yield from ((text, n) for text, n in vocabulary.items() if isinstance(n, int))
    elif isinstance(vocabulary, list):  # of Unigram: pairs of text and score
        pairs = enumerate(vocabulary)
        yield from ((str(pair[0]), n) for n, pair in pairs if isinstance(pair, list) and pair)
    else:
        return
    for token in content.get("added_tokens") or ():
        if isinstance(token, Mapping) and isinstance(token.get("id"), int):
            yield str(token.get("content")), token["id"]
