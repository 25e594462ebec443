"""Lanes of a long loop on the host: what they have made, and blocks of steps that make more.

Lanes that know nothing of one another may go in groups, each a loop of its own: JAX runs what one
thread asks for in turn, and what several ask for side by side.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl._host import beside, blas_in_one_thread, undivided
from ppl.semantics.blocks import Pieces
from ppl.semantics.costs import calls_lapack, cost, waits
from ppl.semantics.rows import Rows

#: The seconds that one compiled call should take.
SECONDS = 0.25
#: A block this much shorter than `SECONDS` is made while rows of the one before are put away.
SHORT = 5
#: The most groups of lanes.
MOST = 16
#: The nanoseconds of a step, as `cost` guesses them, from which it is worth several cores.
LONG = 1e7


class _Block(NamedTuple):
    """Steps that have begun: how many, when, the state after them, and their rows."""

    number: int
    begun: float
    state: Any
    outs: Any


class Lanes:
    """Lanes that make their steps together: where they stand, and their rows."""

    def __init__(
        self,
        pieces: Pieces,
        state: Any,
        gather: Callable[..., Any],
        in_step: bool = False,
        thread: int = 0,
    ):
        self.pieces, self.state, self.gather, self.in_step = pieces, state, gather, in_step
        self.launch = beside(thread)
        loop = pieces.loop
        self.rows, self.steps = Rows(loop.skip, loop.thin), 0
        self.drawn: tuple[int, Any] | None = None  # of one block, by its number
        self.pace = pieces.room if in_step else min(8, pieces.room)
        self.overlaps, self.seen = False, 0.0  # when the last rows came
        self.next: _Block | None = None

    @property
    def gathered(self) -> Any:
        """The state, readable here."""
        return self.gather(self.state)

    def begin(self, total: int) -> None:
        """Begin a block of steps if one is needed and none has begun."""
        if self.next is None and self.rows.least < total:
            self.next = self._begin(self.state, self.steps, self._needed(total))

    def advance(self, total: int) -> None:
        """Make one block of steps, of a length that suits the clock; no draw depends on it.

        Where blocks are short, the next one runs while the rows of this one are put away.
        """
        if self.rows.least >= total:
            return
        self.begin(total)
        present, self.next = self.next, None
        assert present is not None
        count, begun, state, outs = present
        needed, following, error = self._needed(total), None, None
        if self.overlaps and count < needed:
            try:
                following = self._begin(state, self.steps + count, needed - count)
            except BaseException as found:  # of the next block: this one is kept first
                error = found
        outs = jax.tree.map(lambda x: np.asarray(x)[:count], self.gather(outs))
        took, self.seen = time.perf_counter() - max(begun, self.seen), time.perf_counter()
        with undivided():
            self.state, self.steps, self.next = state, self.steps + count, following
            done = self.pieces.loop.done
            self.rows.add(None if done is None else done(outs), outs)
        if not self.in_step:  # with other processes, whose clocks differ
            # Short blocks for slow models, long ones for fast.
            pace = SECONDS / max(took, 1e-6)
            self.pace = int(min(max(1, count * min(pace, 8.0)), self.pieces.room))
            self.overlaps = pace > SHORT
        if error is not None:
            raise error

    def _begin(self, state: Any, steps: int, needed: int) -> _Block:
        """Begin a block, which is not waited for."""
        draws = self.pieces.draws_ahead
        first = steps % self.pieces.length if draws else 0
        count, begun = min(self.pace, self.pieces.length - first, needed), time.perf_counter()
        drawn = self._drawn(state, steps) if draws else None
        return _Block(count, begun, *self.launch(self.pieces.steps, drawn, state, steps, count))

    def _drawn(self, state: Any, steps: int) -> Any:
        """Give what the block of a step needs, which several calls may take to make."""
        number = steps // self.pieces.length
        if self.drawn is None or self.drawn[0] != number:
            self.drawn = None  # of two blocks only one is held
            self.drawn = number, self.launch(self.pieces.ahead, state, number)
        return self.drawn[1]

    def _needed(self, total: int) -> int:
        """Guess how many steps are left, so that the last block is not much too long."""
        left = total - self.rows.least
        if self.pieces.loop.done is None:
            return left
        return max(16, int(1.05 * left * self.steps / max(self.rows.least, 1)) + 1)

    def unsaved(self) -> dict[str, Any]:
        """Give the state, and the rows that are not on disk."""
        leaves = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(self.gathered))}
        return {"state": leaves, "rows": self.rows.unsaved(), "steps": np.asarray(self.steps)}

    def restore(self, saved: Sequence[dict[str, Any]]) -> None:
        """Take up where the last of these left off."""
        leaves, tree = jax.tree.flatten(self.pieces.like)
        given = [saved[-1]["state"][str(i)] for i in range(len(leaves))]
        given = [jnp.asarray(x, s.dtype) for x, s in zip(given, leaves, strict=True)]
        self.state = jax.tree.unflatten(tree, given)
        self.steps = int(saved[-1]["steps"])
        for piece in saved:
            self.rows.restore(piece["rows"], jax.tree.structure(self.pieces.row))


class Groups:
    """All lanes of a loop, in groups of equally many that run side by side.

    `crowded` tells that they take all cores, so that BLAS should use one.
    """

    def __init__(self, groups: list[Lanes], crowded: bool = False):
        self.groups, self.crowded = groups, crowded

    @classmethod
    def of(cls, make: Callable[..., Pieces], state: Any, gather: Callable[..., Any]) -> Groups:
        """Divide lanes that know nothing of one another, if it is of use.

        Args:
            make: stages the loop's parts for a state.
            state: of all lanes, which stand on the first axis of its arrays.
            gather: makes a state readable.
        """
        number, threads = _number(state), _threads()
        if number > 1:
            parts = jax.tree.map(lambda x: np.split(np.asarray(x), number), state)
            states = jax.tree.transpose(jax.tree.structure(state), None, parts)
            pieces = make(states[0])
            # Operations of long steps may have cores to themselves.
            pieces.whole = number >= threads or cost(pieces.step) < LONG
            crowded = pieces.whole and calls_lapack(pieces.step)
            if not waits(pieces.step):
                every = enumerate(states)
                return cls(
                    [Lanes(pieces, s, gather, False, i % threads) for i, s in every], crowded
                )
            # In one loop, LAPACK's kernels divide the lanes among XLA's threads.
            return cls([Lanes(make(state), state, gather)], crowded)
        return cls([Lanes(make(state), state, gather)])

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Make blocks in here: what they need of the machine is set up, and taken back."""
        with blas_in_one_thread(self.crowded):
            try:
                yield
            finally:
                if self.crowded:  # what has begun ends as it began
                    jax.block_until_ready([lanes.next for lanes in self.groups])

    @property
    def least(self) -> int:
        """The outputs of the lane that has made the fewest, dropped ones included."""
        return min(lanes.rows.least for lanes in self.groups)

    @property
    def ready(self) -> int:
        """The number of rows that every lane has."""
        return min(lanes.rows.ready for lanes in self.groups)

    @property
    def steps(self) -> list[int]:
        """The steps of each group."""
        return [lanes.steps for lanes in self.groups]

    @property
    def gathered(self) -> Any:
        """The state of all lanes, readable here."""
        return _joined([lanes.gathered for lanes in self.groups], 0)

    def advance(self, total: int) -> None:
        """Make a block of steps of each group that has not all of its outputs."""
        for lanes in self.groups:
            lanes.begin(total)
        for lanes in self.groups:
            lanes.advance(total)

    def emitted(self, length: int) -> Any:
        """Give the first rows in their final form."""

        def one(lanes: Lanes) -> Any:
            return lanes.pieces.emitted(lanes.rows.take(length), lanes.gather)

        return _joined(list(map(one, self.groups)), 1)

    def unsaved(self) -> dict[str, Any]:
        """Give the state, and the rows that are not on disk, of each group."""
        return {str(i): lanes.unsaved() for i, lanes in enumerate(self.groups)}

    def written(self) -> None:
        """Note that all rows are on disk."""
        for lanes in self.groups:
            lanes.rows.written()

    def restore(self, saved: Sequence[dict[str, Any]]) -> None:
        """Take up where the last of these left off."""
        for i, lanes in enumerate(self.groups):
            lanes.restore([piece[str(i)] for piece in saved])


def _number(state: Any) -> int:
    """Give the number of groups, which rounding may let draws depend on: it is that of no machine.

    On a CPU, a loop of one lane runs both sides of no branch, and writes its arrays in place. Of
    very many, each with blocks of its own, the host would have too much to do.
    """
    first = jax.tree.leaves(state)[0]
    if any(device.platform != "cpu" for device in first.devices()):
        return 1
    return next(n for n in range(min(len(first), MOST), 0, -1) if len(first) % n == 0)


def _threads() -> int:
    """Count the cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def _joined(trees: list[Any], axis: int) -> Any:
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *xs: np.concatenate(xs, axis), *trees)
