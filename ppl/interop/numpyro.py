"""`from_numpyro`: an unmodified NumPyro model as a model of this language."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution
from numpyro.primitives import Messenger

from ppl.context import Plate, context, current_context
from ppl.distributions import Subsample, is_discrete
from ppl.errors import UnsupportedError, message
from ppl.model import Model
from ppl.statements import deterministic, emit, factor, sample


def from_numpyro(model: Callable[..., Any]) -> Model:
    """Make a NumPyro model function a `Model`.

    **Meaning.** The same joint density as `numpyro.infer.util.log_density`, where NumPyro's model
    is a measure. Plates (with subsampling), factors, deterministic sites, masks on observations,
    scales, handlers applied to the model, and `numpyro.contrib.control_flow` are understood.
    NumPyro broadcasts observations against their distribution; so does this bridge, explicitly.

    Args:
        model: a function that calls `numpyro.sample` and its kin.

    Raises:
        UnsupportedError: (when called) the model uses `numpyro.param`, `numpyro.module` or another
            statement that has no meaning as a measure.
    """

    @functools.wraps(model)
    def staged(*args: Any, **kwargs: Any) -> Any:
        with _Staging():
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
        elif kind in ("subsample", "info"):
            return
        else:
            raise UnsupportedError(
                message(
                    f'from_numpyro met the statement {kind} at "{msg.get("name", "")}"',
                    needs="sample, factor, deterministic, plate, scan and cond",
                    why=f"a {kind} statement has no meaning as part of a measure",
                    fix="pass the value as an argument of the model",
                )
            )


def _sample(msg: Any) -> Any:
    name, d = msg["name"], msg["fn"]
    if not isinstance(d, Distribution):
        raise UnsupportedError(
            message(
                f'from_numpyro met {type(d).__name__} at "{name}"',
                needs="a numpyro.distributions object",
                fix="write the site with a distribution",
            )
        )
    shape = msg["kwargs"].get("sample_shape", ())
    d = d.expand((*shape, *d.batch_shape)) if shape else d
    plates = tuple(Plate(f.name, f.size, f.dim) for f in msg["cond_indep_stack"])
    here = dataclasses.replace(current_context(), plates=plates, scale=1.0)
    scale = msg["scale"]
    if type(d).__name__ == "Unit" or type(getattr(d, "base_dist", None)).__name__ == "Unit":
        weight = d.log_prob(msg["value"])
        with context(dataclasses.replace(here, plates=())):
            factor(name, weight if scale is None else scale * weight)
        return msg["value"]
    value = msg["value"] if msg["is_observed"] else None
    if value is not None:
        value = jnp.asarray(value)
        batch = value.shape[: value.ndim - d.event_dim]
        d = d.expand(jnp.broadcast_shapes(batch, d.batch_shape))
        value = jnp.broadcast_to(value, d.shape())
        if not is_discrete(d):
            value = value.astype(jnp.result_type(value, float))
    return emit(name, d, value, here, scale=scale)


def _control_flow(msg: Any) -> Any:
    from numpyro.contrib.control_flow.scan import PytreeTrace

    if msg["fn"].__name__ == "cond_wrapper":
        pred, true_fun, false_fun, operand = msg["args"]
        return jax.lax.cond(pred, true_fun, false_fun, operand), PytreeTrace({})
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
    carry, ys = jax.lax.scan(f, init, xs, length=length, reverse=reverse)
    return (length, None, carry), (PytreeTrace({}), ys)
