"""Checkpoints of long runs: a folder of files, each whole or not there.

`Checkpoint` is for a loop whose rows the host keeps, `Snapshot` for a program run loop by loop.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ppl.errors import ArgumentError, message
from ppl.program import Program
from ppl.results import storage

#: Seconds between two parts.
SAVE_EVERY = 2.0


class Checkpoint:
    """The folder of one run. A part holds the rows since the one before, and the state there.

    A process that is killed at any moment leaves the parts that were finished; the rest is drawn
    again, bit for bit.
    """

    def __init__(
        self, path: str, program: Program, key: Any, interpret: Callable[..., Any], groups: int
    ):
        self.path = Path(path)
        self.mark = _mark(interpret, program, key, f"{groups} groups")
        self.count = 0

    def load(self) -> list[dict[str, Any]]:
        """Give the parts that are there; none if the run is new."""
        if self.path.exists() and not self.path.is_dir():
            raise _refusal(
                self.path, f"{self.path} is a file", "a folder, or a path where nothing is"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        found: list[dict[str, Any]] = []
        while (file := self._file(self.count)).exists():
            arrays, about = storage.load(file)
            if about.get("run") != self.mark:
                raise _refusal(self.path, f"{file} belongs to another run", _THIS_RUN)
            found.append(arrays)
            self.count += 1
        later = sorted(f.name for f in self.path.glob("part-*.npz"))[self.count :]
        if later:
            raise _refusal(
                self.path, f"{later[0]} is there, and an earlier part is not", "all parts"
            )
        return found

    def add(self, part: dict[str, Any]) -> None:
        """Write the next part."""
        file = self._file(self.count)
        if file.exists():
            raise _refusal(self.path, f"another process wrote {file.name}", "one process at a time")
        storage.save(file, part, {"run": self.mark})
        self.count += 1

    def _file(self, number: int) -> Path:
        return self.path / f"part-{number:06d}.npz"


class Snapshot:
    """The folder of a run that goes through a program part by part, and loop by loop.

    A file `state` says where the run stands and what the present loop carries, and how many pieces
    there are: what parts that are over gave, and rows that the present loop has stacked. Pieces are
    written before the state that counts them, and each file whole or not at all, so that a process
    may be killed at any moment.
    """

    def __init__(self, path: str, program: Program, key: Any, interpret: Callable[..., Any]):
        self.path = Path(path)
        self.mark = _mark(interpret, program, key)
        self.pieces, self.rows_saved = 0, 0
        self._left: list[Any] = []
        self._stood: tuple[int, int] | None = None

    def left(self, outs: Sequence[Any]) -> None:
        """Note what the next part gave, which the rows saved of its loop are now a part of."""
        self._left.append(outs)
        self.rows_saved = 0

    def save(
        self, index: int, step: int, carry: Sequence[Any], rows: Sequence[Any], first: int
    ) -> None:
        """Write what is new.

        Args:
            index: the part in which the run is.
            step: how many iterations of its loop are over.
            carry: what the loop carries.
            rows: what it has stacked since the last time.
            first: where among all its rows these begin.
        """
        if self._stood == (index, step):
            return
        for outs in self._left:
            self._add({"outs": _named(outs)})
        self._left = []
        if rows:
            place = {"part": np.asarray(index), "first": np.asarray(first)}
            self._add({**place, "rows": _named(rows)})
        self.rows_saved = step
        place = {"pieces": self.pieces, "part": index, "step": step}
        state = {k: np.asarray(x) for k, x in place.items()}
        storage.save(self.path / "state.npz", {**state, "carry": _named(carry)}, {"run": self.mark})
        self._stood = index, step

    def load(self) -> tuple[int, list[list[Any]], Any]:
        """Give where the run stands.

        Returns:
            The part; what those before it gave; and of its loop, if it has begun, how many
            iterations are over, what it carries, and its rows by place.
        """
        if self.path.exists() and not self.path.is_dir():
            raise _refusal(self.path, f"{self.path} is a file", _FOLDER)
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / "state.npz").exists():
            if other := sorted(f.name for f in self.path.glob("part-*.npz")):
                raise _refusal(self.path, f"{other[0]} is another kind of run's", _THIS_RUN)
            return 0, [], None
        state = self._read(self.path / "state.npz")
        index, step = int(state["part"]), int(state["step"])
        left, rows = [], []
        for k in range(int(state["pieces"])):
            piece = self._read(self._file(k))
            if "outs" in piece:
                left.append(_listed(piece["outs"]))
            elif int(piece["part"]) == index:
                found, first = _listed(piece["rows"]), int(piece["first"])
                rows.append((slice(first, first + len(found[0])), found))
        self.pieces, self.rows_saved, self._stood = int(state["pieces"]), step, (index, step)
        return index, left, (step, _listed(state["carry"]), rows) if step else None

    def refuse_pieces(self) -> NoReturn:
        """Raise `ArgumentError`: rows or parts are missing, or are there twice."""
        found = f"the pieces in {self.path} do not fit together"
        raise _refusal(self.path, found, "all pieces, written by one process at a time")

    def _add(self, piece: dict[str, Any]) -> None:
        storage.save(self._file(self.pieces), piece, {"run": self.mark})
        self.pieces += 1

    def _file(self, number: int) -> Path:
        return self.path / f"piece-{number:06d}.npz"

    def _read(self, file: Path) -> dict[str, Any]:
        arrays, about = storage.load(file)
        if about.get("run") != self.mark:
            raise _refusal(self.path, f"{file} belongs to another run", _THIS_RUN)
        return arrays


def _named(arrays: Sequence[Any]) -> dict[str, np.ndarray]:
    return {str(i): np.asarray(x) for i, x in enumerate(arrays)}


def _listed(arrays: Any) -> list[Any]:
    return [arrays[str(i)] for i in range(len(arrays))]


_FOLDER = "a folder, or a path where nothing is"
_THIS_RUN = "the run that wrote the checkpoint: program, data, settings, key and kind of device"


def _refusal(path: Path, found: str, needs: str) -> ArgumentError:
    return ArgumentError(
        message(
            f"run got checkpoint={str(path)!r}: {found}",
            needs=needs,
            why="a run goes on bit for bit, or not at all",
            fix="another path, or remove this one to start anew",
        )
    )


def _mark(interpret: Callable[..., Any], program: Program, key: Any, how: str = "") -> str:
    """Tell one run from another: by the computation, with all data, the key, and how it is run.

    The computation is what JAX hands to the compiler. The text of a jaxpr is no mark of it: the
    order of a distribution's parameters there differs from process to process.
    """
    lowered = jax.jit(functools.partial(_whole, interpret)).lower(program, key)
    found = hashlib.sha256(f"{program.name}{how} {lowered.as_text()}".encode())
    for x in (*program.args, key):
        found.update(f"{x.dtype} {x.shape}".encode())
        x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        found.update(np.asarray(x).tobytes())
    return found.hexdigest()


def _whole(interpret: Callable[..., Any], program: Program, key: Any) -> Any:
    return interpret(program.structure.jaxpr, program.consts, program.args, key)
