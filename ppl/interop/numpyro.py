"""`from_numpyro`: an unmodified NumPyro model as a model of this language."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.primitives import _PYRO_STACK, Messenger

from ppl.context import Plate, context, current_context
from ppl.distributions import Subsample, describe, is_discrete
from ppl.errors import ModelError, ObservationError, UnsupportedError, message
from ppl.model import Model
from ppl.statements import deterministic, emit, factor, sample


def from_numpyro(model: Callable[..., Any]) -> Model:
    """Make a NumPyro model function a `Model`.

    **Meaning.** The same joint density as `numpyro.infer.util.log_density`, where NumPyro's model
    is a measure. Plates, factors, deterministic sites, masks on observations, scales, handlers
    applied to the model, and `numpyro.contrib.control_flow` are understood. NumPyro broadcasts
    observations against their distribution; so does this bridge, explicitly. A drawn subsample of a
    plate is a latent site of its own here, with its uniform density; NumPyro counts none for it.

    Array arguments are data of the program. A model that looks at their values while it is traced
    (`numpy.unique(group)`) needs them fixed: `from_numpyro(functools.partial(model, group))`.

    Args:
        model: a function that calls `numpyro.sample` and its kin.

    Raises:
        ModelError: `model` is not callable, or is used inside a `ppl.plate`.
        UnsupportedError: (when called) the model uses `numpyro.param`, `numpyro.module` or another
            statement that has no meaning as a measure.
    """
    if not callable(model):
        raise ModelError(
            message(
                f"from_numpyro got {type(model).__name__}",
                needs="a NumPyro model function",
                fix="ppl.from_numpyro(model)",
            )
        )

    @functools.wraps(model)
    def staged(*args: Any, **kwargs: Any) -> Any:
        if current_context().plates:
            raise ModelError(
                message(
                    "from_numpyro's model was called inside "
                    f'ppl.plate("{current_context().plates[-1].name}")',
                    needs="a call outside of plates",
                    why="NumPyro's model expands its sites to NumPyro's plates only",
                    fix="put a numpyro.plate inside the model",
                )
            )
        with _Staging(), context(dataclasses.replace(current_context(), bridged=True)):
            return model(*args, **kwargs)

    return Model(staged)


class _Staging(Messenger):
    """Turn NumPyro's messages into statements of the language."""

    def __init__(self) -> None:
        super().__init__(None)

    def process_message(self, msg: Any) -> None:
        kind = msg["type"]
        if kind == "sample":
            msg["value"] = _sample(msg)
        elif kind == "deterministic":
            msg["value"] = deterministic(msg["name"], msg["value"])
        elif kind == "plate":
            size, subsample_size = msg["args"]
            if msg["value"] is None:
                msg["value"] = sample(msg["name"], Subsample(size, subsample_size))
        elif kind == "control_flow":
            msg["value"] = _control_flow(msg)
        elif kind == "prng_key" and any(isinstance(h, handlers.uncondition) for h in _PYRO_STACK):
            msg["value"] = jax.random.key(0)  # asked for, and not used: the bridge gives the value
        elif kind == "param" and msg["value"] is not None:
            pass  # fixed by a handler
        elif kind not in ("subsample", "info", "inspect"):
            raise UnsupportedError(
                message(
                    f'from_numpyro met the statement {kind} at "{msg.get("name") or ""}"',
                    needs="sample, factor, deterministic, plate, scan and cond",
                    why=_WHY.get(kind, f"a {kind} statement has no meaning as part of a measure"),
                    fix="pass the value as an argument of the model",
                )
            )
        msg["stop"] = True  # a bridge around this one has nothing left to do


_WHY = {
    "prng_key": "something asked for a random key: numpyro.prng_key(), or handlers.block, which "
    "hides a site from the bridge",
}


def _sample(msg: Any) -> Any:
    name, d = msg["name"], msg["fn"]
    shape = msg["kwargs"].get("sample_shape", ())
    d = d.expand((*shape, *d.batch_shape)) if shape else d
    plates = tuple(Plate(f.name, f.size, f.dim) for f in msg["cond_indep_stack"])
    here = dataclasses.replace(current_context(), plates=plates, scale=1.0)
    scale, value = msg["scale"], msg["value"]
    if type(d).__name__ == "Unit" or type(getattr(d, "base_dist", None)).__name__ == "Unit":
        weight = d.log_prob(value)
        with context(dataclasses.replace(here, plates=())):
            factor(name, weight if scale is None else scale * weight)
        return value
    if value is None:
        return emit(name, d, None, here, scale=scale)
    value = jnp.asarray(value)
    try:
        batch = jnp.broadcast_shapes(value.shape[: value.ndim - d.event_dim], d.batch_shape)
        d = d.expand(batch)
        value = jnp.broadcast_to(value, d.shape())
    except ValueError:
        raise ObservationError(
            message(
                f'numpyro.sample got an observation of shape {value.shape} at "{name}"',
                needs=f"a shape that broadcasts with {d.shape()}, that of {describe(d)} there",
                fix="check the data against the plates around the statement",
            )
        ) from None
    if not is_discrete(d):
        value = value.astype(jnp.result_type(value, float))
    return emit(name, d, value, here, scale=scale)


# --- Control flow -------------------------------------------------------------------------------


@contextlib.contextmanager
def _without_values() -> Iterator[None]:
    """Take the handlers off the stack that would give every iteration the values of all."""
    kept = list(_PYRO_STACK)
    fixing = (handlers.condition, handlers.substitute, handlers.replay)
    _PYRO_STACK[:] = [h for h in kept if not isinstance(h, fixing)]
    try:
        yield
    finally:
        _PYRO_STACK[:] = kept


def _fixed(f: Callable[..., Any], stack: Any, *where: Any) -> Callable[..., Any]:
    """Apply what condition and substitute around the loop ask for, at one iteration."""
    from numpyro.contrib.control_flow.cond import _subs_wrapper as in_cond
    from numpyro.contrib.control_flow.scan import _subs_wrapper as in_scan

    for kind, values in stack:
        pick = functools.partial(in_scan if where else in_cond, values, *where)
        if kind == "condition":
            f = handlers.condition(f, condition_fn=pick)
        elif kind == "substitute":
            f = handlers.substitute(f, substitute_fn=pick)
        else:
            raise UnsupportedError(
                message(
                    f"from_numpyro met handlers.{kind} around a loop",
                    needs="handlers.condition or handlers.substitute there",
                    fix="ppl.replay on the program",
                )
            )
    return f


def _control_flow(msg: Any) -> Any:
    from numpyro.contrib.control_flow.scan import PytreeTrace

    stack = msg["kwargs"].get("substitute_stack") or []
    if msg["fn"].__name__ == "cond_wrapper":
        pred, true_fun, false_fun, operand = msg["args"]
        branches = [_fixed(f, stack) for f in (true_fun, false_fun)]
        with _without_values():
            return jax.lax.cond(pred, *branches, operand), PytreeTrace({})
    f, init, xs, length, reverse = msg["args"]
    if msg["kwargs"].get("history", 1) != 1:
        raise UnsupportedError(
            message(
                f"from_numpyro met a scan with history={msg['kwargs']['history']}",
                needs="history=1",
                why="longer histories serve NumPyro's enumeration only",
                fix="carry the history in the scan's state",
            )
        )
    count = length if length is not None else jnp.shape(jax.tree.leaves(xs)[0])[0]

    def body(state: Any, x: Any) -> Any:
        i, carry = state
        carry, y = _fixed(f, stack, i, count)(carry, x)
        return (i + 1, carry), y

    with _without_values():
        (_, carry), ys = jax.lax.scan(
            body, (jnp.asarray(0), init), xs, length=length, reverse=reverse
        )
    return (length, None, carry), (PytreeTrace({}), ys)
