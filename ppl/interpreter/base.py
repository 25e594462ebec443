"""The one evaluation loop: what control flow means, given what `sample` and `score` mean.

An interpreter says what happens at a site. The loop below runs every other equation by `bind`, so
that interpreting is itself traceable by JAX, and enters each equation that has a site inside
through a rule of `RULES`. An equation that contains a site and has no rule is an error: running it
unchanged would lose the site in silence.

A region (a jaxpr with its interpretation) is a pure function: it reads a key and given values, and
returns its outputs, an additive weight, and records by address. Addresses of a site inside loops
and `vmap`s name one array; its leading axes follow the nesting in which the user wrote the loops.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax
from ppl._types import pytree, static
from ppl.errors import AddressError, UnsupportedError, at, message
from ppl.interpreter.placed import placed_sites
from ppl.primitives import Site, presence, sample_p, score_p

#: How each control-flow primitive is entered, by name; filled by `control` and `custom`.
RULES: dict[str, Callable[..., list[Any]]] = {}


class Record(NamedTuple):
    """What an interpreter kept at a site, and where (per lane, per iteration) it exists."""

    value: Any
    present: Any = None


_LOOP = zlib.crc32(b"an axis of iterations")


def address_hash(address: str) -> int:
    """Give the 32 bits by which an address selects its random numbers."""
    return zlib.crc32(address.encode())


def loop_key_of(key: Any) -> Any:
    """The key from which a loop in a region of key `key` derives that of each iteration."""
    return jax.random.fold_in(key, _LOOP)


@pytree
class Ring:
    """A region's key, and what is folded into it there: the keys of its sites, and of its loops.

    All are made at once: hashing a hundred numbers costs no more than hashing one.
    """

    key: Any
    folded: Any
    numbers: tuple[int, ...] = static()

    @classmethod
    def of(cls, key: Any, jaxpr: Any) -> Ring:
        """Make what a jaxpr will ask for."""
        placed = [p for p in placed_sites(jaxpr) if p.site.kind == "latent"]
        numbers = tuple(
            dict.fromkeys(
                _LOOP if p.scans or p.whiles else address_hash(p.site.address) for p in placed
            )
        )
        fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
        return cls(key, fold(key, np.asarray(numbers, np.uint32)) if numbers else None, numbers)

    def fold_in(self, number: int) -> Any:
        """Fold a number into the key."""
        if number in self.numbers:
            return self.folded[self.numbers.index(number)]
        return jax.random.fold_in(self.key, number)


class Frame:
    """The state of one region while it is evaluated."""

    def __init__(self, key: Any, given: Mapping[str, Any], zero: Any):
        self.key, self.given, self.weight = key, dict(given), zero
        self.records: dict[str, Record] = {}

    def key_for(self, site: Site) -> Any:
        """The site's key: it depends on the address and the iteration alone.

        So conditioning on one site, or interpreting in another way, changes no other draw.
        """
        return self.key.fold_in(address_hash(site.address))

    def loop_key(self) -> Any:
        """The key whose foldings with 0, 1, ... serve a loop's iterations."""
        return None if self.key is None else self.key.fold_in(_LOOP)

    def add(self, weight: Any) -> None:
        """Add to the region's weight."""
        self.weight = jax.tree.map(jnp.add, self.weight, weight)

    def record(self, site: Site, leaves: Sequence[Any], value: Any) -> None:
        """Keep `value` at the site's address."""
        self.keep(site.address, Record(value, presence(site, leaves)))

    def keep(self, address: str, record: Record) -> None:
        """Keep a record; alternatives of one address in exclusive branches are merged."""
        old = self.records.get(address)
        self.records[address] = record if old is None else merge_records(old, record)


class Interpreter:
    """What `sample` and `score` mean. The default rebinds both: the identity on programs."""

    #: Name for messages.
    name = "this interpreter"
    #: Whether sites inside a `while_loop`, whose number is unknown, can be given a meaning.
    unbounded = True
    #: Whether sites are staged again, whether a weight is kept, whether given values fix sites.
    rebinds, weighs, fixes = True, False, True
    #: Whether every latent site's value is given: iterations of a loop may then be run at once.
    settled = False

    def arrays(self) -> Any:
        """Give the arrays the interpreter holds, as a pytree."""
        return None

    def with_arrays(self, arrays: Any) -> Interpreter:
        """Give the interpreter that holds these arrays instead."""
        return self

    def zero(self) -> Any:
        """The neutral weight: a pytree of arrays, added along the evaluation."""
        return None

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        """Give the value of a latent, observed or deterministic site."""
        return sample_p.bind(*leaves, site=site)[0]

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        """Account for a factor."""
        score_p.bind(*leaves, site=site)


class Renaming(Interpreter):
    """Rebind every site with a prefix before its address."""

    name = "a call of a program inside a model"

    def __init__(self, prefix: str):
        self.prefix = prefix

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        return sample_p.bind(*leaves, site=self._renamed(site))[0]

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        score_p.bind(*leaves, site=self._renamed(site))

    def _renamed(self, site: Site) -> Site:
        return dataclasses.replace(site, address=self.prefix + site.address)


class Outcome(NamedTuple):
    """What evaluating a region gives."""

    outs: list[Any]
    weight: Any
    records: dict[str, Record]


def evaluate(
    interpreter: Interpreter,
    jaxpr: Any,
    consts: Sequence[Any],
    args: Sequence[Any],
    *,
    key: Any = None,
    given: Mapping[str, Any] | None = None,
) -> Outcome:
    """Evaluate a jaxpr under an interpreter.

    `given` holds, by address, arrays with the site's axes first. The result's records do too.
    """
    if key is not None and not isinstance(key, Ring):
        key = Ring.of(key, jaxpr)
    frame = Frame(key, given or {}, interpreter.zero())
    outs = run_region(interpreter, frame, jaxpr, consts, args)
    return Outcome(outs, frame.weight, frame.records)


def run_region(
    interpreter: Interpreter, frame: Frame, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]
) -> list[Any]:
    """Evaluate a jaxpr in a frame, one equation after the other."""
    env: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, _jax.Literal) else env[atom]

    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        outs = run_equation(interpreter, frame, eqn, [read(v) for v in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def run_equation(interpreter: Interpreter, frame: Frame, eqn: Any, values: list[Any]) -> list[Any]:
    """Evaluate one equation in a frame."""
    if not _jax.contains_effect(eqn):
        return _jax.bind_equation(eqn, values)
    if eqn.primitive not in (sample_p, score_p):
        return _rule_for(interpreter, eqn)(interpreter, frame, eqn, values)
    # NumPy literals would lead distributions astray.
    values = [jnp.asarray(v) if isinstance(v, np.generic | np.ndarray) else v for v in values]
    if eqn.primitive is sample_p:
        return [interpreter.sample(frame, eqn.params["site"], values)]
    interpreter.score(frame, eqn.params["site"], values)
    return []


def _first_site(eqn: Any) -> Site:
    return next(p.site for sub in _jax.subjaxprs(eqn) for p in placed_sites(sub))


def _rule_for(interpreter: Interpreter, eqn: Any) -> Callable[..., list[Any]]:
    name = eqn.primitive.name
    if name in RULES:
        return RULES[name]
    site = _first_site(eqn)
    raise UnsupportedError(
        message(
            f"{interpreter.name} met the JAX operation '{name}' around the site "
            f"{at(site.address, site.source)}",
            needs=f"sites to stand only inside {', '.join(sorted(RULES))}",
            why="an operation without a rule would lose the draws and scores inside it",
            fix=f"move the sample or factor statement out of '{name}'",
        )
    )


def same_shape(address: str, one: Any, other: Any) -> None:
    """Raise `AddressError` if two alternatives of an address differ in shape or dtype."""

    def signature(tree: Any) -> Any:
        return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]

    if signature(one) != signature(other):
        raise AddressError(
            message(
                f'"{address}" stands in two branches with values {signature(one)} and '
                f"{signature(other)}",
                needs="the same shape and dtype in every branch that uses the address",
                why="an address names one array, whichever branch is taken",
                fix="use different addresses in the branches",
            )
        )


def merge_records(old: Record, new: Record) -> Record:
    """Join two alternatives of one address; at most one is present in each lane."""
    if old.present is None or new.present is None:
        raise AssertionError("an address that is always present cannot stand twice")
    same_shape("a shared address", old.value, new.value)

    def pick(a: Any, b: Any) -> Any:
        flag = new.present.reshape(new.present.shape + (1,) * (b.ndim - new.present.ndim))
        return jnp.where(flag, b, a)

    return Record(jax.tree.map(pick, old.value, new.value), old.present | new.present)
