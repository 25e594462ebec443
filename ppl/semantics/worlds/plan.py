"""What of a jaxpr has to be run, and when each of its values is needed for the last time."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

from ppl import _jax
from ppl.semantics.worlds.arrays import Code


class Step(NamedTuple):
    """An equation with a site in it, or a block of equations without.

    `wanted` tells which outputs are used, `dead` what is not used afterwards.
    """

    ins: tuple[Any, ...]
    outs: tuple[Any, ...]
    dead: tuple[Any, ...]
    wanted: tuple[bool, ...] = ()
    eqn: Any = None
    block: Code | None = None


class Plan(NamedTuple):
    """The steps to run, and which inputs they use."""

    steps: tuple[Step, ...]
    inputs: tuple[bool, ...]


_plans: weakref.WeakKeyDictionary[Any, dict[tuple[bool, ...], Plan]] = weakref.WeakKeyDictionary()


def plan(jaxpr: Any, wanted: Sequence[bool]) -> Plan:
    """Plan the evaluation of an open jaxpr of which only some outputs are wanted."""
    wanted = tuple(wanted)
    known = _plans.setdefault(jaxpr, {})
    if wanted not in known:
        known[wanted] = _made(jaxpr, wanted)
    return known[wanted]


def _made(jaxpr: Any, wanted: tuple[bool, ...]) -> Plan:
    outs = [v for v, w in zip(jaxpr.outvars, wanted, strict=True) if w]
    live = set(_jax.variables(outs))
    steps: list[Step] = []
    block: list[Any] = []
    after = set(live)

    def close() -> None:
        """Make a step of the equations gathered since the last site."""
        if not block:
            return
        made = [v for eqn in block for v in eqn.outvars]
        used = dict.fromkeys(v for eqn in block for v in _jax.variables(eqn.invars))
        ins = tuple(v for v in used if v not in set(made))
        outs = tuple(v for v in made if v in after)
        code = Code(block[::-1], ins, outs)
        dead = tuple(v for v in ins if v not in after)
        steps.append(Step(ins, outs, dead, block=code))
        block.clear()

    for eqn in reversed(jaxpr.eqns):
        used = tuple(v in live for v in eqn.outvars)
        if not _jax.contains_effect(eqn):
            if any(used):
                block.append(eqn)
                live -= set(eqn.outvars)
                live |= set(_jax.variables(eqn.invars))
            continue
        close()
        ins = _used_inputs(eqn, used)
        dead = tuple(v for v in {*ins, *eqn.outvars} if v not in live)
        steps.append(Step(tuple(eqn.invars), tuple(eqn.outvars), dead, used, eqn))
        live -= set(eqn.outvars)
        live |= set(ins)
        after = set(live)
    close()
    inputs = tuple(v in live for v in (*jaxpr.constvars, *jaxpr.invars))
    return Plan(tuple(reversed(steps)), inputs)


def _used_inputs(eqn: Any, wanted: tuple[bool, ...]) -> list[Any]:
    """Leave out what a loop carries along for nobody."""
    if eqn.primitive.name != "scan":
        return _jax.variables(eqn.invars)
    inputs, _ = scan_inputs(eqn, wanted)
    return _jax.variables([v for v, w in zip(eqn.invars, inputs, strict=True) if w])


def scan_inputs(eqn: Any, wanted: tuple[bool, ...]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Tell which operands of a scan are used, and which outputs of its body are wanted.

    What is carried counts if it is wanted after the loop or by anything else in the body.
    """
    num_consts, num_carry = _jax.scan_sizes(eqn)
    jaxpr, _ = _jax.open_jaxpr(eqn.params["jaxpr"])
    carry, ys = list(wanted[:num_carry]), wanted[num_carry:]
    while True:
        inside = (*carry, *ys)
        used = plan(jaxpr, inside).inputs[len(jaxpr.constvars) :]
        wider = [
            a or b for a, b in zip(carry, used[num_consts : num_consts + num_carry], strict=True)
        ]
        if wider == carry:
            return (*used[:num_consts], *carry, *used[num_consts + num_carry :]), inside
        carry = wider
