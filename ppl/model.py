"""The language: `model`, `sample`, `factor`, `deterministic`, `plate`, `scope`."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from ppl.context import current_context
from ppl.errors import (
    ArgumentError,
    ModelError,
    message,
)
from ppl.program import Program
from ppl.staging import stage

P = ParamSpec("P")
R = TypeVar("R")


class Model:
    """A function whose statements may be `sample`, `factor`, `deterministic`, `plate`, `scope`.

    Called outside of a model it gives a `Program`; called inside one it becomes part of it.
    """

    def __init__(self, fun: Callable[..., Any], bound: tuple[Any, ...] = ()):
        if not callable(fun):
            raise ModelError(
                message(
                    f"ppl.model got {type(fun).__name__}",
                    needs="a function",
                    fix="write @ppl.model above a def",
                )
            )
        functools.update_wrapper(self, fun, updated=())  # not over our own attributes
        self.__wrapped_model__, self._bound = fun, bound

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Give the program of this call, or run as a part of the model being traced."""
        if not current_context().inside:
            return self.program(*args, **kwargs)
        fun, args = self.__wrapped_model__, (*self._bound, *args)
        self._check_call(fun, args, kwargs)
        return fun(*args, **kwargs)

    def program(self, *args: Any, **kwargs: Any) -> Program:
        """Give the program of this call, even inside another model (where `()` would inline).

        Args:
            *args: the model's arguments.
            **kwargs: likewise.

        Raises:
            ArgumentError: the arguments do not fit the model's signature.
        """
        fun, args = self.__wrapped_model__, (*self._bound, *args)
        self._check_call(fun, args, kwargs)
        return stage(fun, args, kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        # The instance is an argument like any other: if it is a pytree, its arrays are data.
        return Model(self.__wrapped_model__, (instance,))

    def __repr__(self) -> str:
        name = getattr(self.__wrapped_model__, "__name__", "model")
        return f"<ppl.model {name}{inspect.signature(self.__wrapped_model__)}>"

    @staticmethod
    def _check_call(fun: Callable[..., Any], args: Any, kwargs: Any) -> None:
        signature = inspect.signature(fun)
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            name = getattr(fun, "__name__", "model")
            known = list(signature.parameters)
            strange = [k for k in kwargs if k not in known]
            close = [m for k in strange for m in difflib.get_close_matches(k, known, 1, 0.3)]
            hint = f" ({strange[0]!r}: did you mean {close[0]!r}?)" if close else ""
            raise ArgumentError(
                message(
                    f"{name} was called wrongly: {error}{hint}",
                    needs=f"the arguments {name}{signature}",
                    fix=f"{name}({', '.join(known)})",
                )
            ) from None


def model(fun: Callable[P, R]) -> Callable[P, Any]:
    """Make a function a model; its calls are programs.

    **Meaning.** The program's measure weighs each run by its scores and is pushed forward to what
    the function returns. Arrays among the arguments are data: new data of the same shape reuse all
    compiled code. Everything else is static.

    Args:
        fun: a function of arrays and static values, free of side effects. Control flow is JAX's.

    Returns:
        A `Model`; call it for a `Program`, or inside another model to make it a part of that.
    """
    return Model(fun)
