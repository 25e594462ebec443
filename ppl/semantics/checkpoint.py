"""Checkpoints of long loops: a folder to which parts are only added, each whole or not there."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

    def __init__(self, path: str, program: Program, key: Any, interpret: Callable[..., Any]):
        self.path = Path(path)
        self.mark = _mark(interpret, program, key)
        self.count = 0

    def load(self) -> list[dict[str, Any]]:
        """Give the parts that are there; none if the run is new."""
        if self.path.exists() and not self.path.is_dir():
            raise self._refusal(f"{self.path} is a file", "a folder, or a path where nothing is")
        self.path.mkdir(parents=True, exist_ok=True)
        found: list[dict[str, Any]] = []
        while (file := self._file(self.count)).exists():
            arrays, about = storage.load(file)
            if about.get("run") != self.mark:
                raise self._refusal(
                    f"{file} belongs to another run",
                    "the run that the checkpoint was written by: program, data, settings and key",
                )
            found.append(arrays)
            self.count += 1
        later = sorted(f.name for f in self.path.glob("part-*.npz"))[self.count :]
        if later:
            raise self._refusal(f"{later[0]} is there, and an earlier part is not", "all parts")
        return found

    def add(self, part: dict[str, Any]) -> None:
        """Write the next part."""
        file = self._file(self.count)
        if file.exists():
            raise self._refusal(f"another process wrote {file.name}", "one process at a time")
        storage.save(file, part, {"run": self.mark})
        self.count += 1

    def _file(self, number: int) -> Path:
        return self.path / f"part-{number:06d}.npz"

    def _refusal(self, found: str, needs: str) -> ArgumentError:
        return ArgumentError(
            message(
                f"run got checkpoint={str(self.path)!r}: {found}",
                needs=needs,
                why="a run goes on bit for bit, or not at all",
                fix="another path, or remove this one to start anew",
            )
        )


def _mark(interpret: Callable[..., Any], program: Program, key: Any) -> str:
    """Tell one run from another: by the computation, with all data, and the key.

    The computation is what JAX hands to the compiler. The text of a jaxpr is no mark of it: the
    order of a distribution's parameters there differs from process to process.
    """
    lowered = jax.jit(functools.partial(_whole, interpret)).lower(program, key)
    found = hashlib.sha256(f"{program.name} {lowered.as_text()}".encode())
    for x in (*program.args, key):
        found.update(f"{x.dtype} {x.shape}".encode())
        x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        found.update(np.asarray(x).tobytes())
    return found.hexdigest()


def _whole(interpret: Callable[..., Any], program: Program, key: Any) -> Any:
    return interpret(program.structure.jaxpr, program.consts, program.args, key)
