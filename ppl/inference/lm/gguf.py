"""Model files: reading GGUF, and where to find the one that is small enough for every test."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np

from ppl.errors import ArgumentError, UnsupportedError, message
from ppl.inference.lm.dequantize import dequantize


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """What a GGUF file says: its metadata, and its tensors as they are stored."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, tuple[str, np.ndarray]]

    def array(self, name: str) -> np.ndarray:
        """Give a tensor in float32, axes as in a matrix that multiplies from the left.

        Args:
            name: the tensor's name in the file.

        Raises:
            ArgumentError: the file has no such tensor, or one with values that are no numbers.
        """
        if name not in self.tensors:
            raise ArgumentError(
                message(
                    f"{self.path.name} got asked for the tensor {name!r}",
                    needs="a file that has it",
                    why=f"it has {len(self.tensors)} tensors: {', '.join(list(self.tensors)[:6])}"
                    ", ...",
                    fix="use the GGUF file of a Llama model",
                )
            )
        kind, data = self.tensors[name]
        found = dequantize(data, kind)
        if not np.isfinite(found).all():
            raise ArgumentError(
                message(
                    f"{self.path.name} holds a tensor {name!r} with NaN or infinite values",
                    needs="finite weights",
                    why="every probability that a model gives would be no number",
                    fix="fetch or convert the file again",
                )
            )
        return found

    def __getitem__(self, key: str) -> Any:
        if key not in self.metadata:
            raise ArgumentError(
                message(
                    f"{self.path.name} got asked for {key!r}",
                    needs="a file whose metadata has it",
                    fix="use the GGUF file of a Llama model",
                )
            )
        return self.metadata[key]


def read_gguf(path: str | os.PathLike[str]) -> ModelFile:
    """Read a GGUF file.

    Args:
        path: the file.

    Returns:
        Its metadata in Python's types, and its tensors, mapped from the disk.

    Raises:
        ArgumentError: there is no such file, or it is no GGUF file.
        UnsupportedError: the package `gguf` is not installed.
    """
    need("gguf")
    import gguf

    path = Path(path)
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError) as error:
        raise ArgumentError(
            message(
                f"read_gguf got {str(path)!r}",
                needs="a GGUF file",
                why=str(error),
                fix="ppl.lm.smollm2() gives the path of a small one",
            )
        ) from error
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: (t.tensor_type.name, t.data) for t in reader.tensors}
    return ModelFile(path, metadata, tensors)


def need(package: str) -> None:
    """Raise unless a package of the extra `lm` is there.

    Args:
        package: its name.

    Raises:
        UnsupportedError: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise UnsupportedError(
            message(
                f"ppl.lm got no package `{package}`",
                needs="the packages that read a model file",
                fix="python -m pip install gguf tokenizers",
            )
        )
