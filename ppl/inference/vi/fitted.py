"""`Fit`: fitted parameters, how they came about, and what can be done with them."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ppl import _jax
from ppl._types import Choices, Key, PyTree, pytree, static
from ppl.counts import count
from ppl.errors import ResultError, message
from ppl.inference.vi.objective import at_params
from ppl.program import Program
from ppl.results.pareto import pareto_smooth, reliable_k
from ppl.results.table import Summary
from ppl.semantics.guided import guided
from ppl.semantics.lanes import Groups
from ppl.semantics.rows import Rows
from ppl.semantics.weighted import Trace, sample_traces

#: The rows of a summary.
PARTS = 10


class Psis(NamedTuple):
    """Draws of a guide with smoothed log weights, which sum to one on the natural scale.

    A tail shape `pareto_k` of at most `reliable_k` says that the weights mend what the guide gets
    wrong; above it they do not, and the guide is far from the posterior somewhere that counts.
    """

    pareto_k: float
    log_weights: Float[np.ndarray, " N"]
    draws: Choices
    reliable_k: float

    def __repr__(self) -> str:
        verdict = "usable" if self.pareto_k <= self.reliable_k else "not to be trusted"
        return (
            f"pareto_k = {self.pareto_k:.2f} of {len(self.log_weights):,} draws, {verdict} "
            f"(at most {self.reliable_k:.2f} is)"
        )


@pytree
class Held:
    """A pytree whose leaves need not be arrays, as one that JAX takes anywhere."""

    arrays: list[Any]
    others: tuple[Any, ...] = static()
    tree: Any = static()

    @classmethod
    def of(cls, value: Any) -> Held:
        """Take a value apart.

        Args:
            value: a pytree whose leaves are arrays, or hashable.
        """
        leaves, tree = jax.tree.flatten(value)
        arrays = [x for x in leaves if eqx.is_array(x)]
        return cls(arrays, tuple(None if eqx.is_array(x) else x for x in leaves), tree)

    @property
    def value(self) -> Any:
        """Put it together."""
        arrays = iter(self.arrays)
        return self.tree.unflatten([next(arrays) if x is None else x for x in self.others])


@pytree
class Fit:
    """Parameters that an optimizer found.

    `values` holds the estimates of the objective by step, in its own sign; those of `ppl.vi.elbo`
    are in nats. Each was made before its update. `steps` counts them, `skipped` those that were
    not finite and changed nothing, and `stopped` tells whether a rule ended the fit. With
    `average=`, `params` is the average, and `state.params` the last iterate.
    """

    params: PyTree
    values: Float[Array, " step"]
    steps: Int[Array, ""]
    skipped: Int[Array, ""]
    stopped: Bool[Array, ""]
    held: Held
    state: PyTree = None
    maximize: bool = static(default=False)
    underway: Any = static(default=None, repr=False)

    @property
    def objective(self) -> Any:
        """What was fitted."""
        return self.held.value

    @property
    def guide(self) -> Program:
        """The guide at the fitted parameters: an approximation of the posterior."""
        return part(self.objective, "guide", self.params)

    @property
    def program(self) -> Program:
        """The model, at the fitted parameters if it has some."""
        return part(self.objective, "program", self.params)

    def draws(self, key: Key, num_draws: int = 1000) -> Choices:
        """Draw from the guide.

        Args:
            key: a JAX PRNG key, or an int.
            num_draws: how many.

        Returns:
            By latent address of the model, arrays of shape (draw, *site): as `ppl.mcmc(init=)`
            takes them for as many chains.
        """
        number = count("draws", "num_draws", num_draws)
        made = sample_traces(self.guide, key, number).choices
        return {a: made[a] for a in self.program.latents if a in made}

    def psis(self, key: Key, num_draws: int = 1000) -> Psis:
        """Weigh draws of the guide for the model, and tell whether the weights can be trusted.

        **Meaning.** Pareto-smoothed importance sampling: the k of the weights' tail is a measure of
        how far the guide is from the posterior.

        Args:
            key: a JAX PRNG key, or an int.
            num_draws: how many; 1000 are enough to tell k = 0.7 from 0.5.

        Source: Yao, Vehtari, Simpson & Gelman (2018), Yes, but did it work?, section 3.1.
        """
        number = count("psis", "num_draws", num_draws)
        program = self.program
        made: Trace = sample_traces(guided(program, self.guide), key, number)
        log_weights, k = pareto_smooth(np.asarray(made.log_weight))
        draws = {a: made.choices[a] for a in program.latents if a in made.choices}
        return Psis(k, log_weights, draws, reliable_k(number))

    def extend(self, num_steps: int, *, progress: bool | None = None) -> Fit:
        """Go on from where the fit stands.

        **Meaning.** What a run of that many more steps would have given, bit for bit. A fit that
        its rule has stopped stays as it is.

        Args:
            num_steps: how many steps to add.
            progress: show a progress bar; None shows one in terminals and notebooks.

        Raises:
            ResultError: the fit was made inside of another program, and cannot go on.
            ArgumentError: the number is not a positive integer.
        """
        if self.underway is None:
            raise ResultError(
                message(
                    "extend got a fit that does not know how it was made",
                    needs="the fit that ppl.run gave",
                    why="inside of another program a fit has its length",
                    fix="ppl.run(ppl.vi.fit(..., num_steps=more), key)",
                )
            )
        more = count("extend", "num_steps", num_steps)
        if bool(self.stopped):
            return self
        underway, made = self.underway, len(self.values)
        if underway.ready != made:  # another fit went on from here
            underway = _back(underway, self.state, made)
        return underway.reach(made + more, progress)

    def summary(self) -> Summary:
        """Show how the estimates went, a row for each tenth of the steps, with what looks wrong.

        The columns are the mean of the finite estimates, the standard error of that mean, from the
        differences of neighbours, and the number of estimates that are not finite.
        """
        values = np.asarray(self.values, np.float64)
        rows, cells = [], []
        for part in np.array_split(np.arange(len(values)), min(PARTS, len(values))):
            rows.append(f"{part[0] + 1}-{part[-1] + 1}")
            cells.append((*_mean(values[part]), np.sum(~np.isfinite(values[part]))))
        sense = "maximised" if self.maximize else "minimised"
        return Summary(
            rows=tuple(rows),
            columns=("mean", "se_mean", "non_finite"),
            values=np.array(cells),
            notes=tuple(self._notes(np.array(cells))),
            title=f"{self._name}, {sense}: {len(values):,} steps",
            shapes={row: () for row in rows},
        )

    def _notes(self, cells: np.ndarray) -> list[str]:
        notes, skipped, steps = [], int(self.skipped), int(self.steps)
        if skipped:
            notes.append(
                f"{skipped} of {steps} steps had an estimate or a gradient that is not finite, and "
                "changed nothing; try a smaller step size or another start, and see where the "
                "model's density is not finite"
            )
        if len(cells) == PARTS and not self.stopped:
            (before, _), (last, _) = cells[-3, :2], cells[-1, :2]
            gain = (last - before) if self.maximize else (before - last)
            if gain > 4 * math.hypot(cells[-3, 1], cells[-1, 1]):
                notes.append(
                    f"the estimates still get better, by {gain:.3g} over the last fifth of the "
                    "steps; go on with fit.extend(num_steps), or try a larger step size"
                )
        return notes

    def plot(self, *, window: int | None = None) -> Any:
        """Draw the estimates and their running mean with matplotlib.

        Args:
            window: steps of the running mean; None for a fiftieth of all.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        from ppl.results.history import history

        values = np.asarray(self.values, np.float64)
        width = max(1, len(values) // 50) if window is None else count("plot", "window", window)
        return history(values, width, self._name)

    @property
    def _name(self) -> str:
        return getattr(self.objective, "__name__", None) or repr(self.objective)

    def __repr__(self) -> str:
        if any(_jax.is_tracer(x) for x in jax.tree.leaves((self.params, self.values))):
            return "Fit(traced)"
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Give the mean of the finite values and its standard error."""
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    squares = np.diff(values) ** 2
    error = math.sqrt(squares.mean() / 2 / len(values)) if len(squares) else math.nan
    return float(values.mean()), error


def part(objective: Any, name: str, params: PyTree) -> Program:
    """Give the program or the guide of an objective, at parameters.

    Args:
        objective: what is fitted.
        name: "program" or "guide".
        params: the parameters.

    Raises:
        ResultError: it has none.
    """
    found = at_params(getattr(objective, name, None), params)
    if not isinstance(found, Program):
        raise ResultError(
            message(
                f"{name} got the fit of an objective of type {type(objective).__name__}",
                needs=f"an objective with a {name}, such as ppl.vi.elbo(program, guide)",
                why="the objective is a function of which nothing else is known",
                fix=f"ppl.vi.fit(objective, ..., {name}={name})",
            )
        )
    return found


def _back(underway: Any, state: Any, made: int) -> Any:
    """Give the fit under way as it was after so many steps."""
    underway, (old,) = copy.copy(underway), underway.lanes.groups
    underway.checkpoint = None  # it is that of the fit that went on
    lanes = copy.copy(old)
    underway.lanes = Groups([lanes])
    lanes.state, lanes.steps, lanes.next = state, made, None
    lanes.rows = Rows(0, 1)
    lanes.rows.add(None, old.rows.take(made))
    return underway
