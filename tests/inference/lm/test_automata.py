"""Automata over tokens, against Python's `re` on every text that the tokens can spell."""

import itertools
import re

import numpy as np
import pytest

import ppl
from ppl.errors import ArgumentError
from ppl.inference.lm.automaton import DEAD, stopping

lm = ppl.lm
ASCII = lm.Vocabulary(["a", "b", "ab", "ba", "\n", "0", None])
SPLIT = lm.Vocabulary(
    ["a", "é", b"\xc3", b"\xa9", b"\xa8", "日", b"\xe6\x97", b"\xa5", b"\xff", "a\xe9", None]
)
LENGTH = 4


def read(automaton, tokens):
    state = 0
    for token in tokens:
        state = automaton.moves[state, token]
        if state == DEAD:
            return None
    return state


def spellings(vocabulary, most=LENGTH):
    spelling = [i for i, p in enumerate(vocabulary.pieces) if p]
    for length in range(most + 1):
        for tokens in itertools.product(spelling, repeat=length):
            yield tokens, b"".join(vocabulary.pieces[t] for t in tokens)


@pytest.mark.parametrize(
    "pattern",
    [
        "[ab]*b",
        "a+",
        "(a|b){1,2}\n",
        "[^a]+",
        ".*0",
        "(ab)*",
        "a?b?0?",
        "ab|ba|aab",
        r"\d\n|\s",
        "",
    ],
)
@pytest.mark.parametrize("vocabulary", [ASCII, SPLIT], ids=["ascii", "split"])
def test_a_pattern_accepts_what_matches_and_no_dead_end(pattern, vocabulary):
    try:
        automaton = lm.regex(pattern, vocabulary)
    except ArgumentError:
        assert not any(matches(pattern, text) for _, text in spellings(vocabulary))
        return
    prefixes = set()
    for tokens, text in spellings(vocabulary):
        state = read(automaton, tokens)
        accepts = state is not None and bool(automaton.accepting[state])
        assert accepts == matches(pattern, text), (tokens, text)
        if accepts:
            prefixes |= {tokens[:n] for n in range(len(tokens) + 1)}
    for prefix in prefixes:
        assert read(automaton, prefix) is not None


@pytest.mark.parametrize("pattern", ["é+", "[^é]*", ".{2}", "[é日]a?", "(?:a|日)+"])
def test_characters_of_several_bytes_may_be_split_between_tokens(pattern):
    automaton = lm.regex(pattern, SPLIT)
    for tokens, text in spellings(SPLIT):
        state = read(automaton, tokens)
        assert (state is not None and bool(automaton.accepting[state])) == matches(pattern, text)


def matches(pattern, text):
    try:
        return re.fullmatch(pattern, text.decode(), re.ASCII) is not None
    except UnicodeDecodeError:
        return False


#: What outlines-core 0.2.14 makes of the schema of an object: a string "name" and an integer "age",
#: both required, and "tags", an array of "a" or "b".
SCHEMA = (
    r'\{[ ]?"name"[ ]?:[ ]?"([^"\\\x00-\x1F\x7F-\x9F]|\\["\\/bfnrt])*"[ ]?,[ ]?"age"[ ]?:[ ]?'
    r'(-)?(0|[1-9][0-9]*)([ ]?,[ ]?"tags"[ ]?:[ ]?\[[ ]?((("a"|"b"))(,[ ]?(("a"|"b"))){0,})?'
    r"[ ]?\])?[ ]?\}"
)


def test_a_pattern_made_of_a_json_schema():
    every = lm.Vocabulary([bytes([b]) for b in range(256)] + [None])
    automaton = lm.regex(SCHEMA, every)
    for text, matches in {
        '{"name": "日 \\" é", "age": -7}': True,
        '{"name":"x","age":0,"tags":["a", "b"]}': True,
        '{"name":"x","age":01}': False,
        '{"age":0,"name":"x"}': False,
        '{"name":"x","age":0,"tags":["c"]}': False,
        '{"name":"x","age":0': False,
    }.items():
        state = read(automaton, text.encode())
        assert (state is not None and bool(automaton.accepting[state])) == matches, text


def test_every_state_can_still_match():
    automaton = lm.regex("a(b0)*|ba\n", ASCII)
    live = automaton.accepting.copy()
    for _ in live:
        live |= [(row != DEAD).any() and live[row[row != DEAD]].any() for row in automaton.moves]
    assert live.all()


@pytest.mark.parametrize("stops", [("\n",), ("ab",), ("aab",), ("aba", "bb"), ("a\n", "\n0b")])
def test_a_stop_is_found_by_the_token_that_completes_it(stops):
    automaton = stopping(stops, ASCII)
    words = [s.encode() for s in stops]
    for tokens, _ in spellings(ASCII):
        state = read(automaton, tokens)
        texts = [b"".join(ASCII.pieces[t] for t in tokens[: n + 1]) for n in range(len(tokens))]
        hit = any(w in text for text in texts for w in words)
        assert bool(automaton.accepting[state]) == hit, tokens


def test_what_cannot_be_a_mask_is_refused():
    with pytest.raises(ArgumentError, match="an automaton can match"):
        lm.regex("(a", ASCII)
    with pytest.raises(ArgumentError, match=r"an automaton can match"):
        lm.regex(r"(a)\1", ASCII)
    with pytest.raises(ArgumentError, match="can spell some text"):
        lm.regex("zzz", ASCII)
    assert isinstance(lm.regex("a", ASCII).moves, np.ndarray)
