"""`vmap` of a choice or a loop whose predicate differs between lanes.

JAX then runs every branch for every lane and selects the outputs. A site in a branch must count
only in the lanes that took it, so before batching each branch is rewritten: its sites get a
`present` operand that says so.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ppl import _jax
from ppl.context import scans_crossed
from ppl.interpreter.base import Frame, Interpreter, evaluate
from ppl.primitives import Site, bind, with_operand

_choices = itertools.count()


class _Masking(Interpreter):
    """Rebind every site as present only where `flag` holds."""

    name = "vmap"

    def __init__(self, flag: Any, branch: tuple[int, int] | None):
        self.flag, self.branch = flag, branch

    def arrays(self) -> Any:
        return self.flag

    def with_arrays(self, arrays: Any) -> Interpreter:
        return _Masking(arrays, self.branch)

    def _masked(self, site: Site, leaves: list[Any]) -> list[Any]:
        present = site.operands(leaves).present
        if present is None:
            site, leaves = with_operand(site, leaves, "present", self.flag, mapped=False)
        else:
            leaves = jax.tree.leaves(
                site.operands(leaves)._replace(present=jnp.logical_and(present, self.flag))
            )
        if self.branch is not None:
            site = dataclasses.replace(site, branches=(*site.branches, self.branch))
        return bind(site, leaves)

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        value = self._masked(site, leaves)[0]
        # No gradient may reach a choice through a branch that its lane does not take.
        return jnp.where(self.flag, value, jax.lax.stop_gradient(value))

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        self._masked(site, leaves)


def _cond_rule(original: Any, axis: Any, args: Any, dims: Any, params: dict[str, Any]) -> Any:
    branches = params["branches"]
    if dims[0] is None or not any(map(_jax.has_effect, branches)):
        return original(axis, args, dims, **params)
    choice = next(_choices)

    def select(index: Any, *operands: Any) -> list[Any]:
        outs = []
        for b, branch in enumerate(branches):
            taken = index == b
            # As JAX does: gradients of a branch not taken must not reach the operands.
            safe = [jnp.where(taken, x, jax.lax.stop_gradient(x)) for x in operands]
            outs.append(masked(branch, taken, safe, (choice, b)))
        return [jax.lax.select_n(index, *alternatives) for alternatives in zip(*outs, strict=True)]

    outs = _jax.vmap_in_rule(axis, dims, select)(*args)
    return outs, [0] * len(outs)


def _while_rule(original: Any, axis: Any, args: Any, dims: Any, params: dict[str, Any]) -> Any:
    test, step = params["cond_jaxpr"], params["body_jaxpr"]
    if not (_jax.has_effect(test) or _jax.has_effect(step)):
        return original(axis, args, dims, **params)
    num_cond, num_body = params["cond_nconsts"], params["body_nconsts"]
    num_consts = num_cond + num_body
    consts, const_dims = args[:num_consts], dims[:num_consts]

    def advance(active: Any, carry: Any, *consts: Any) -> Any:
        (go,) = masked(test, active, [*consts[:num_cond], *carry], None)
        go = active & go
        new = masked(step, go, [*consts[num_cond:], *carry], None)
        return go, [jnp.where(go, n, c) for n, c in zip(new, carry, strict=True)]

    def all_lanes(fun: Any) -> Any:
        lifted = _jax.vmap_in_rule(axis, (0, 0, *const_dims), fun)
        return lambda active, carry: lifted(active, carry, *consts)

    init = [
        jnp.broadcast_to(x, (axis.size, *jnp.shape(x))) if d is None else jnp.moveaxis(x, d, 0)
        for x, d in zip(args[num_consts:], dims[num_consts:], strict=True)
    ]
    start = (jnp.ones(axis.size, bool), init)
    _, carry = jax.lax.while_loop(
        lambda state: jnp.any(state[0]), lambda state: all_lanes(advance)(*state), start
    )
    return carry, [0] * len(carry)


def _scan_rule(original: Any, axis: Any, args: Any, dims: Any, params: dict[str, Any]) -> Any:
    with scans_crossed((scans_crossed.value or 0) + 1):
        return original(axis, args, dims, **params)


def masked(jaxpr: Any, flag: Any, args: Sequence[Any], branch: tuple[int, int] | None) -> Any:
    """Stage a branch whose sites are present only where the flag holds."""
    jaxpr, consts = _jax.open_jaxpr(jaxpr)
    return evaluate(_Masking(flag, branch), jaxpr, consts, args).outs


_jax.override_batching("cond", _cond_rule)
_jax.override_batching("while", _while_rule)
_jax.override_batching("scan", _scan_rule)
