"""JAX's persistent compilation cache, turned on with one call."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def enable_compilation_cache(path: str | os.PathLike[str] | None = None) -> Path:
    """Keep compiled code on disk, so that later processes start without compiling.

    Args:
        path: a folder; None for `ppl/jax` in the user's cache folder (`XDG_CACHE_HOME` or
            `~/.cache`).

    Returns:
        The folder.
    """
    if path is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(base) / "ppl" / "jax"
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
