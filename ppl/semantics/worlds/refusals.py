"""What an exact enumeration says of a site whose measure it cannot give."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl.distributions import describe
from ppl.errors import DistributionError, UnsupportedError, at, message
from ppl.primitives import Site

# Masses of all values must add up to one within this: else a value is missing.
_SLACK = 1e-3


# --- Refusals -----------------------------------------------------------------------------------


def refuse_incomplete(site: Site, d: Any, plain: np.ndarray, there: np.ndarray | None) -> None:
    """Raise unless the listed values carry all the mass of the distribution."""
    mass = np.sum(np.exp(plain), axis=1)
    here = np.abs(mass - 1) > _SLACK
    if there is not None:
        here, mass = np.broadcast_arrays(here & there[:, 0], mass)
    if np.any(here):
        raise DistributionError(
            message(
                f"enumerate got {describe(d)} at {at(site.address, site.source)} whose values have "
                f"total probability {float(mass[here].flat[0]):.6g}",
                needs="probabilities that sum to one",
                why="the measure would not be that of the program",
                fix="normalise the parameters, for example probs / probs.sum(-1, keepdims=True)",
            )
        )


def refuse_nan(site: Site, leaves: Sequence[np.ndarray], bad: np.ndarray) -> None:
    """Raise for a log weight that is NaN or +inf; `bad` tells in which worlds."""
    operands = dataclasses.replace(site, batch=()).operands(leaves)
    d = operands.distribution
    world = int(np.nonzero(bad)[0][0])
    rows = [np.asarray(x[world if len(x) > 1 else 0]) for x in leaves[:4]]
    shown = [np.array2string(x, threshold=6, precision=4) for x in rows]
    what = "a factor" if d is None else describe(d)
    raise DistributionError(
        message(
            f"enumerate got {what} at {at(site.address, site.source)} whose log weight is NaN or "
            f"+inf; operands in such a world: {'; '.join(shown)}",
            needs="parameters inside their domain in every world of positive mass",
            why="no measure has such a mass",
            fix="guard the parameters with jnp.where, or rule the world out with a factor of -inf",
        )
    )


def refuse_many(site: Site, count: int, most: int) -> None:
    """Raise for more worlds than were allowed."""
    raise UnsupportedError(
        message(
            f"enumerate came to {count} worlds at {at(site.address, site.source)}",
            needs=f"at most max_worlds={most} at a time",
            why="each combination of values that later statements can tell apart is a world",
            fix=f"ppl.enumerate(program, max_worlds={4 * most}), return less of the history, or "
            "ppl.marginalize for plates of independent members",
        )
    )
