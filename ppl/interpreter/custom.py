"""`custom_jvp` and `custom_vjp` functions with sites inside.

The user's rule says how the outputs depend on the arguments; it knows nothing of what an
interpreter adds. So the derivative of the outputs is the user's with respect to the arguments plus
the true one with respect to given values, and weights and records are differentiated as they are.
"""

from __future__ import annotations

from typing import Any

import jax

from ppl import _jax
from ppl.context import context
from ppl.errors import UnsupportedError, at, message
from ppl.interpreter.base import RULES, Frame, Interpreter, Outcome, evaluate
from ppl.interpreter.control import absorb, below, child
from ppl.interpreter.placed import placed_sites


def _custom_jvp_rule(interpreter: Interpreter, frame: Frame, eqn: Any, values: Any) -> list[Any]:
    call, key = eqn.params["call_jaxpr"], frame.key

    # What the rules need is an argument: they are traced later, when closures may have gone stale.
    @jax.custom_jvp
    def apply(arrays: Any, given: Any, args: Any) -> Outcome:
        return child(interpreter.with_arrays(arrays), call)(key, given, args)

    @apply.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        arrays, given, args = primals
        _refuse(interpreter, key, call, given)
        held = interpreter.with_arrays(arrays)
        with _where(call):
            num_consts, jaxpr, (consts, zeros) = _jax.custom_jvp_rule(eqn)
        flat = [*args[num_consts:], *tangents[2][num_consts:]]
        ruled = evaluate(held, jaxpr, consts, flat, given=given).outs
        dots = _jax.rule_tangents(ruled, zeros)
        if interpreter.rebinds:  # the rule's own call of the function stages its sites, once
            return Outcome(ruled[: len(zeros)], None, {}), Outcome(dots, None, {})
        out = apply(*primals)
        region = child(held, call)
        _, out_dot = jax.jvp(lambda g, a: region(key, g, a), (given, args), tangents[1:])
        _, also = jax.jvp(lambda g: region(key, g, args).outs, (given,), (tangents[1],))
        dots = [_jax.add_tangents(a, b) for a, b in zip(dots, also, strict=True)]
        return out, out_dot._replace(outs=dots)

    outs, weight, records = apply(interpreter.arrays(), below(frame, call), values)
    absorb(frame, weight, records)
    return outs


def _custom_vjp_rule(interpreter: Interpreter, frame: Frame, eqn: Any, values: Any) -> list[Any]:
    call, key = eqn.params["call_jaxpr"], frame.key

    @jax.custom_vjp
    def apply(arrays: Any, given: Any, args: Any) -> Outcome:
        return child(interpreter.with_arrays(arrays), call)(key, given, args)

    def forward(arrays: Any, given: Any, args: Any) -> Any:
        _refuse(interpreter, key, call, given)
        held = interpreter.with_arrays(arrays)
        with _where(call):
            num_consts, jaxpr, consts, residuals, _ = _jax.custom_vjp_rules(eqn)
        ran = evaluate(held, jaxpr, consts, args[num_consts:], given=given).outs
        outs = ran[len(ran) - len(eqn.outvars) :]
        saved = residuals(ran, args)
        if interpreter.rebinds:
            return Outcome(outs, None, {}), (None, saved, arrays, given, args)
        region = child(held, call)
        out, pull = jax.vjp(lambda g, a: region(key, g, a), given, args)
        return out._replace(outs=outs), (pull, saved, arrays, given, args)

    def backward(kept: Any, bar: Outcome) -> Any:
        pull, saved, arrays, given, args = kept
        with _where(call):
            num_consts, *_, rule = _jax.custom_vjp_rules(eqn)
        user = [None] * num_consts + rule(saved, bar.outs)
        nothing = jax.tree.map(_jax.zero_tangent, (arrays, given, args))
        if pull is None:
            given_bar, args_bar = nothing[1:]
        else:
            given_bar, _ = pull(bar)
            _, args_bar = pull(bar._replace(outs=[_jax.zero_tangent(x) for x in bar.outs]))
        total = [
            a if u is None else _jax.add_tangents(a, u) for a, u in zip(args_bar, user, strict=True)
        ]
        return nothing[0], given_bar, total

    apply.defvjp(forward, backward)
    outs, weight, records = apply(interpreter.arrays(), below(frame, call), values)
    absorb(frame, weight, records)
    return outs


RULES.update({"custom_jvp_call": _custom_jvp_rule, "custom_vjp_call": _custom_vjp_rule})


def _where(jaxpr: Any) -> Any:
    """Give the context in which a custom derivative was called: its rule is traced when needed.

    It is that of the outermost statement inside; a rule that cannot be placed so (every statement
    sits in a plate or scope of the function's own) fails on its addresses.
    """
    contexts = [p.site.context for p in placed_sites(jaxpr)]
    return context(min(contexts, key=lambda c: (len(c.plates), len(c.prefix))))


def _refuse(interpreter: Interpreter, key: Any, jaxpr: Any, given: Any) -> None:
    """Refuse a derivative that could only be guessed."""
    placed = placed_sites(jaxpr)
    latent = [p.site for p in placed if p.site.kind == "latent"]
    site = latent[0] if latent else placed[0].site
    why = ""
    if key is not None and latent:
        why = "the derivative rule would draw other values than the function did"
    elif interpreter.rebinds and (interpreter.weighs or (given and interpreter.fixes)):
        why = f"{interpreter.name} rewrites the function's sites, and its rule does not know of it"
    if why:
        raise UnsupportedError(
            message(
                f"{interpreter.name} was differentiated through {at(site.address, site.source)} "
                "inside a custom derivative",
                needs="the site outside of the custom_jvp or custom_vjp function, or given values",
                why=why,
                fix="move the statement out of the function, or differentiate ppl.log_density",
            )
        )
