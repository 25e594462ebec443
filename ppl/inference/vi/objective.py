"""`Objective`: an objective of a model and a guide, as a function of their parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ppl._types import PyTree, pytree, static
from ppl.context import context
from ppl.errors import ArgumentError, message
from ppl.program import Program, require_program


@pytree
class Objective:
    """An objective that waits for parameters; calling it with them gives the program.

    `program` and `guide` are programs, or functions of the parameters that make them; both get the
    same ones. The arrays inside are data: with new ones nothing is compiled anew.
    """

    program: Any
    guide: Any
    kind: Callable[..., Program] = static()
    settings: tuple[tuple[str, Any], ...] = static()
    maximize: bool = static()

    @property
    def params(self) -> PyTree:
        """The parameters that the guide brings along to start from; None if it brings none."""
        return getattr(self.guide, "params", None)

    def __call__(self, params: PyTree) -> Program:
        """Give the objective at these parameters: a program of one real number, in nats."""
        program, guide = (at_params(x, params) for x in (self.program, self.guide))
        return self.kind(program, guide, **dict(self.settings))

    def __repr__(self) -> str:
        names = [getattr(x, "name", None) or type(x).__name__ for x in (self.program, self.guide)]
        return f"{self.kind.__name__.removesuffix('_program')}({', '.join(names)})"


@pytree
class Described:
    """Any objective, with what is known of it: the model and the guide it is about."""

    objective: Any
    program: Any
    guide: Any

    @property
    def params(self) -> PyTree:
        """The parameters to start from that the objective, or else the guide, brings along."""
        found = getattr(self.objective, "params", None)
        return getattr(self.guide, "params", None) if found is None else found

    @property
    def maximize(self) -> bool | None:
        """Whether larger is better, if the objective says so."""
        return getattr(self.objective, "maximize", None)

    def __call__(self, params: PyTree) -> Program:
        """Give the objective at these parameters."""
        return self.objective(params)

    def __repr__(self) -> str:
        return getattr(self.objective, "__name__", None) or repr(self.objective)


def described(objective: Any, program: Any, guide: Any) -> Described:
    """Add model and guide, programs or functions of parameters, to an objective that has none.

    Args:
        objective: a function from parameters to a program.
        program: the model, or None.
        guide: the guide, or None.

    Raises:
        ArgumentError: one of the two is neither, or the objective has its own.
    """
    for name, given in {"program": program, "guide": guide}.items():
        if given is not None and isinstance(objective, Objective):
            raise ArgumentError(
                message(
                    f"fit got {name}= and an objective with a {name} of its own",
                    needs=f"a {name} where the objective is a function of your own",
                    fix=f"leave {name}= out",
                )
            )
        if given is not None and not isinstance(given, Program) and not callable(given):
            raise ArgumentError(
                message(
                    f"fit got a {name} of type {type(given).__name__}",
                    needs="a program, or a function of parameters that makes one",
                    fix=f"ppl.vi.fit(objective, {name}=lambda params: ...)",
                )
            )
    return Described(objective, program, guide)


def at_params(made: Any, params: PyTree) -> Any:
    """Give the program that a function of parameters makes; a program is there already."""
    if isinstance(made, Program) or not callable(made):
        return made
    with context(None):  # the function makes a program, and is no part of another one
        return made(params)


def lift(
    kind: Callable[..., Program], program: Any, guide: Any, *, maximize: bool, **settings: Any
) -> Any:
    """Give the program of an objective, or the `Objective` if something waits for parameters.

    Args:
        kind: makes the program from program, guide and settings.
        program: a program, or a function of parameters.
        guide: likewise.
        maximize: whether larger is better.
        **settings: static numbers for `kind`.

    Raises:
        ArgumentError: one of the two is neither.
    """
    name = kind.__name__.removesuffix("_program")
    if not callable(program):
        require_program(f"vi.{name}", program)
    if not callable(guide):
        raise ArgumentError(
            message(
                f"vi.{name} got a guide of type {type(guide).__name__}",
                needs="a program, or a function of parameters that makes one",
                fix=f"ppl.vi.{name}(program, ppl.vi.mean_field(program))",
            )
        )
    if isinstance(program, Program) and isinstance(guide, Program):
        return kind(program, guide, **settings)
    return Objective(program, guide, kind, tuple(settings.items()), maximize)
