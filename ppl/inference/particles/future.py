"""The density of the rest of a run, from what a particle holds and the choices that are to follow.

Ancestor and backward sampling weigh the particles at a place by it: how well does a given future go
with each of their pasts? A future fits only if it has exactly the choices that this past leads to:
where a branch is taken that the future knows nothing of, or the other way round, there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl.distributions import Categorical
from ppl.inference.particles.cloud import START
from ppl.inference.particles.onward import Onward, Rest
from ppl.inference.particles.run import Around, Place
from ppl.interpreter import Frame, Record, evaluate
from ppl.primitives import Site
from ppl.semantics.density import Density
from ppl.statements import sample


class Held(NamedTuple):
    """What the particles hold of a jaxpr's inputs: common values, and those of each particle.

    Each has None where the other has the value, and both for outputs of a loop that is to come.
    `start` has every particle's index at the beginning of the region.
    """

    common: list[Any]
    own: list[Any]
    start: Any


class Outside(NamedTuple):
    """What the body of a loop reads, in every iteration, and what is held for when it is over.

    Values of particles have the axis of those that came to the loop; rows have that of iterations
    first.
    """

    common: list[Any]
    own: list[Any]
    common_rows: list[Any]
    own_rows: list[Any]
    after: Held


class Level(NamedTuple):
    """A loop that one is in: the iteration, all its rows of choices, and the choices around it."""

    iteration: Any
    rows: Mapping[str, Record]
    outside: Outside
    given: Mapping[str, Record]


class _Given(Density):
    """Take choices, add up densities and scores, and note which sites there were."""

    def latent(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        value = frame.given[site.address].value
        self.observed(frame, site, leaves, value)
        frame.record(site, leaves, ())
        return value


def log_future(
    rest: Rest, held: Held, lane: Any, given: Mapping[str, Record], levels: Sequence[Level]
) -> Any:
    """Evaluate the log density of the rest of a run, from one particle on.

    **Meaning.** The log of the product of densities and scores of all that is to follow if the
    choices to come are those given, up to a term that is the same for all particles.

    Args:
        rest: what is left at the place.
        held: what the particles hold there.
        lane: the particle's index.
        given: the choices of the region by address; those made before the place do not count.
        levels: the loops that the place is in, innermost first.
    """
    return _from(rest, held, lane, given, levels, {})


def _from(
    rest: Rest,
    held: Held,
    lane: Any,
    given: Mapping[str, Record],
    levels: Sequence[Level],
    known: Mapping[Any, Any],
) -> Any:
    inputs = zip(rest.jaxpr.invars, held.common, held.own, strict=True)
    args = [known[v] if v in known else c if o is None else o[lane] for v, c, o in inputs]
    carry, log_weight = _weighed(rest.jaxpr, args, given)
    if not (rest.steps or rest.after):
        return log_weight
    assert rest.onward is not None
    (level, *levels), start = levels, held.start[lane]
    carry, more = _iterations(rest.onward, rest.steps, level, start, carry)
    log_weight = log_weight + more
    if rest.after is None:
        return log_weight
    outs = [rest.onward.part.eqn.outvars[i] for i in rest.onward.carried]
    known = dict(zip(outs, carry, strict=True))
    return log_weight + _from(rest.after, level.outside.after, start, level.given, levels, known)


def _weighed(jaxpr: Any, args: list[Any], given: Mapping[str, Record]) -> tuple[list[Any], Any]:
    outs, log_weight, records = evaluate(_Given(), jaxpr, [], args, given=given)
    for address, (_, present) in records.items():
        if present is not None:
            fits = jnp.all(present == given[address].present)
            log_weight = jnp.where(fits, log_weight, -jnp.inf)
    outs = [jnp.asarray(x, v.aval.dtype) for x, v in zip(outs, jaxpr.outvars, strict=True)]
    return outs, log_weight


def _iterations(
    onward: Onward, steps: int, level: Level, start: Any, carry: list[Any]
) -> tuple[list[Any], Any]:
    """Go on with a loop for some iterations, or to its end."""
    outside, sign = level.outside, -1 if onward.part.reverse else 1
    carries = _carries(onward)

    def args_at(i: Any, carry: list[Any]) -> list[Any]:
        found = []
        for k, v in enumerate(onward.body.invars):
            if v in carries:
                found.append(carry[carries.index(v)])
            elif outside.own[k] is not None:
                found.append(outside.own[k][start])
            elif outside.common_rows[k] is not None:
                found.append(outside.common_rows[k][i])
            elif outside.own_rows[k] is not None:
                found.append(outside.own_rows[k][i, start])
            else:
                found.append(outside.common[k])
        return found

    def step(state: Any, offset: Any) -> Any:
        i = level.iteration + sign * offset

        def go(carry: list[Any], log_weight: Any) -> Any:
            given = {a: jax.tree.map(lambda x: x[i], r) for a, r in level.rows.items()}
            carry, more = _weighed(onward.body, args_at(i, carry), given)
            return carry, log_weight + more

        there = (i >= 0) & (i < onward.part.length)
        return jax.lax.cond(there, go, lambda *state: state, *state), None

    state = (carry, jnp.zeros((), jnp.result_type(float)))
    return jax.lax.scan(step, state, jnp.arange(1, steps + 1))[0]


def _carries(onward: Onward) -> list[Any]:
    n, _ = onward.part.sizes
    return [onward.part.body.jaxpr.invars[n + i] for i in onward.carried]


def times(log_weights: Any, log_factor: Any) -> Any:
    """Multiply weights; what has weight zero keeps it."""
    return jnp.where(log_weights == -jnp.inf, -jnp.inf, log_weights + log_factor)


def choose_particle(address: str, log_weights: Any) -> Any:
    """Draw an index by weight; any, if all weights are zero."""
    top = jnp.max(log_weights)
    nothing = top == -jnp.inf
    choice: Any = Categorical(
        logits=jnp.where(nothing, 0.0, log_weights - jnp.where(nothing, 0.0, top))
    )
    return sample(address, choice)


# --- What is held -------------------------------------------------------------------------------


def inputs_at(jaxpr: Any, env: Mapping[Any, Any], values: Mapping[Any, Any]) -> Held:
    """Gather what the particles hold of a jaxpr's inputs; what is not there yet is None."""
    own = [values.get(v) for v in jaxpr.invars]
    common = [None if v in values else env.get(v) for v in jaxpr.invars]
    return Held(common, own, values[START])


def outside_of(onward: Onward, around: Around) -> Outside:
    """Gather what a loop goes on with."""
    ins, inputs = around.operands, onward.body.invars
    own = {v: x for v, x in zip(ins.names, ins.held, strict=True) if v in ins.again}
    rows = dict(zip(ins.row_variables, ins.rows, strict=True))
    random = onward.part.body.random
    return Outside(
        [ins.constants.get(v) for v in inputs],
        [own.get(v) for v in inputs],
        [None if v in random else rows.get(v) for v in inputs],
        [rows.get(v) if v in random else None for v in inputs],
        inputs_at(onward.after, around.place.env, around.cloud.values),
    )


def levels_at(onward: Onward | None, place: Place) -> list[Level]:
    """Gather the loops that a place is in, innermost first."""
    if onward is None or place.around is None:
        return []
    around, outer = place.around, place.around.place
    level = Level(around.iteration, around.given, outside_of(onward, around), outer.given)
    return [level, *levels_at(onward.around, outer)]
