"""`custom_jvp` and `custom_vjp` functions with sites inside."""

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
    """Keep the user's rule for the outputs; weights and records are differentiated as they are."""
    call, key = eqn.params["call_jaxpr"], frame.key
    region = child(interpreter, call)

    @jax.custom_jvp
    def apply(given: Any, args: Any) -> Outcome:
        return region(key, given, args)

    @apply.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        _refuse_redraw(interpreter, key, call)
        out, out_dot = jax.jvp(lambda g, a: region(key, g, a), primals, tangents)
        with _where(call):
            num_consts, jaxpr, (consts, zeros) = _jax.custom_jvp_rule(eqn)
        args = [*primals[1][num_consts:], *tangents[1][num_consts:]]
        ruled = evaluate(interpreter, jaxpr, consts, args, given=primals[0]).outs
        return out, out_dot._replace(outs=_jax.rule_tangents(ruled, zeros))

    outs, weight, records = apply(below(frame, call), values)
    absorb(frame, weight, records)
    return outs


def _custom_vjp_rule(interpreter: Interpreter, frame: Frame, eqn: Any, values: Any) -> list[Any]:
    """Keep the user's rule for the outputs; weights and records are differentiated as they are."""
    call, key = eqn.params["call_jaxpr"], frame.key
    region = child(interpreter, call)

    @jax.custom_vjp
    def apply(given: Any, args: Any) -> Outcome:
        return region(key, given, args)

    def forward(given: Any, args: Any) -> Any:
        _refuse_redraw(interpreter, key, call)
        out, pull = jax.vjp(lambda g, a: region(key, g, a), given, args)
        with _where(call):
            num_consts, jaxpr, consts, residuals, _ = _jax.custom_vjp_rules(eqn)
        ran = evaluate(interpreter, jaxpr, consts, args[num_consts:], given=given).outs
        return out, (pull, residuals(ran, args))

    def backward(saved: Any, bar: Outcome) -> Any:
        pull, residuals = saved
        with _where(call):
            num_consts, *_, rule = _jax.custom_vjp_rules(eqn)
        given_bar, args_bar = pull(bar._replace(outs=[_jax.zero_tangent(x) for x in bar.outs]))
        user = [None] * num_consts + rule(residuals, bar.outs)
        return given_bar, [
            a if u is None or a.dtype == jax.dtypes.float0 else a + u
            for a, u in zip(args_bar, user, strict=True)
        ]

    apply.defvjp(forward, backward)
    outs, weight, records = apply(below(frame, call), values)
    absorb(frame, weight, records)
    return outs


def _where(jaxpr: Any) -> Any:
    """The context in which a custom derivative was called: its rule is traced only when needed.

    It is that of the outermost statement inside; a rule that cannot be placed so (every statement
    sits in a plate or scope of the function's own) fails on its addresses.
    """
    contexts = [p.site.context for p in placed_sites(jaxpr)]
    return context(min(contexts, key=lambda c: (len(c.plates), len(c.prefix))))


def _refuse_redraw(interpreter: Interpreter, key: Any, jaxpr: Any) -> None:
    latent = [p.site for p in placed_sites(jaxpr) if p.site.kind == "latent"]
    if key is not None and latent:
        raise UnsupportedError(
            message(
                f"{interpreter.name} was differentiated through the draw at "
                f"{at(latent[0].address, latent[0].source)} inside a custom derivative",
                needs="the draws to be given, not made anew",
                why="the derivative rule would draw other values than the function did",
                fix=f'move the sample statement of "{latent[0].address}" out of the custom_jvp '
                "or custom_vjp function",
            )
        )


RULES.update({"custom_jvp_call": _custom_jvp_rule, "custom_vjp_call": _custom_vjp_rule})
