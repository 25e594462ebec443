"""Type aliases, and how a frozen dataclass becomes a JAX pytree."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias, TypeVar, dataclass_transform

import jax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

PyTree: TypeAlias = Any
Key: TypeAlias = PRNGKeyArray | int
Scalar: TypeAlias = Float[Array, ""]
Choices: TypeAlias = dict[str, Array]

T = TypeVar("T")

__all__ = ["Array", "ArrayLike", "Choices", "Key", "PyTree", "Scalar", "pytree", "static"]


def static(**kwargs: Any) -> Any:
    """Declare a dataclass field that is part of the structure, not of the data."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def pytree(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose non-static fields are pytree children."""
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    return jax.tree_util.register_dataclass(
        cls,
        data_fields=[f.name for f in fields if not f.metadata.get("static")],
        meta_fields=[f.name for f in fields if f.metadata.get("static")],
    )
