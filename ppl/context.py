"""Where in a model the tracing stands: scopes, plates, and the scans a `vmap` is pushed through.

Both values are part of the key of JAX's tracing caches, so that a jitted helper or a scan body that
was traced in one place of a model is not reused, with its addresses, in another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import NamedTuple

from ppl import _jax


class Plate(NamedTuple):
    """A named axis of conditionally independent members; `dim` counts batch axes from the right."""

    name: str
    size: int
    dim: int


@dataclasses.dataclass(frozen=True)
class Context:
    """What surrounds a statement.

    `changed` holds what functions read that differs from when JAX first saw them; `bridged` says
    that the statements are another library's.
    """

    inside: bool = False
    prefix: str = ""
    plates: tuple[Plate, ...] = ()
    scale: float = 1.0
    changed: Hashable = ()
    bridged: bool = False


#: Outside of every model.
TOP = Context()

context = _jax.cache_aware_context(TOP)
scans_crossed = _jax.cache_aware_context(0)


def current_context() -> Context:
    """Give the context of the statement being traced."""
    return context.value or TOP
