"""Texts drawn from regular expressions."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.workload.text_pattern import LONGEST_TEXT, draw_texts, text_pattern


def draws(pattern: str, count: int = 50, seed: int = 0) -> list[str]:
    return [text.decode() for text in draw_texts(pattern, count, np.random.default_rng(seed))]


@pytest.mark.parametrize(
    "pattern",
    [
        "[A-Z]{3}-[0-9]{4}",
        r"\+49 \d{2,4}/\d+",
        "(?:red|green|)( apple| pear){1,2}",
        r"[^a-z\]\\]{5}",
        r"[]x-]{3}[^]]",
        r"\w+@\w+\.(com|org)",
        r".{0,20}\S\s\D\W",
        "Größe: [äöü]?",
        "",
    ],
)
def test_every_text_matches_the_pattern_and_a_seed_repeats_them(pattern: str) -> None:
    texts = draws(pattern)
    assert all(re.fullmatch(pattern, text) for text in texts), texts
    assert draws(pattern) == texts
    assert len(set(texts)) > 1 or pattern == ""
    assert max(map(len, texts)) <= text_pattern(pattern).longest


def test_each_alternative_and_number_of_repetitions_occurs() -> None:
    assert set(draws("a|b{2}|", 200)) == {"a", "bb", ""}
    assert {len(text) for text in draws("x{2,4}", 200)} == {2, 3, 4}
    assert {len(text) for text in draws("x{2,}", 500)} == set(range(2, 13))


def test_listed_words_are_each_as_likely_and_may_be_listed_twice() -> None:
    texts = draws("(?:one|two|one|)", 4_000)
    assert texts.count("one") == pytest.approx(2_000, rel=0.1)
    assert texts.count("") == pytest.approx(1_000, rel=0.15)


REPETITIONS = st.sampled_from(["?", "*", "+", "{2}", "{1,3}"])
ATOMS = st.sampled_from(["a", "[b-d]", r"\d", ".", "[^x]", r"\.", "-"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds("".join, st.lists(inner, max_size=4)),
        st.builds(lambda a, b: f"(?:{a}|{b})", inner, inner),
        st.builds(
            lambda a, n: f"({a}){n}", inner, st.sampled_from(["?", "*", "+", "{2}", "{1,3}"])
        ),
    ),
    max_leaves=6,
)


@given(PATTERNS, st.integers(0, 2**32))
def test_pythons_own_expressions_match_what_is_drawn(pattern: str, seed: int) -> None:
    try:
        [text] = draws(pattern, 1, seed)
    except ValueError as error:
        assert "at most" in str(error)  # noqa: PT017 - only the length may be refused
        return
    assert re.fullmatch(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        ("a)", r"has a '\)' without '\(' at character 2"),
        ("(a", r"needs '\)'"),
        ("[a", "must not end within a group, a class or an escape"),
        ("a\\", "must not end within"),
        ("*a", r"has '\*' where a character must stand"),
        ("^a$", r"has '\^' where a character must stand \(write \\\^\)"),
        ("a{2}{3}", "must have one repetition"),
        ("a{3,2}", r"few to many times, got \{3,2\}"),
        ("a{x}", "must have a number from 0 to 100,000 within braces"),
        ("a{99999999999}", "must have a number"),
        (r"\b", r"must not have \\b"),
        (r"\1", r"must not have \\1"),
        ("(?=a)", r"'\(\?:'"),
        ("[z-a]", "ranges from a lower to a higher"),
        (r"[^\w\W]", "must leave a character in every class"),
        ("((a{100}){100}){100}", f"at most {LONGEST_TEXT:,} characters"),
        ("(" * 5000 + ")" * 5000, "at most 20 groups within each other"),
    ],
)
def test_what_gives_no_texts_is_refused(pattern: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        text_pattern(pattern)
