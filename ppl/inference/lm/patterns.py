"""`regex`: the automaton of a regular expression, over tokens."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ppl.errors import ArgumentError, UnsupportedError, message
from ppl.inference.lm.automaton import Automaton, over_vocabulary
from ppl.inference.lm.vocabulary import Vocabulary, require_vocabulary


def regex(pattern: str, vocabulary: Vocabulary) -> Automaton:
    """Make the automaton of a regular expression, which has to match a whole text.

    Args:
        pattern: a regular expression without references and the like. A dot is any character but a
            line break. A JSON schema becomes one by `outlines_core.json_schema`'s
            `build_regex_from_schema`; what refers to itself is for `grammar`.
        vocabulary: the tokens; `lm.vocabulary`.

    Raises:
        UnsupportedError: the package interegular is not installed.
        ArgumentError: it cannot read the pattern, or the tokens can spell nothing that matches.
    """
    return _automaton(pattern, require_vocabulary("regex", vocabulary))


@functools.lru_cache(maxsize=64)
def _automaton(pattern: str, vocabulary: Vocabulary) -> Automaton:
    machine = over_vocabulary(vocabulary, *over_bytes(pattern, "regex"))
    if machine is None:
        raise ArgumentError(
            message(
                f"regex got {pattern!r}",
                needs=f"a pattern of which {vocabulary} can spell some text",
                fix="see vocabulary.pieces for what there is",
            )
        )
    return machine


def over_bytes(pattern: str, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Make the automaton of a regular expression over the bytes of UTF-8.

    Args:
        pattern: the regular expression.
        what: who asks, for messages.

    Returns:
        The next state by state and byte, the first state the initial one and the last a dead end;
        and by state, whether a text may end in it.

    Raises:
        UnsupportedError: the package interegular is not installed.
        ArgumentError: it cannot read the pattern.
    """
    try:
        import interegular
    except ImportError:
        raise UnsupportedError(
            message(
                f"{what} got {pattern!r}",
                needs="the package interegular, which makes automata of patterns",
                fix="python -m pip install interegular",
            )
        ) from None
    try:
        machine = interegular.parse_pattern(pattern).to_fsm().reduce()
    except (ValueError, interegular.Unsupported, interegular.InvalidSyntax) as error:
        raise ArgumentError(
            message(
                f"{what} got {pattern!r}, of which interegular says: {error!r}",
                needs="a pattern that an automaton can match",
                fix='ppl.lm.regex("[0-9]+", lm.vocabulary)',
            )
        ) from None
    return _by_byte(machine)


def _by_byte(machine: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lay an automaton over characters out over the bytes of UTF-8."""
    from interegular.fsm import anything_else

    states = sorted(machine.states, key=lambda s: (s != machine.initial, s))
    rows = _Rows(len(states))
    place = {s: i for i, s in enumerate(states)}
    for state in states:
        moves = machine.map.get(state, {})
        known, others = {}, None
        for symbol, key in machine.alphabet.items():
            to = place.get(moves.get(key))
            if symbol is anything_else:
                others = to
            else:
                known[symbol.encode()] = to
        rows.spell(place[state], known, others)
    table = np.full((len(rows.moves) + 1, 256), len(rows.moves))
    for i, row in enumerate(rows.moves):
        table[i, list(row)] = list(row.values())
    accepting = np.zeros(len(rows.moves), bool)
    accepting[[place[s] for s in machine.finals]] = True
    return table, accepting


class _Rows:
    """Moves by byte, with states inside characters of several bytes."""

    def __init__(self, count: int):
        self.moves: list[dict[int, int]] = [{} for _ in range(count)]
        self._inside: dict[Any, int] = {}

    def spell(self, state: int, known: Mapping[bytes, int | None], others: int | None) -> None:
        """Lead from a state by each character that is known, and by all others."""
        self._fill(state, b"", known, others)

    def _fill(
        self, at: int, read: bytes, known: Mapping[bytes, int | None], others: int | None
    ) -> None:
        for byte in _following(read):
            spelt = read + bytes([byte])
            longer = {k: v for k, v in known.items() if k.startswith(spelt)}
            if _complete(spelt):
                to = known.get(spelt, others)
            elif longer:  # a state of its own: some ways on are known characters
                to = self._new()
                self._fill(to, spelt, longer, others)
            else:
                to = None if others is None else self._rest(spelt, others)
            if to is not None:
                self.moves[at][byte] = to

    def _rest(self, read: bytes, to: int) -> int:
        """Give the state that reads the rest of any character that begins so."""
        # How a character may go on depends on its length, and at its second byte on the first.
        key = (to, _length(read[0]) - len(read), read if len(read) == 1 else b"")
        if len(read) == 1 and read[0] not in (0xE0, 0xED, 0xF0, 0xF4):
            key = (*key[:2], b"")
        if key not in self._inside:
            self._inside[key] = place = self._new()
            self._fill(place, read, {}, to)
        return self._inside[key]

    def _new(self) -> int:
        self.moves.append({})
        return len(self.moves) - 1


def _length(first: int) -> int:
    return 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4


def _complete(read: bytes) -> bool:
    return len(read) == _length(read[0])


def _following(read: bytes) -> Any:
    """List the bytes that may follow the beginning of a character.

    Source: The Unicode Standard, well-formed UTF-8 byte sequences.
    """
    if not read:
        return _FIRST
    low, high = 0x80, 0xBF
    if len(read) == 1:
        low = {0xE0: 0xA0, 0xF0: 0x90}.get(read[0], low)
        high = {0xED: 0x9F, 0xF4: 0x8F}.get(read[0], high)
    return range(low, high + 1)


_FIRST: Any = [*range(0x80), *range(0xC2, 0xF5)]
