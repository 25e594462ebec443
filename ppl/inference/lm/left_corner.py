"""Automata of context-free grammars whose rules enclose themselves a limited number of times.

A left-corner machine reads a text from the left and guesses rules from their first symbols. What it
has to remember is what encloses the place it is at, on both sides: nothing for a rule that recurs
at its left or right end. So a bound on its stack bounds only how deep rules enclose themselves, and
what is left has finitely many states.

Source: Johnson, *Finite-state approximation of constraint-based grammars using left-corner grammar
transforms* (1998).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

Symbols = tuple[str, ...]
Rules = Mapping[str, Sequence[Symbols]]


class Frame(NamedTuple):
    """Under a goal, a rule is being read: `symbols` are still to come, at least one."""

    goal: str
    rule: str
    symbols: Symbols


#: None once the goal is reached.
After = Frame | None


class LeftCorner:
    """The machine of a grammar, without its stack.

    Args:
        rules: what each rule may expand to; what is no rule is a terminal. None expands to nothing.
        start: the rule of whole texts.
        inline: rules that are read as if what they expand to stood in their place, which may be
            themselves and more. Those of another form than `x: y | x y` are read as other rules.

    Attributes:
        counted: rules of which one is on every way by which a rule can enclose itself.
    """

    def __init__(self, rules: Rules, start: str, inline: Iterable[str] = ()):
        self._completed = functools.cache(self._complete)
        self._corners = functools.cache(self._begin_with)
        self._inline: dict[str, list[Symbols]] = {}
        for rule in inline:
            once = [s for s in rules[rule] if s[0] != rule]
            again = [s[1:] for s in rules[rule] if s[0] == rule]
            if not any(rule in s for s in once) and (not again or set(again) == set(once)):
                self._inline[rule] = once + [(*s, rule) for s in once if again]
        self.rules = {
            rule: sorted({w for s in every for w in self._spelt(s)})
            for rule, every in rules.items()
            if rule not in self._inline
        }
        self.counted = tuple(_cut(self._enclosing(start)))

    def first(self, goal: str) -> Iterator[tuple[str, After]]:
        """List the terminals that a goal may begin with, and what each leads to.

        Args:
            goal: the rule that is to be read.
        """
        for rule in sorted(self._corners(goal)):
            for symbols in self.rules[rule]:
                if symbols[0] not in self.rules:
                    for after in self._read(Frame(goal, rule, symbols)):
                        yield symbols[0], after

    def moves(self, frame: Frame) -> Iterator[tuple[str, After]]:
        """List what may come next: terminals and goals to wait for, and what each leads to.

        Args:
            frame: where the machine is.
        """
        symbol = frame.symbols[0]
        for after in self._read(frame):
            if after is None and symbol in self.rules:
                yield from self.first(symbol)  # nothing is left to wait with: it is the goal now
            else:
                yield symbol, after

    def _read(self, frame: Frame) -> Iterator[After]:
        """Read the first symbol of what is to come."""
        if len(frame.symbols) > 1:
            for symbols in self._spelt(frame.symbols[1:]):
                yield frame._replace(symbols=symbols)
            return
        wider, ends = self._completed(frame.goal, frame.rule)
        for rule, symbols in wider:
            yield frame._replace(rule=rule, symbols=symbols)
        if ends:
            yield None

    def _complete(self, goal: str, rule: str) -> tuple[list[tuple[str, Symbols]], bool]:
        """Say what may follow a rule that a goal begins with; and whether it can be all of it."""
        done, todo, follow = {rule}, [rule], []
        while todo:
            begun = todo.pop()
            for wider in sorted(self._corners(goal)):
                for first, *rest in self.rules[wider]:
                    if first == begun and rest:
                        follow += ((wider, s) for s in self._spelt(tuple(rest)))
                    elif first == begun and wider not in done:
                        done.add(wider)
                        todo.append(wider)
        return follow, goal in done

    def _begin_with(self, goal: str) -> frozenset[str]:
        """List the rules that a goal may begin with, itself included."""
        found, todo = {goal}, [goal]
        while todo:
            for symbols in self.rules[todo.pop()]:
                if symbols[0] in self.rules and symbols[0] not in found:
                    found.add(symbols[0])
                    todo.append(symbols[0])
        return frozenset(found)

    def _spelt(self, symbols: Symbols) -> list[Symbols]:
        """Expand a sequence until it does not begin with a rule that is read in its place."""
        if symbols[0] not in self._inline:
            return [symbols]
        ways = (self._spelt((*w, *symbols[1:])) for w in self._inline[symbols[0]])
        return list(itertools.chain.from_iterable(ways))

    def _rests(self, rule: str) -> set[Symbols]:
        """List what may still be to come once a rule is begun."""
        found: set[Symbols] = set()
        todo = list(self.rules[rule])
        while todo:
            rest = todo.pop()[1:]
            new = set(self._spelt(rest)) - found if rest else set()
            found |= new
            todo += new
        return found

    def _enclosing(self, start: str) -> dict[str, set[str]]:
        """Tell which goals each goal may have to wait for, with some of its own still to come."""
        # With nothing of its own still to come, a goal does not wait: it becomes the other.
        waits: dict[str, set[str]] = {}
        becomes: dict[str, set[str]] = {}
        todo = [start]
        while todo:
            goal = todo.pop()
            if goal in waits:
                continue
            waits[goal], becomes[goal] = set(), set()
            for rule in self._corners(goal):
                follow, ends = self._completed(goal, rule)
                for symbol, *more in self._rests(rule):
                    if symbol not in self.rules:
                        continue
                    if more or follow:
                        waits[goal].add(symbol)
                    if not more and ends:
                        becomes[goal].add(symbol)
                    todo.append(symbol)
        return {
            goal: set().union(*(waits[then] for then in _reached(becomes, goal))) for goal in waits
        }


def _reached(edges: Mapping[str, set[str]], start: str) -> set[str]:
    """List what can be reached, the start included."""
    found, todo = {start}, [start]
    while todo:
        new = edges.get(todo.pop(), set()) - found
        found |= new
        todo += new
    return found


def _cut(edges: Mapping[str, set[str]]) -> Iterator[str]:
    """Choose nodes without which a graph has no cycle: few of them, but perhaps not the fewest."""
    left = {node: set(to) for node, to in edges.items()}
    while True:
        on = [n for n in sorted(left) if n in set().union(*(_reached(left, t) for t in left[n]))]
        if not on:
            return
        # A node that leads to itself has to go; else one through which most ways lead.
        ways = {n: (n in left[n], len(left[n]) * sum(n in t for t in left.values())) for n in on}
        worst = max(on, key=lambda n: ways[n])
        yield worst
        left = {n: to - {worst} for n, to in left.items() if n != worst}


def without_empty(rules: Rules) -> tuple[dict[str, list[Symbols]], frozenset[str]]:
    """Rewrite rules so that none expands to nothing.

    Args:
        rules: what each rule may expand to.

    Returns:
        The rules, of which some may expand to nothing else and so to no text; and those that could
        expand to nothing.
    """
    empty: set[str] = set()
    while True:
        wider = {r for r, every in rules.items() if any(empty.issuperset(s) for s in every)}
        if wider == empty:
            break
        empty = wider
    shorter: dict[str, list[Symbols]] = {}
    for rule, every in rules.items():
        kept: dict[Symbols, None] = {}
        for symbols in every:
            ways = ([(s,), ()] if s in empty else [(s,)] for s in symbols)
            for way in itertools.product(*ways):
                kept[tuple(itertools.chain.from_iterable(way))] = None
        shorter[rule] = [s for s in kept if s and s != (rule,)]
    return shorter, frozenset(empty)
