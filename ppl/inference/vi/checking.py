"""What `expectation` refuses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ppl.errors import ArgumentError, OpenObservationsError, UnsupportedError, at, message
from ppl.inference.vi.estimators import Reinforce
from ppl.program import Program


def check(program: Program, num_samples: int) -> None:
    """Refuse a program whose expectation cannot be differentiated.

    Args:
        program: what `expectation` was given.
        num_samples: likewise.
    """
    for site in program.structure.open_scores:
        raise OpenObservationsError(
            message(
                f"expectation got the program {program.name}, which scores at "
                f"{at(site.address, site.source)}",
                needs="a program without observations or factors",
                why="its runs are weighted, and the mean of the value alone is not its expectation",
                fix="ppl.vi.expectation(ppl.vi.elbo(program, guide)), or another objective of it",
            )
        )
    shapes = jax.tree.leaves(program.structure.shapes)
    if len(shapes) != 1 or shapes[0].shape != () or not _is_real(shapes[0].dtype):
        shown = [f"{x.dtype}{list(x.shape)}" for x in shapes]
        raise ArgumentError(
            message(
                f"expectation got the program {program.name} with the value {', '.join(shown)}",
                needs="one real number",
                why="derivatives are those of a scalar expectation",
                fix="return the cost from the model, for example jnp.sum(costs)",
            )
        )
    for site in program.sites:
        if site.kind != "latent":
            continue
        if site.placed.whiles:
            raise UnsupportedError(
                message(
                    f"expectation met the latent site {at(site.address, site.source)} inside a "
                    "while_loop",
                    needs="a number of sites that is known before the program runs",
                    why="JAX has no reverse derivative of a loop without bounds",
                    fix="use jax.lax.scan or a fori_loop with constant bounds",
                )
            )
        tree = site.placed.site.tree
        chosen = site.placed.site.operands([0] * tree.num_leaves).grad
        if isinstance(chosen, Reinforce) and chosen.leave_one_out and num_samples < 2:
            raise ArgumentError(
                message(
                    f"expectation got num_samples={num_samples} with a leave-one-out baseline at "
                    f"{at(site.address, site.source)}",
                    needs="two samples or more",
                    why="the baseline of each is the mean of the others",
                    fix="ppl.vi.expectation(program, num_samples=2)",
                )
            )


def _is_real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
