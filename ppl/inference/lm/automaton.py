"""Automata over tokens: where a step stops, and what it may say."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ppl.inference.lm.vocabulary import Vocabulary

DEAD = -1


class Automaton(eqx.Module):
    """A finite automaton that reads tokens.

    It begins in state 0. `moves[state, token]` is the next state, -1 where the token must not come.
    In an `accepting` state the text may end; where nothing else can come, it does.
    """

    moves: Int[np.ndarray, "state token"]
    accepting: Bool[np.ndarray, " state"]

    def allowed(self, state: Any) -> Bool[Array, " token"]:
        """Tell which tokens may come.

        Args:
            state: the state.
        """
        return jnp.asarray(self.moves)[state] != DEAD

    def move(self, state: Any, token: Any) -> Int[Array, ""]:
        """Read a token.

        Args:
            state: the state.
            token: the token, an allowed one.
        """
        return jnp.asarray(self.moves)[state, token].astype(int)

    def accepts(self, state: Any) -> Bool[Array, ...]:
        """Tell whether the text may end.

        Args:
            state: the state, or several.
        """
        return jnp.asarray(self.accepting)[state]


def automaton(moves: np.ndarray, accepting: Any) -> Automaton:
    """Make an automaton, its numbers as small as they may be.

    Args:
        moves: the next state by state and token.
        accepting: by state, whether the text may end.
    """
    small = np.int16 if moves.shape[0] < 2**15 else np.int32
    return Automaton(moves.astype(small), np.asarray(accepting, bool))


@functools.lru_cache(maxsize=64)
def stopping(stops: tuple[str, ...], vocabulary: Vocabulary) -> Automaton:
    """Make the automaton that finds the first of some strings, across the borders of tokens.

    Its last state, the only accepting one, is reached by the token that completes a string.

    Args:
        stops: the strings.
        vocabulary: the tokens.

    Source: Aho and Corasick (1975).
    """
    words = [s.encode() for s in stops]
    nodes = sorted({w[:n] for w in words for n in range(len(w))}, key=lambda w: (len(w), w))
    number = {node: i for i, node in enumerate(nodes)}
    hit = len(nodes)
    table = np.zeros((hit + 1, 256), np.int32)
    table[hit] = hit
    for node in nodes:
        for byte in {b for w in words for b in w}:
            read = node + bytes([byte])
            if any(read.endswith(w) for w in words):
                table[number[node], byte] = hit
            else:
                ends = (read[n:] for n in range(len(read) + 1))
                table[number[node], byte] = number[next(e for e in ends if e in number)]
    return automaton(over_tokens(vocabulary, table), np.arange(hit + 1) == hit)


def over_tokens(vocabulary: Vocabulary, table: np.ndarray) -> np.ndarray:
    """Turn moves by byte into moves by token; a token that spells nothing stays.

    Args:
        vocabulary: the tokens.
        table: the next state by state and byte.
    """
    pieces = [p or b"" for p in vocabulary.pieces]
    # The longest first, so that those that have a byte at some place are the first so many.
    order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i]))
    states = np.empty((table.shape[0], len(pieces)), np.int32)
    states[:] = np.arange(table.shape[0])[:, None]
    for place in range(len(pieces[order[0]])):
        letters = [pieces[i][place] for i in order if place < len(pieces[i])]
        states[:, : len(letters)] = table[states[:, : len(letters)], letters]
    return states[:, np.argsort(order)]


def over_vocabulary(
    vocabulary: Vocabulary, table: np.ndarray, accepting: np.ndarray
) -> Automaton | None:
    """Make the automaton of what an automaton over bytes accepts, without dead ends.

    Args:
        vocabulary: the tokens; special ones must not come.
        table: the next state by state and byte; the last state is a dead end.
        accepting: by state, the last one left out, whether the text may end.

    Returns:
        The automaton; None if the tokens can spell nothing that is accepted.
    """
    dead = table.shape[0] - 1
    moves = over_tokens(vocabulary, table)[:dead]
    moves = np.where(moves == dead, DEAD, moves)
    moves[:, [p is None for p in vocabulary.pieces]] = DEAD
    live = _live(moves, accepting)
    if not live[:1].any():
        return None
    number = np.append(np.where(live, np.cumsum(live) - 1, DEAD), DEAD).astype(np.int32)
    return automaton(number[moves[live]], accepting[live])


def _live(moves: np.ndarray, accepting: np.ndarray) -> np.ndarray:
    """Find the states from which some text can still be accepted."""
    live = accepting.copy()
    while True:
        wider = live | np.any((moves != DEAD) & live[moves], axis=1)
        if (wider == live).all():
            return live
        live = wider
