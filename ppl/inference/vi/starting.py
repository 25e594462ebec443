"""Where a fit starts: its parameters, and what is to blame if no estimate there is finite."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ppl._types import PyTree
from ppl.errors import ArgumentError, InitializationError, ResultError, at, message
from ppl.inference.vi.fitted import part
from ppl.semantics.density import joint
from ppl.semantics.weighted import sample_traces


def trainable(params: PyTree) -> tuple[PyTree, PyTree]:
    """Take parameters apart into floating arrays, and what is not changed.

    Args:
        params: a pytree; numbers in an Equinox module are its settings.

    Raises:
        ArgumentError: an array is not floating, or there is none.
    """

    def is_module(x: Any) -> bool:
        return isinstance(x, eqx.Module)

    def of_module(path: Any, x: Any) -> Any:  # of which numbers are settings
        return _parameter(path, x) if eqx.is_array(x) else x

    def leaf(path: Any, x: Any) -> Any:
        if is_module(x):
            inner = lambda p, y: of_module((*path, *p), y)  # noqa: E731
            return jax.tree_util.tree_map_with_path(inner, x)
        return _parameter(path, x) if eqx.is_array_like(x) else x

    params = jax.tree_util.tree_map_with_path(leaf, params, is_leaf=is_module)
    arrays, rest = eqx.partition(params, eqx.is_inexact_array)
    if not jax.tree.leaves(arrays):
        raise ArgumentError(
            message(
                f"fit got params={params!r}",
                needs="a pytree with at least one floating array",
                why="the objective proposes no parameters to start from",
                fix="ppl.vi.fit(objective, params, ...)",
            )
        )
    return arrays, rest


def _parameter(path: Any, x: Any) -> Any:
    found = jnp.asarray(x)
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ArgumentError(
            message(
                f"fit got params{jax.tree_util.keystr(path)} of dtype {found.dtype}",
                needs="floating arrays",
                why="other numbers have no small changes",
                fix="jnp.asarray(x, float), or close over what is no parameter",
            )
        )
    return jax.lax.convert_element_type(found, np.dtype(found.dtype))  # not weakly typed


def refuse_start(setting: Any, steps: int, value: Any, gradient: PyTree) -> None:
    """Raise because no estimate was finite, and say what is to blame.

    Args:
        setting: the arguments of the fit.
        steps: how many were made.
        value: an estimate.
        gradient: in the parameters.
    """
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    bad = [f"params{jax.tree_util.keystr(p)}" for p, g in leaves if not np.all(np.isfinite(g))]
    found = f"the gradient in {', '.join(bad[:4])} is not finite"
    if not np.isfinite(value):
        found = f"one is {float(value)}{_blamed(setting)}"
    raise InitializationError(
        message(
            f"fit made {steps} steps, none with a finite estimate and gradient: {found}",
            needs="parameters to start from where both are finite",
            why="a step that is not finite changes nothing",
            fix="ppl.vi.fit(objective, params) with other params, such as a guide near plausible "
            "values and of small scale, or mend the model",
        )
    )


def _blamed(setting: Any) -> str:
    """Name the site whose density is not finite at a draw of the guide, if the guide is known."""
    params = eqx.combine(setting.params, setting.rest)
    try:
        guide, program = (part(setting.objective, n, params) for n in ("guide", "program"))
    except ResultError:
        return ""
    made = sample_traces(guide, 0, 1).choices
    draw = {a: made[a][0] for a in program.latents if a in made}
    if len(draw) < len(program.latents):
        return ""
    records = joint(program, draw).sites
    for site in program.sites:
        record = records.get(site.address)
        if record is not None and not np.all(np.isfinite(record.value.log_density)):
            density = float(np.sum(record.value.log_density))
            return (
                f"; {site.kind} site {at(site.address, site.source)} has log density {density} "
                "at a draw of the guide"
            )
    return ""
