"""What goes into a loop of a program and comes out, for all particles and for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ppl.inference.particles.cloud import START, Cloud, among, moved, read
from ppl.semantics.cuts import Loop


class Operands:
    """The operands of a loop, sorted: those that are one for all particles, and those that are not.

    `held` is what each particle carries from one iteration to the next, under `names`: its index
    at the start, what is given by name as `extra`, and the constants and the carried values that
    differ between particles.
    """

    def __init__(
        self,
        part: Loop,
        env: Mapping[Any, Any],
        cloud: Cloud,
        count: int,
        extra: Mapping[str, Any],
    ):
        self.part, self.count = part, count
        n, m = part.sizes
        variables = part.body.jaxpr.invars
        own = [v in part.body.random for v in variables]

        def operand(atom: Any, own: bool) -> Any:
            value = read(env, cloud.values, atom)
            if not own or among(cloud.values, atom):
                return value
            return jnp.broadcast_to(value, (count, *jnp.shape(value)))

        entering = list(map(operand, part.eqn.invars, own))
        self.constants = dict(zip(part.body.jaxpr.constvars, part.consts, strict=True))
        self.constants.update(
            (v, x) for v, x, o in zip(variables[:n], entering, own, strict=False) if not o
        )
        self.again = [v for v, o in zip(variables[:n], own, strict=False) if o]
        self.own_carry = [v for v, o in zip(variables[n : n + m], own[n:], strict=False) if o]
        self.common_carry = [v for v in variables[n : n + m] if v not in part.body.random]
        by_variable = dict(zip(variables, entering, strict=True))
        kept = (*self.again, *self.own_carry)
        self.stable = (START, *extra, *self.again)
        self.names = (START, *extra, *kept)
        self.held = [jnp.arange(count), *extra.values(), *(by_variable[v] for v in kept)]
        self.common = [by_variable[v] for v in self.common_carry]
        self.row_variables = variables[n + m :]
        rows = zip(entering[n + m :], own[n + m :], strict=True)
        self.rows = [moved(1, 0)(x) if o else x for x, o in rows]

    def enter(self, held: Any, common: Any, rows: Any) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """Give the variables at the start of an iteration: those of all, those of each particle."""
        inner = {**self.constants, **dict(zip(self.common_carry, common, strict=True))}
        values = dict(zip(self.names, held, strict=True))
        for v, row in zip(self.row_variables, rows, strict=True):
            own = v in self.part.body.random
            (values if own else inner)[v] = row[values[START]] if own else row
        return inner, values

    def leave(self, outs: list[Any], cloud: Cloud) -> tuple[list[Any], list[Any], Any, Any]:
        """Sort what an iteration gives: held and common carries, common and own rows."""
        jaxpr, eqn = self.part.body.jaxpr, self.part.eqn
        n, m = self.part.sizes
        held = [cloud.values[v] for v in self.stable]
        common, common_rows, own_rows = [], [], []
        for i, (out, atom) in enumerate(zip(outs, jaxpr.outvars, strict=True)):
            out = jnp.asarray(out, atom.aval.dtype)
            alike = not among(cloud.values, atom)
            wide = jnp.broadcast_to(out, (self.count, *out.shape)) if alike else out
            if i < m:
                own = jaxpr.invars[n + i] in self.part.body.random
                (held if own else common).append(wide if own else out)
            elif eqn.outvars[i] in self.part.outputs:
                own_rows.append(wide)
            else:
                common_rows.append(out if alike else None)
        return held, common, common_rows, own_rows

    def done(
        self, env: dict[Any, Any], cloud: Cloud, held: list[Any], common: list[Any], rows: list[Any]
    ) -> None:
        """Put the loop's outputs where later parts read them; rows of particles come apart."""
        n, m = self.part.sizes
        outvars = self.part.eqn.outvars
        left = dict(zip(self.names, held, strict=True))
        left.update(zip(self.common_carry, common, strict=True))
        for v, out in zip(self.part.body.jaxpr.invars[n : n + m], outvars, strict=False):
            (cloud.values if v in self.part.body.random else env)[out] = left[v]
        fresh = iter(rows)
        env.update((v, next(fresh)) for v in outvars[m:] if v not in self.part.outputs)
