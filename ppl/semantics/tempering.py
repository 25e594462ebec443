"""The programs between a program without its scores and the program itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax
from ppl.errors import ArgumentError, message
from ppl.interpreter import Frame, Interpreter, evaluate
from ppl.primitives import Site, factor, log_prob
from ppl.program import Program
from ppl.semantics.handlers import scale
from ppl.semantics.weighted import Trace
from ppl.staging import stage
from ppl.statements import deterministic

_HALVINGS = 40  # of the interval from a temperature to 1: finer than single precision there


class _Noting(Interpreter):
    """Rebind every site, and add up what observations and factors weigh."""

    name = "tempering"
    unbounded = False
    weighs = True

    def zero(self) -> Any:
        return jnp.zeros((), jnp.result_type(float))

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        value = super().sample(frame, site, leaves)
        if site.kind == "observed":
            frame.add(jnp.sum(log_prob(site, leaves, value)))
        return value

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        super().score(frame, site, leaves)
        frame.add(jnp.sum(factor(site, leaves)))


def _noted(program: Program, name: str) -> Any:
    s = program.structure
    outs, log_likelihood, _ = evaluate(_Noting(), s.jaxpr, program.consts, program.args)
    deterministic(name, log_likelihood)
    return s.rebuild(outs)


class Tempered:
    """A program's measures with the product of all scores, the likelihood, to a power.

    The traces of these programs know the log likelihood: it is one of their deterministic sites, so
    that whoever has a trace at one temperature can weigh it for another without a further run.
    Latent sites stay as they are, scaled ones too.
    """

    def __init__(self, program: Program):
        self._name = "log likelihood"
        while any(site.address == self._name for site in program.sites):
            self._name += "'"
        self.whole = stage(_noted, (program, self._name), name=program.name)
        self._scores = self.whole.sites.addresses("observed", "factor")

    def at(self, temperature: Any) -> Program:
        """Give the program whose scores count to the power `temperature`."""
        return scale(self.whole, temperature, self._scores)

    def log_likelihood(self, trace: Trace) -> Any:
        """Read off the log product of all scores, whatever the temperature of the trace."""
        return trace.deterministics[self._name]


def to_power(log_likelihood: Any, power: Any) -> Any:
    """Take a likelihood to a positive power; zero stays zero, in gradients too."""
    nothing = log_likelihood == -jnp.inf
    return jnp.where(nothing, -jnp.inf, power * jnp.where(nothing, 0.0, log_likelihood))


def next_temperature(
    temperature: Any, log_weights: Any, log_likelihood: Any, threshold: Any
) -> Any:
    """Find how far to go so that the conditional effective sample size falls to a given part.

    It falls as the power grows, and is that of the particles that can have positive weight: the
    others have none at any power. Without any of these the way is free.
    """
    weights = jnp.exp(log_weights - jnp.max(log_weights))
    weights = jnp.where(log_likelihood == -jnp.inf, 0.0, weights)
    top = jnp.max(log_likelihood)  # scales all factors alike
    spread = log_likelihood - jnp.where(top == -jnp.inf, 0.0, top)

    def enough(new: Any) -> Any:
        factors = jnp.exp(to_power(spread, new - temperature))
        mean, square = jnp.sum(weights * factors), jnp.sum(weights * factors**2)
        return mean**2 >= threshold * jnp.sum(weights) * square

    def halve(_: Any, bounds: Any) -> Any:
        low, high = bounds
        middle = (low + high) / 2
        fine = enough(middle)
        return jnp.where(fine, middle, low), jnp.where(fine, high, middle)

    one = jnp.ones_like(temperature)
    # The upper end is always above the temperature, so that every step goes on.
    _, high = jax.lax.fori_loop(0, _HALVINGS, halve, (temperature, one))
    return jnp.where(enough(one), one, high)


# --- Settings -----------------------------------------------------------------------------------


def schedule(operation: str, temperatures: Any) -> np.ndarray:
    """Give increasing powers of the likelihood, the last of them one."""
    values = known(temperatures)
    rising = values.ndim == 1 and values.size and np.all(np.diff(values, prepend=0) > 0)
    if not (rising and values[-1] == 1):
        raise ArgumentError(
            message(
                f"{operation} got temperatures={temperatures!r}",
                needs="increasing numbers, the first above 0 and the last 1, known when the "
                "program is made",
                why="each is a power of the likelihood, on the way from the prior to the posterior",
                fix="temperatures=[0.1, 0.4, 1.0]",
            )
        )
    return values


def known(x: Any) -> np.ndarray:
    """Give the numbers as the program will compute with them; NaN for what is none."""
    x = np.asarray(np.nan if _jax.is_tracer(x) else x)
    return x.astype(jnp.result_type(float)) if x.dtype.kind in "iuf" else np.asarray(np.nan)
