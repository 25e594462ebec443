"""The rows that a long loop leaves on the host: one for each output of each of its lanes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np


class _Piece(NamedTuple):
    """Rows of one block: which they are, of which lane, and their arrays."""

    number: np.ndarray
    lane: np.ndarray | None
    leaves: list[np.ndarray]


class Rows:
    """Rows by number and lane.

    The first `skip` are dropped, and of the others all but every `thin`-th. A loop that is not flat
    has one lane, and its rows are whole outputs.
    """

    def __init__(self, skip: int, thin: int):
        self.skip, self.thin = skip, thin
        self.pieces: list[_Piece] = []
        self.made = np.zeros(1, np.int64)
        self.tree: Any = None
        self._written = 0

    @property
    def least(self) -> int:
        """The outputs of the lane that has made the fewest, dropped ones included."""
        return int(self.made.min())

    @property
    def ready(self) -> int:
        """The number of rows that all lanes have."""
        return max(self.least - self.skip, 0) // self.thin

    def add(self, done: np.ndarray | None, outs: Any) -> None:
        """Take the outputs of a block.

        Args:
            done: of shape (step, lane), which steps completed an output; None if all did.
            outs: arrays of shape (step, *) or (step, lane, *).
        """
        leaves, self.tree = jax.tree.flatten(outs)
        if done is None:
            number, lane = np.arange(len(leaves[0])) + self.made[0], None
            step: Any = np.arange(len(number))
            self.made = self.made + len(number)
        else:
            if len(self.made) != done.shape[1]:
                self.made = np.zeros(done.shape[1], np.int64)
            step, lane = np.nonzero(done)
            number = (np.cumsum(done, axis=0) - 1 + self.made)[step, lane]
            self.made = self.made + done.sum(axis=0)
        row = number - self.skip
        kept = (row >= 0) & (row % self.thin == self.thin - 1)
        step, row = step[kept], row[kept] // self.thin
        if not len(row):
            return
        if lane is None:
            self.pieces.append(_Piece(row, None, [x[step] for x in leaves]))
        else:
            lane = lane[kept]
            self.pieces.append(_Piece(row, lane, [x[step, lane] for x in leaves]))

    def take(self, length: int) -> Any:
        """Give the first rows, of shape (row, *) or (row, lane, *)."""
        lanes = () if self.pieces[0].lane is None else (len(self.made),)
        outs = [np.empty((length, *lanes, *x.shape[1:]), x.dtype) for x in self.pieces[0].leaves]
        for piece in self.pieces:
            inside = piece.number < length
            place: Any = piece.number[inside]
            if piece.lane is not None:
                place = place, piece.lane[inside]
            for out, x in zip(outs, piece.leaves, strict=True):
                out[place] = x[inside]
        return jax.tree.unflatten(self.tree, outs)

    def unsaved(self) -> dict[str, Any]:
        """Give what was added since `written` was last called, as arrays by name."""
        new = self.pieces[self._written :]
        found: dict[str, Any] = {"made": self.made}
        if new:
            found["number"] = np.concatenate([p.number for p in new])
            if new[0].lane is not None:
                found["lane"] = np.concatenate([p.lane for p in new])  # pyright: ignore[reportCallIssue, reportArgumentType]
            columns = zip(*(p.leaves for p in new), strict=True)
            found["leaves"] = {str(i): np.concatenate(xs) for i, xs in enumerate(columns)}
        return found

    def written(self) -> None:
        """Note that all rows are on disk."""
        self._written = len(self.pieces)

    def restore(self, saved: dict[str, Any], tree: Any) -> None:
        """Take back what `unsaved` gave."""
        self.made, self.tree = saved["made"], tree
        if "number" in saved:
            leaves = [saved["leaves"][str(i)] for i in range(len(saved["leaves"]))]
            self.pieces.append(_Piece(saved["number"], saved.get("lane"), leaves))
            self.written()
