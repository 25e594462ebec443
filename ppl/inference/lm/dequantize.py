"""From the blocks of a GGUF file to float32, for the types that most files use."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np

Blocks = np.ndarray  # bytes: a block of 32 weights a row
BLOCK = 32
CHUNK = 1 << 14  # blocks at a time: what is at work stays in the processor's cache


def _nibbles(packed: np.ndarray, scale: np.ndarray, out: np.ndarray) -> None:
    # The low halves of the bytes are the first sixteen weights, the high halves the others.
    np.multiply(packed & 15, scale, out=out[:, :16])
    np.multiply(packed >> 4, scale, out=out[:, 16:])


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _q4_0(blocks: Blocks, out: np.ndarray) -> None:
    scale = _half(blocks, 0)
    packed = blocks[:, 2:]
    np.multiply((packed & 15).view(np.int8) - np.int8(8), scale, out=out[:, :16])
    np.multiply((packed >> 4).view(np.int8) - np.int8(8), scale, out=out[:, 16:])


def _q4_1(blocks: Blocks, out: np.ndarray) -> None:
    _nibbles(blocks[:, 4:], _half(blocks, 0), out)
    out += _half(blocks, 2)


def _q8_0(blocks: Blocks, out: np.ndarray) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _half(blocks, 0), out=out)


RULES: dict[str, tuple[int, Callable[[Blocks, np.ndarray], None]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q8_0": (34, _q8_0),
}
PLAIN = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


def dequantize(data: np.ndarray, kind: str) -> np.ndarray:
    """Turn a tensor of a GGUF file into numbers.

    **Meaning.** The same numbers as `gguf.quants.dequantize`, bit for bit, sooner.

    Args:
        data: the tensor as the file has it; its last axis may hold bytes of blocks.
        kind: its type, such as "Q4_1".

    Returns:
        The tensor in float32.

    Source: the block layouts of ggml (`ggml-common.h`).
    """
    if kind in PLAIN:
        numbers = data if data.dtype == PLAIN[kind] else data.view(PLAIN[kind])
        return np.asarray(numbers, np.float32)
    if kind not in RULES:
        import gguf

        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).astype(np.float32)
    size, rule = RULES[kind]
    blocks = np.ascontiguousarray(data).view(np.uint8).reshape(-1, size)
    out = np.empty((len(blocks), BLOCK), np.float32)
    for first in range(0, len(blocks), CHUNK):
        rule(blocks[first : first + CHUNK], out[first : first + CHUNK])
    return out.reshape(*data.shape[:-1], -1)
