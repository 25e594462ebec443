"""Checkpoints of long loops: a folder to which parts are only added, each whole or not there."""

from __future__ import annotations

import hashlib
import re
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

    def __init__(self, path: str, program: Program, key: Any):
        self.path = Path(path)
        self.mark = _mark(program, key)
        self.count = 0

    def load(self) -> list[list[dict[str, Any]]]:
        """Give what is there of each part of the loop; no parts if the run is new."""
        if self.path.exists() and not self.path.is_dir():
            raise self._refusal(f"{self.path} is a file", "a folder, or a path where nothing is")
        self.path.mkdir(parents=True, exist_ok=True)
        found: list[list[dict[str, Any]]] = []
        while (file := self._file(self.count)).exists():
            arrays, about = storage.load(file)
            if about.get("run") != self.mark:
                raise self._refusal(
                    f"{file} belongs to another run",
                    "the run that the checkpoint was written by: program, data, settings and key",
                )
            found = found or [[] for _ in range(about["parts"])]
            for k, pieces in enumerate(found):
                pieces.append(arrays[str(k)])  # pyright: ignore[reportArgumentType]
            self.count += 1
        return found

    def add(self, parts: list[dict[str, Any]]) -> None:
        """Write the next part."""
        arrays = {str(k): part for k, part in enumerate(parts)}
        storage.save(self._file(self.count), arrays, {"run": self.mark, "parts": len(parts)})
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


def _mark(program: Program, key: Any) -> str:
    """Tell one run from another: by its program with all data, and its key."""
    s, found = program.structure, hashlib.sha256()
    text = re.sub(r"0x[0-9a-f]+", "", f"{s.name} {s.jaxpr}")
    found.update(text.encode())
    for x in (*program.consts, *program.args, key):
        x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        x = np.asarray(x)
        found.update(f"{x.dtype} {x.shape}".encode() + x.tobytes())
    return found.hexdigest()
