"""`grammar`: the automaton of a context-free grammar, over tokens."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppl.counts import count
from ppl.errors import ArgumentError, UnsupportedError, message, named_keywords
from ppl.inference.lm.automaton import Automaton, over_vocabulary
from ppl.inference.lm.left_corner import Frame, LeftCorner, without_empty
from ppl.inference.lm.patterns import over_bytes
from ppl.inference.lm.vocabulary import Vocabulary, require_vocabulary

#: An automaton of more states is refused: over 49,152 tokens its table would take two gigabytes.
MOST = 20_000


@named_keywords
def grammar(
    rules: str, vocabulary: Vocabulary, *, start: str = "start", depth: int | None = None
) -> Automaton:
    """Make the automaton of a context-free grammar, which has to derive a whole text.

    **Meaning.** The texts that the grammar derives, whatever the derivation and however they fall
    into terminals. Since an automaton has no stack, rules may enclose themselves at most `depth`
    times, with text of theirs to the left and to the right: brackets within brackets. Deeper texts
    are not in the measure. Repetition, and recursion at the left or right end of a rule, is not
    limited; a grammar of no other kind is taken whole, and needs no depth.

    Args:
        rules: the grammar as the package lark writes it. Its terminals are strings and regular
            expressions that `regex` can read and that do not look around: `ESCAPED_STRING` of
            lark's own does, `/"[^"]*"/` does not. Priorities do not matter.
        vocabulary: the tokens; `lm.vocabulary`.
        start: the rule that whole texts come from.
        depth: how often rules may enclose themselves, where they can. Each level multiplies the
            states.

    Raises:
        UnsupportedError: the package lark or interegular is not installed.
        ArgumentError: they cannot read the grammar, it needs a depth, the tokens can spell none of
            its texts, or the automaton has too many states.
    """
    if not isinstance(rules, str) or not isinstance(start, str):
        raise _unread(rules, start, "both are text")
    depth = None if depth is None else count("grammar", "depth", depth, 0, 2)
    return _automaton(rules, require_vocabulary("grammar", vocabulary), start, depth)


@functools.lru_cache(maxsize=8)  # tables can be large
def _automaton(rules: str, vocabulary: Vocabulary, start: str, depth: int | None) -> Automaton:
    expansions, patterns, ignored = _read(rules, start)
    tables = {t: over_bytes(p, f"grammar, for its terminal {t}") for t, p in patterns.items()}
    over_terminals = _over_terminals(expansions, list(tables), start, depth, ignored)
    machine = over_vocabulary(vocabulary, *_over_bytes(over_terminals, tables, depth))
    if machine is None:
        raise ArgumentError(
            message(
                f"grammar got rules of which {vocabulary} can spell no text (depth={depth})",
                needs="a grammar that derives some text, of bytes that tokens spell",
                fix="see vocabulary.pieces for what there is, or let depth be larger",
            )
        )
    return machine


def _read(rules: str, start: str) -> tuple[dict[str, list[Any]], dict[str, str], list[str]]:
    """Let lark read a grammar: what rules expand to, patterns of terminals, terminals ignored."""
    try:
        import lark
    except ImportError:
        raise UnsupportedError(
            message(
                "grammar was called",
                needs="the package lark, which reads grammars",
                fix="python -m pip install lark",
            )
        ) from None
    try:
        # The parser that takes any grammar; it is made, but reads nothing.
        read = lark.Lark(rules, start=start, parser="earley", lexer="dynamic")
    except (lark.exceptions.LarkError, OSError) as error:
        raise _unread(rules, start, str(error)) from None
    patterns = {t.name: t.pattern.to_regexp() for t in read.terminals}
    named = {s.name for r in read.rules for s in r.expansion if s.is_term}
    for terminal in sorted(named | {*read.ignore_tokens}):
        if terminal not in patterns:
            raise _unread(rules, start, f"it only declares {terminal}")
        if _LOOKS_AROUND.search(patterns[terminal]):
            raise _unread(rules, start, f"{terminal} looks around, by {patterns[terminal]!r}")
    expansions: dict[str, list[Any]] = {}
    for rule in read.rules:
        to = expansions.setdefault(str(rule.origin.name), [])
        to.append(tuple(str(symbol.name) for symbol in rule.expansion))
    return expansions, patterns, list(read.ignore_tokens)


#: A terminal would see the text around it, which its own automaton does not.
_LOOKS_AROUND = re.compile(r"(?<!\\)(?:\\\\)*\(\?<?[=!]")


def _unread(rules: Any, start: Any, why: str) -> ArgumentError:
    return ArgumentError(
        message(
            f"grammar got {rules!r} with start={start!r}, which cannot be read: {why}",
            needs="a grammar in lark's notation, of terminals that are defined and do not look "
            "around, and that defines the start",
            fix=r"""ppl.lm.grammar('start: "(" start ")" | /[0-9]+/', lm.vocabulary, depth=2)""",
        )
    )


class _Over(NamedTuple):
    """An automaton: the next state by state and symbol, and where a text may end.

    The first state is the initial one. The last is a dead end, and not in `ends`.
    """

    table: np.ndarray
    ends: np.ndarray

    def moves(self, state: int) -> list[tuple[int, int]]:
        """List symbols that may come, and what each leads to."""
        row = self.table[state]
        may = np.flatnonzero(row != len(self.table) - 1)
        return list(zip(may.tolist(), row[may].tolist(), strict=True))


def _over_terminals(
    expansions: Mapping[str, list[Any]],
    terminals: Sequence[str],
    start: str,
    depth: int | None,
    ignored: Iterable[str],
) -> _Over:
    """Make the automaton of the terminals of texts."""
    rules, empty = without_empty(expansions)
    # Lark writes rules of its own, with such names, for what is repeated.
    machine = LeftCorner(rules, start, inline=[r for r in rules if r.startswith("__")])
    if machine.counted and depth is None:
        raise ArgumentError(
            message(
                f"grammar got rules that can enclose themselves ({', '.join(machine.counted)}) "
                "and no depth",
                needs="a bound on how often they do",
                why="an automaton has no stack",
                fix="depth=2",
            )
        )
    column = {t: i for i, t in enumerate(terminals)}

    @functools.cache
    def within(goal: str, level: int) -> _Over:
        """Make the automaton of a goal, in which those of what it waits for stand."""

        # A place is a frame, the end, or a state of what is waited for with the frame thereafter.
        def waiting(symbol: str, level: int, state: int, after: Any) -> Iterator[tuple[int, Any]]:
            inside = within(symbol, level)
            for terminal, to in inside.moves(state):
                yield terminal, (symbol, level, to, after)
                if inside.ends[to]:
                    yield terminal, after

        def ways(place: Any) -> Iterator[tuple[int, Any]]:
            if place == _BEGIN:
                yield from ((column[t], after) for t, after in machine.first(goal))
            elif isinstance(place, Frame):
                for symbol, after in machine.moves(place):
                    if symbol in column:
                        yield column[symbol], after
                    elif level or symbol not in machine.counted:
                        yield from waiting(symbol, level - (symbol in machine.counted), 0, after)
            elif place != _END:
                yield from waiting(*place)

        def moves(places: frozenset[Any]) -> dict[int, frozenset[Any]]:
            to: dict[int, set[Any]] = {}
            for place in places:
                for terminal, after in ways(place):
                    to.setdefault(terminal, set()).add(after)
            return {terminal: frozenset(after) for terminal, after in to.items()}

        return _least({_BEGIN}, moves, lambda p: p == _END, len(column), depth)

    # An initial state of its own, which nothing leads back to: the empty text may end there.
    table, ends = within(start, depth or 0)
    table = np.concatenate([table[:1], table]) + 1
    for terminal in ignored:
        table[:-1, column[terminal]] = np.arange(len(table) - 1)
    return _Over(table, np.append(start in empty, ends))


_BEGIN, _END = "begin", None


def _over_bytes(
    over_terminals: _Over, tables: Mapping[str, tuple[np.ndarray, np.ndarray]], depth: int | None
) -> _Over:
    """Let the automaton of each terminal stand for it."""
    each = [_Over(*t) for t in tables.values()]

    # A place is a state over terminals, or one inside a terminal: which it is, the state there, and
    # the state over terminals that its end leads to.
    def moves(places: frozenset[Any]) -> dict[int, frozenset[Any]]:
        inside = {p for p in places if isinstance(p, tuple)}
        between = places - inside
        inside |= {(t, 0, to) for p in between for t, to in over_terminals.moves(p)}
        if not inside:
            return {}
        after = np.stack([each[t].table[state] for t, state, _ in inside])
        kinds, kind = np.unique(after, axis=1, return_inverse=True)
        found = []
        for states in kinds.T.tolist():
            reached: set[Any] = set()
            for (t, _, to), state in zip(inside, states, strict=True):
                if state < len(each[t].ends):  # no dead end
                    reached.add((t, state, to))
                    if each[t].ends[state]:
                        reached.add(to)
            found.append(frozenset(reached))
        return {b: found[k] for b, k in enumerate(kind.reshape(-1).tolist()) if found[k]}

    def ends(place: Any) -> bool:
        return not isinstance(place, tuple) and bool(over_terminals.ends[place])

    return _least({0}, moves, ends, 256, depth)


def _least(
    first: Iterable[Any],
    moves: Callable[[frozenset[Any]], Mapping[int, frozenset[Any]]],
    ends: Callable[[Any], bool],
    symbols: int,
    depth: int | None,
) -> _Over:
    """Make the least automaton whose states are sets of places."""
    number, states, rows = {frozenset(first): 0}, [frozenset(first)], []
    for state in states:  # grows as it is read
        rows.append(row := moves(state))
        new = dict.fromkeys(after for after in row.values() if after not in number)
        number |= {after: len(states) + i for i, after in enumerate(new)}
        states += new
        if len(states) > MOST:
            raise ArgumentError(
                message(
                    f"grammar got depth={depth}, with rules that take more than {MOST} states",
                    needs="an automaton that a table can hold",
                    why="each level of depth multiplies the states",
                    fix="a smaller depth, or fewer rules",
                )
            )
    table = np.full((len(states) + 1, symbols), len(states), np.int32)
    for i, row in enumerate(rows):
        table[i, list(row)] = [number[after] for after in row.values()]
    return _joined(table, np.array([any(map(ends, state)) for state in states]))


def _joined(table: np.ndarray, accepting: np.ndarray) -> _Over:
    """Join states from which the same is accepted.

    Source: Moore (1956).
    """
    kind = np.append(accepting, False).astype(np.int32)
    while True:
        rows = np.concatenate([kind[:, None], kind[table]], axis=1)
        _, one, finer = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        finer = finer.reshape(-1).astype(np.int32)
        if finer.max() == kind.max():
            break
        kind = finer
    # Those from which nothing is accepted join the dead end, which stays the last.
    order = np.argsort(np.where(finer[one] == finer[-1], len(table), one), kind="stable")
    place = np.argsort(order).astype(np.int32)
    return _Over(place[finer[table[one[order]]]], np.append(accepting, False)[one[order]][:-1])
