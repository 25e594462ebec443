"""The weights of a Llama: from a file, or at random."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ppl.errors import UnsupportedError, message
from ppl.inference.lm.decoder import Config, Layer, Weights
from ppl.inference.lm.gguf import ModelFile


def config_of(file: ModelFile) -> Config:
    """Read the sizes of a Llama from a file's metadata.

    Args:
        file: the file.

    Raises:
        UnsupportedError: it holds a model of another kind.
    """
    said = file.metadata
    heads, width = int(file["llama.attention.head_count"]), int(file["llama.embedding_length"])
    size = int(said.get("llama.attention.key_length", width // heads))
    known = {
        "general.architecture": "llama",
        "llama.rope.dimension_count": size,
        "llama.rope.scaling.type": "none",
        "llama.attention.value_length": size,
        "llama.expert_count": 0,
    }
    for name, value in known.items():
        if said.get(name, value) != value:
            raise UnsupportedError(
                message(
                    f"Llama.load got a file with {name} = {said[name]!r}",
                    needs=f"{value!r}",
                    why="the decoder is the plain one of Llama",
                    fix="ppl.lm.smollm2() gives the path of a file that fits",
                )
            )
    return Config(
        layers=int(file["llama.block_count"]),
        width=width,
        inner=int(file["llama.feed_forward_length"]),
        heads=heads,
        kv_heads=int(said.get("llama.attention.head_count_kv", heads)),
        size=size,
        theta=float(said.get("llama.rope.freq_base", 10_000.0)),
        epsilon=float(file["llama.attention.layer_norm_rms_epsilon"]),
        context=int(file["llama.context_length"]),
    )


def load_weights(file: ModelFile, config: Config, dtype: Any = None) -> Weights:
    """Load the weights of a Llama from a file.

    Args:
        file: the file.
        config: the sizes.
        dtype: what to hold the matrices in; if None, float32 on CPUs, bfloat16 on accelerators.
    """
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    c = config

    def heads(name: str) -> np.ndarray:
        # Rotated pairs are neighbours in the file; here they are half a head apart.
        rows = file.array(name)
        pairs = rows.reshape(-1, c.size // 2, 2, rows.shape[-1])
        return pairs.swapaxes(1, 2).reshape(rows.shape)

    def stack(*rows: np.ndarray) -> Array:
        return jnp.asarray(np.concatenate(rows), dtype)

    def layer(i: int) -> Layer:
        def get(name: str) -> np.ndarray:
            return file.array(f"blk.{i}.{name}.weight")

        queries, keys = heads(f"blk.{i}.attn_q.weight"), heads(f"blk.{i}.attn_k.weight")
        return Layer(
            jnp.asarray(get("attn_norm")),
            stack(queries, keys, get("attn_v")),
            stack(get("attn_output")),
            jnp.asarray(get("ffn_norm")),
            stack(get("ffn_gate"), get("ffn_up")),
            stack(get("ffn_down")),
        )

    frequencies = _frequencies(c)
    if "rope_freqs.weight" in file.tensors:  # how Llama 3 reads further than it was first trained
        frequencies = frequencies / file.array("rope_freqs.weight")
    head = "output.weight"
    return Weights(
        embedding=stack(file.array("token_embd.weight")),
        layers=tuple(layer(i) for i in range(c.layers)),
        norm=jnp.asarray(file.array("output_norm.weight")),
        frequencies=jnp.asarray(frequencies, jnp.promote_types(dtype, jnp.float32)),
        head=stack(file.array(head)) if head in file.tensors else None,
    )


def random_weights(key: Any, config: Config, tokens: int, dtype: Any = None) -> Weights:
    """Draw weights at random, of the usual scale: normal, with variance one over the inputs.

    Args:
        key: the key.
        config: the sizes.
        tokens: how many there are.
        dtype: what to hold them in; if None, JAX's default.
    """
    dtype = jnp.dtype(dtype or jnp.result_type(float))
    c, keys = config, iter(jax.random.split(key, 4 * config.layers + 1))

    def draw(rows: int, columns: int) -> Array:
        return jax.random.normal(next(keys), (rows, columns), dtype) * columns**-0.5

    def layer() -> Layer:
        inside = c.heads * c.size
        return Layer(
            jnp.ones(c.width, dtype),
            draw(inside + 2 * c.kv_heads * c.size, c.width),
            draw(c.width, inside),
            jnp.ones(c.width, dtype),
            draw(2 * c.inner, c.width),
            draw(c.width, c.inner),
        )

    return Weights(
        embedding=draw(tokens, c.width),
        layers=tuple(layer() for _ in range(c.layers)),
        norm=jnp.ones(c.width, dtype),
        frequencies=jnp.asarray(_frequencies(c), jnp.promote_types(dtype, jnp.float32)),
        head=None,
    )


def _frequencies(config: Config) -> np.ndarray:
    return config.theta ** (-np.arange(0, config.size, 2) / config.size)
