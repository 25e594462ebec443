"""Automata of grammars, against every text that a grammar derives, by brute force."""

import itertools
import json
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import ppl
from ppl.errors import ArgumentError, UnsupportedError
from ppl.inference.lm import grammars
from ppl.inference.lm.automaton import DEAD
from tests.inference.lm.tables import END, WORDS, enumerated, law, same, table

lm = ppl.lm
LETTERS = lm.Vocabulary(["a", "b", "(", ")", "+", None])
BYTES = lm.Vocabulary([bytes([b]) for b in range(256)] + [None])
JSON = r"""
start: value
?value: object | array | STRING | NUMBER | "true" | "false" | "null"
array: "[" [value ("," value)*] "]"
object: "{" [pair ("," pair)*] "}"
pair: STRING ":" value
STRING: /"([^"\\\x00-\x1f]|\\["\\\/bfnrt])*"/
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?/
WS: /[ \t\n\r]+/
%ignore WS
"""


def accepts(automaton, text):
    state = 0
    for byte in text.encode():
        state = automaton.moves[state, byte]
        if state == DEAD:
            return False
    return bool(automaton.accepting[state])


def language(automaton, vocabulary, most):
    """All texts up to a length, of tokens of one letter."""
    found, reached = set(), {"": 0}
    letters = [(i, p.decode()) for i, p in enumerate(vocabulary.pieces) if p]
    for _ in range(most + 1):
        found |= {text for text, state in reached.items() if automaton.accepting[state]}
        reached = {
            text + letter: automaton.moves[state, token]
            for text, state in reached.items()
            for token, letter in letters
            if automaton.moves[state, token] != DEAD
        }
    return found


def derived(rules, most):
    """All texts up to a length that a grammar derives: the least solution of its equations."""

    def joined(symbols):
        texts = {""}
        for s in symbols:
            texts = {t + u for t in texts for u in found.get(s, {s}) if len(t + u) <= most}
        return texts

    found = {rule: set() for rule in rules}
    while True:
        new = {rule: set().union(*map(joined, every)) for rule, every in rules.items()}
        if new == found:
            return found
        found = new


SYMBOLS = st.lists(st.sampled_from(["a", "b", "start", "x", "y"]), max_size=3).map(tuple)
EXPANSIONS = st.lists(SYMBOLS, min_size=1, max_size=3, unique=True)


def written(rules):
    def symbol(s):
        return s if s in rules else f'"{s}"'

    lines = (" | ".join(" ".join(map(symbol, s)) for s in every) for every in rules.values())
    return "\n".join(f"{rule}: {line}" for rule, line in zip(rules, lines, strict=True))


@given(st.fixed_dictionaries({"start": EXPANSIONS, "x": EXPANSIONS, "y": EXPANSIONS}))
def test_an_automaton_accepts_what_the_grammar_derives(rules):
    """Any recursion, rules that are empty, lead to themselves or derive nothing; no limit felt.

    What is enclosed has a letter on each side: five letters make no more than two levels.
    """
    wanted = derived(rules, 5)["start"]
    found = []
    for depth in (0, 1, 2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grammars, "MOST", 2000)  # a few are too ambiguous to wait for
            try:
                automaton = lm.grammar(written(rules), LETTERS, depth=depth)
            except ArgumentError as error:
                assume("more than 2000 states" not in str(error))
                if "can spell no text" not in str(error):
                    raise
                found.append(set())
            else:
                found.append(language(automaton, LETTERS, 5))
    assert found[0] <= found[1] <= found[2] == wanted


def test_depth_is_how_often_rules_enclose_themselves():
    rules = """
    start: sum
    sum: sum "+" part | part
    part: "a" | "b" | "(" sum ")"
    """
    brackets = {"start": [("sum",)], "sum": [("sum", "+", "part"), ("part",)]}
    brackets["part"] = [("a",), ("b",), ("(", "sum", ")")]
    every = derived(brackets, 7)["start"]

    def deep(text):
        return max(itertools.accumulate((c == "(") - (c == ")") for c in text))

    for depth in range(4):
        automaton = lm.grammar(rules, LETTERS, depth=depth)
        assert language(automaton, LETTERS, 7) == {t for t in every if deep(t) <= depth}
        assert len(automaton.moves) == 2 * (depth + 1)


@pytest.mark.parametrize(
    "rules",
    [
        'start: "a" start | "b"',
        'start: start "a" | "b"',
        'start: start "+" start | "a"',
        'start: ("a" | "b" x)* "+"\nx: "a"~2..3 | x "b"',
        'start: "a" x\nx: "b" start | "(" y\ny: ")" x | "+"',
    ],
)
def test_what_recurs_at_an_end_has_no_limit(rules):
    shallow, deep = (lm.grammar(rules, LETTERS, depth=d) for d in (0, 3))
    np.testing.assert_array_equal(shallow.moves, deep.moves)
    np.testing.assert_array_equal(shallow.accepting, deep.accepting)
    assert any(len(text) > 6 for text in language(shallow, LETTERS, 8))


def test_json():
    least = {"1": 0, " [ ] ": 0, '{ "a" : [ ] }': 1, "[1,2,3,null, true]": 1, "[[1],{}]": 2}
    least |= {'{"a":-0.5e3,"b":"é\\n","c":1}': 1, "[[[0]]]": 3, '{"a":[{"b":{}}]}': 3}
    no = ["", "[1,]", "{a:1}", "01", '"', "[1", "nul", '{"a"}', "1 2", "[[1]", '"\n"']
    for depth in range(4):
        automaton = lm.grammar(JSON, BYTES, depth=depth)
        for text, needed in least.items():
            json.loads(text)
            assert accepts(automaton, text) == (needed <= depth), (text, depth)
        assert not any(accepts(automaton, t) for t in no)


def test_terminals_may_be_cut_anywhere_and_lead_into_one_another():
    """No lexer chooses: a text counts if it falls into terminals in any way."""
    rules = "start: X Y?\nX: /a+b?/\nY: /b+/i"
    automaton = lm.grammar(rules, LETTERS)
    assert accepts(lm.grammar(rules, BYTES), "abBb")
    wanted = {"a" * n + "b" * m for n in range(1, 5) for m in range(5) if n + m <= 4}
    assert language(automaton, LETTERS, 4) == wanted


def test_a_mask_by_a_grammar_cuts_the_law_down_to_its_texts(x64):
    model = table(31)
    mask = lm.grammar('start: "a" start "b" | "b"', WORDS, depth=2)

    @ppl.model
    def program(model):
        return lm.step("step", model.prompt("", room=4), max_tokens=4, mask=mask).text

    texts = {"b", "abb", "aabbb"}
    ways = [t for n in range(1, 5) for t in itertools.product(range(END), repeat=n)]
    wanted = {t: law(model, len(t))[t] for t in ways if WORDS.decode(t) in texts}
    assert len(wanted) == 4
    same(enumerated(program(model)), wanted)


def test_what_cannot_be_a_grammar_is_refused(monkeypatch):
    for rules in [
        'start: "a" other',
        'begin: "a"',
        "start: X\n%declare X",
        "start: (",
        3,
        ["a"],
        "%import no.X",
    ]:
        with pytest.raises(ArgumentError, match="which cannot be read: "):
            lm.grammar(rules, LETTERS)
    for around in ("a(?=b)", "(?!a)b", "(?<=a)b", r"(?<!\\\\)b", r"\\\\(?=b)"):
        with pytest.raises(ArgumentError, match="looks around"):
            lm.grammar(f'start: /{around}/ "b" | "a"', LETTERS)
    assert accepts(lm.grammar(r"start: /\(?=a/", BYTES), "=a")  # a bracket, perhaps, and no look
    with pytest.raises(ArgumentError, match=r"enclose themselves \(start\) and no depth"):
        lm.grammar('start: "(" start ")" | "a"', LETTERS)
    for make in (lm.grammar, lm.regex):
        with pytest.raises(ArgumentError, match=r"needs the tokens of the model .* lm\.vocabulary"):
            make("start: X\nX: /a/", table(1))
    with pytest.raises(ArgumentError, match=r"terminal X got .*Flag u"):
        lm.grammar("start: X\nX: /a/u", LETTERS)
    with pytest.raises(ArgumentError, match=r"can spell no text \(depth=0\)"):
        lm.grammar('start: "(" start ")" start | "c"', LETTERS, depth=0)
    with pytest.raises(ArgumentError, match="depth=-1"):
        lm.grammar('start: "a"', LETTERS, depth=-1)
    with pytest.raises(ArgumentError, match="Did you mean"):
        lm.grammar('start: "a"', LETTERS, dept=1)
    monkeypatch.setattr(grammars, "MOST", 50)
    with pytest.raises(ArgumentError, match="depth=5, with rules that take more than 50 states"):
        lm.grammar(JSON, BYTES, depth=5)
    monkeypatch.setitem(sys.modules, "lark", None)
    with pytest.raises(UnsupportedError, match="pip install lark"):
        lm.grammar('start: "b"', LETTERS)
