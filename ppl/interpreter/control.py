"""What JAX's control flow means, given what `sample` and `score` mean."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ppl import _jax
from ppl.errors import UnsupportedError, at, message
from ppl.interpreter import fission
from ppl.interpreter.base import (
    RULES,
    Frame,
    Interpreter,
    Outcome,
    Record,
    Ring,
    evaluate,
    run_region,
    same_shape,
)
from ppl.interpreter.placed import placed_sites


def _inline_rule(interpreter: Interpreter, frame: Frame, eqn: Any, values: Any) -> list[Any]:
    """`jit` and its like: the same region."""
    jaxpr, consts = _jax.open_jaxpr(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")))
    return run_region(interpreter, frame, jaxpr, consts, values)


def child(interpreter: Interpreter, jaxpr: Any) -> Callable[..., Outcome]:
    """Give the region below an equation as a function of key, given values and arguments."""
    jaxpr, consts = _jax.open_jaxpr(jaxpr)

    def region(key: Any, given: Mapping[str, Any], args: Sequence[Any]) -> Outcome:
        return evaluate(interpreter, jaxpr, consts, args, key=key, given=given)

    return region


def below(frame: Frame, *jaxprs: Any) -> dict[str, Any]:
    """Pick the given values that concern sites of the jaxprs."""
    addresses = {p.site.address for jaxpr in jaxprs for p in placed_sites(jaxpr)}
    return {a: v for a, v in frame.given.items() if a in addresses}


def absorb(frame: Frame, weight: Any, records: Mapping[str, Record]) -> None:
    """Take the weight and records of a region into the frame around it."""
    frame.add(weight)
    for address, record in records.items():
        frame.keep(address, record)


def _remat_rule(interpreter: Interpreter, frame: Frame, eqn: Any, values: Any) -> list[Any]:
    region = jax.checkpoint(
        child(interpreter, eqn.params["jaxpr"]),
        prevent_cse=eqn.params["prevent_cse"],
        policy=eqn.params["policy"],
    )
    outs, weight, records = region(frame.key, below(frame, eqn.params["jaxpr"]), values)
    absorb(frame, weight, records)
    return outs


def _scan_rule(interpreter: Interpreter, frame: Frame, eqn: Any, values: Any) -> list[Any]:
    params = eqn.params
    num_consts, num_carry = _jax.scan_sizes(eqn)
    consts, init, xs = (
        values[:num_consts],
        values[num_consts : num_consts + num_carry],
        values[num_consts + num_carry :],
    )
    # The scan's own axis of an address stands behind the `vmap` axes that enclose the scan.
    axes = {p.site.address: p.axis(len(p.scans) + 1) for p in placed_sites(params["jaxpr"])}
    given = {
        a: jax.tree.map(lambda x, a=a: jnp.moveaxis(x, axes[a], 0), v)
        for a, v in below(frame, params["jaxpr"]).items()
    }
    key, region = frame.loop_key(), child(interpreter, params["jaxpr"])
    if key is not None:  # the keys of all iterations, at once
        steps = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(params["length"]))
        key = jax.vmap(lambda k: Ring.of(k, _jax.open_jaxpr(params["jaxpr"])[0]))(steps)

    def body(state: Any, x: Any) -> Any:
        (carry, weight), (key, given, x) = state, x
        outs, more, records = region(key, given, [*consts, *carry, *x])
        weight = jax.tree.map(jnp.add, weight, more)
        return (outs[:num_carry], weight), (outs[num_carry:], records)

    def alone(carry: Any, x: Any) -> Any:
        given, x = x
        outs, weight, records = region(None, given, [*consts, *carry, *x])
        return outs[:num_carry], (weight, outs[num_carry:], records)

    how = {name: params[name] for name in ("length", "reverse", "unroll")}
    done = fission.scan(alone, init, (given, xs), **how) if interpreter.settled else None
    if done is not None:
        carry, (weights, ys, records) = done
        weight = jax.tree.map(lambda w: jnp.sum(w, axis=0), weights)
    else:
        (carry, weight), (ys, records) = jax.lax.scan(
            body, (init, interpreter.zero()), (key, given, xs), **how
        )
    moved = {
        a: jax.tree.map(lambda x, a=a: jnp.moveaxis(x, 0, axes[a]), r) for a, r in records.items()
    }
    absorb(frame, weight, moved)
    return [*carry, *ys]


def _cond_rule(interpreter: Interpreter, frame: Frame, eqn: Any, values: Any) -> list[Any]:
    index, *args = values
    branches = eqn.params["branches"]
    key, given = frame.key, below(frame, *branches)
    regions = [functools.partial(child(interpreter, b), key, given) for b in branches]
    # Records of the branches not taken are absent zeros of the right shape.
    shapes = [jax.eval_shape(lambda args, r=r: r(args).records, args) for r in regions]
    like: dict[str, Any] = {}
    for records in shapes:
        for address, record in records.items():
            same_shape(address, like.setdefault(address, record.value), record.value)
    prefix = {p.site.address: p.prefix for branch in branches for p in placed_sites(branch)}

    def branch(region: Callable[..., Outcome], args: Sequence[Any]) -> Any:
        outs, weight, records = region(args)
        full = {}
        for address, shape in like.items():
            value, present = records.get(address, (None, None))
            if address not in records:
                value = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)
            if present is None:
                present = jnp.full(prefix[address], address in records)
            full[address] = Record(value, present)
        return outs, weight, full

    outs, weight, records = jax.lax.switch(
        index, [functools.partial(branch, r) for r in regions], args
    )
    absorb(frame, weight, records)
    return outs


def _while_rule(interpreter: Interpreter, frame: Frame, eqn: Any, values: Any) -> list[Any]:
    params = eqn.params
    num_cond, num_body = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts = values[:num_cond], values[num_cond : num_cond + num_body]
    init = values[num_cond + num_body :]
    latent = [p.site for b in ("cond_jaxpr", "body_jaxpr") for p in placed_sites(params[b])]
    latent = [s for s in latent if s.kind == "latent"]
    if latent and not interpreter.unbounded:
        site = latent[0]
        raise UnsupportedError(
            message(
                f"{interpreter.name} met the latent site {at(site.address, site.source)} inside "
                "a while_loop",
                needs="a number of sites that is known before the program runs",
                why="an unbounded loop has no array of choices of fixed shape",
                fix="use jax.lax.scan or a fori_loop with constant bounds, and mask the steps "
                "not wanted; ppl.run and ppl.weighted accept the loop as it is",
            )
        )
    test, step = (
        child(interpreter, params["cond_jaxpr"]),
        child(interpreter, params["body_jaxpr"]),
    )
    # What is given for a site in a loop without bounds holds at every iteration.
    given = below(frame, params["cond_jaxpr"], params["body_jaxpr"])
    key = frame.loop_key()

    def at_step(i: Any) -> Any:
        return None if key is None else jax.random.fold_in(key, i)

    def advance(i: Any, carry: Any) -> Any:
        carry, weight, _ = step(at_step(i), given, [*body_consts, *carry])
        return carry, weight

    def go_on(i: Any, carry: Any) -> Any:
        (go,), weight, _ = test(at_step(i), given, [*cond_consts, *carry])
        return go, weight

    def body(state: Any) -> Any:
        i, go, carry, weight = state
        if testing:  # the test draws or scores: it stands in the body, and happens once a round
            go, more = go_on(i, carry)
            weight = jax.tree.map(jnp.add, weight, more)
            idle = interpreter.zero()
            carry, more = jax.lax.cond(go, lambda c: advance(i, c), lambda c: (c, idle), carry)
        else:
            carry, more = advance(i, carry)
        return i + 1, go, carry, jax.tree.map(jnp.add, weight, more)

    testing = _jax.has_effect(params["cond_jaxpr"])
    start = (jnp.zeros((), jnp.int32), jnp.ones((), bool), init, interpreter.zero())
    _, _, carry, weight = jax.lax.while_loop(
        lambda s: s[1] if testing else go_on(s[0], s[2])[0], body, start
    )
    frame.add(weight)
    return carry


RULES.update(
    {
        "jit": _inline_rule,
        "pjit": _inline_rule,
        "closed_call": _inline_rule,
        "core_call": _inline_rule,
        "remat2": _remat_rule,
        "checkpoint": _remat_rule,
        "scan": _scan_rule,
        "cond": _cond_rule,
        "while": _while_rule,
    }
)
