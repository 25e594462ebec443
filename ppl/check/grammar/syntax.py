"""The programs that `ppl.check.programs` draws, as data: expressions, statements, models.

Every expression over integers knows its size: its values are 0, ..., size - 1. So a table that is
indexed by it can be given exactly as many rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

Kind = Literal["int", "real", "positive", "unit"]
Row = float | tuple[float, ...]

# --- Expressions --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Name:
    """A variable: `length` is that of a vector, `lane` tells that it differs by plate member."""

    text: str
    size: int
    length: int | None = None
    lane: bool = False
    kind: Kind = "int"


@dataclasses.dataclass(frozen=True)
class Number:
    """A literal."""

    value: float

    @property
    def size(self) -> int:
        """One more than the number, taken as the largest of its range."""
        return int(self.value) + 1


@dataclasses.dataclass(frozen=True)
class Plus:
    """A sum of two."""

    left: Expr
    right: Expr

    @property
    def size(self) -> int:
        """The two ranges, laid end to end."""
        return self.left.size + self.right.size - 1


@dataclasses.dataclass(frozen=True)
class Same:
    """1 where two are equal, else 0."""

    left: Expr
    right: Expr
    size: int = 2


@dataclasses.dataclass(frozen=True)
class Total:
    """The sum of a vector."""

    of: Name

    @property
    def size(self) -> int:
        """As of a sum."""
        return (self.of.size - 1) * (self.of.length or 1) + 1


@dataclasses.dataclass(frozen=True)
class Item:
    """One element of a vector."""

    of: Name
    index: int

    @property
    def size(self) -> int:
        """That of every element."""
        return self.of.size


@dataclasses.dataclass(frozen=True)
class Lookup:
    """The row of a table at an index; the only row if there is no index."""

    rows: tuple[Row, ...]
    index: Expr | None = None
    size: int = 0


@dataclasses.dataclass(frozen=True)
class Pick:
    """One of two numbers, by whether an expression has a certain value."""

    of: Expr
    equals: int
    yes: float
    no: float
    size: int = 0


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A number times an expression."""

    by: float
    of: Expr
    size: int = 0


@dataclasses.dataclass(frozen=True)
class Apply:
    """A function of a real variable, written with `%s` in its place."""

    template: str
    of: Name
    size: int = 0


Expr = Name | Number | Plus | Same | Total | Item | Lookup | Pick | Scaled | Apply


@dataclasses.dataclass(frozen=True)
class Law:
    """A distribution: its family and parameters. `size` is 0 for a continuous one."""

    family: str
    parameters: tuple[Expr, ...]
    size: int
    kind: Kind = "int"


# --- Statements ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Draw:
    """A latent site; two exclusive branches may share its address."""

    name: Name
    law: Law
    address: str


@dataclasses.dataclass(frozen=True)
class Observe:
    """An observed site."""

    address: str
    law: Law
    value: Lookup


@dataclasses.dataclass(frozen=True)
class Factor:
    """A factor."""

    address: str
    log_weight: Expr


@dataclasses.dataclass(frozen=True)
class Record:
    """A deterministic site."""

    name: Name
    value: Expr


@dataclasses.dataclass(frozen=True)
class Block:
    """The body of a function: statements, and the value it returns."""

    statements: tuple[Statement, ...]
    result: Expr


@dataclasses.dataclass(frozen=True)
class Plate:
    """Draws and scores for every member of a plate; `index` names the members' numbers."""

    address: str
    index: Name
    count: int
    statements: tuple[Statement, ...]


@dataclasses.dataclass(frozen=True)
class Vmap:
    """A body for every element of `over`, or of 0, ..., count - 1."""

    name: Name
    function: str
    argument: Name
    over: Name | None
    count: int
    body: Block


@dataclasses.dataclass(frozen=True)
class Scan:
    """A loop: the body's result is the next carry, `out` what each step gives beside it."""

    carried: Name
    stacked: Name
    function: str
    carry: Name
    argument: Name
    over: Name | None
    count: int
    reverse: bool
    initial: Expr
    body: Block
    out: Expr


@dataclasses.dataclass(frozen=True)
class Cond:
    """Two branches. The test reads `of == against`, or `of > against` for a real."""

    name: Name
    functions: tuple[str, str]
    of: Expr
    against: float
    blocks: tuple[Block, Block]


@dataclasses.dataclass(frozen=True)
class Switch:
    """One branch for every value of an expression."""

    name: Name
    functions: tuple[str, ...]
    of: Expr
    blocks: tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class Wrap:
    """A body under `jax.jit` or `jax.checkpoint`."""

    name: Name
    function: str
    wrapper: str
    body: Block


@dataclasses.dataclass(frozen=True)
class Submodel:
    """A model of its own, called twice, each time under a scope."""

    names: tuple[Name, Name]
    scopes: tuple[str, str]
    function: str
    argument: Name
    inputs: tuple[Expr, Expr]
    body: Block


Simple = Draw | Observe | Factor | Record
Statement = Simple | Plate | Vmap | Scan | Cond | Switch | Wrap | Submodel


@dataclasses.dataclass(frozen=True)
class Text:
    """A whole model; `form` says whether it returns one value, a tuple or a dictionary."""

    statements: tuple[Statement, ...]
    results: tuple[Expr, ...]
    form: Literal["one", "tuple", "dict"]


def inside(statement: Statement) -> tuple[Block, ...]:
    """List the bodies of a statement's functions."""
    match statement:
        case Vmap() | Scan() | Wrap() | Submodel():
            return (statement.body,)
        case Cond() | Switch():
            return statement.blocks
    return ()


def walk(statements: tuple[Statement, ...]) -> Iterator[Statement]:
    """Go through all statements, at every depth, in the order of the text."""
    for statement in statements:
        yield statement
        if isinstance(statement, Plate):
            yield from walk(statement.statements)
        for block in inside(statement):
            yield from walk(block.statements)
