"""`stream`: a particle filter that is fed as the data arrive."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl._types import Key, PyTree
from ppl.checks import check_inputs
from ppl.errors import ArgumentError, ResultError, message, named_keywords
from ppl.inference.particles.bootstrap import bootstrap_settings
from ppl.inference.particles.checkpoint import identity, load, save
from ppl.inference.particles.feeding import Feed
from ppl.inference.particles.online import Moment, Online, State, online
from ppl.inference.particles.rows import find_rows
from ppl.interpreter import loop_key_of
from ppl.program import Program, require_program
from ppl.resampling import Resampling
from ppl.semantics.cuts import cut
from ppl.semantics.guided import guided
from ppl.semantics.population import Population
from ppl.semantics.run import as_key, run
from ppl.staging import stage

#: Rows that one compiled call can take; fewer are padded, so that nothing is compiled twice.
BLOCK = 32


@named_keywords
def stream(
    program: Program,
    num_particles: int,
    *,
    resample: str | type[Resampling] = "systematic",
    ess_threshold: float = 0.5,
    proposal: Program | None = None,
    key: Key = 0,
) -> Stream:
    """Start a particle filter that is fed as the data arrive.

    **Meaning.** After t rows the particles are those of `ppl.smc` on the program of these t rows:
    the evidence estimate, and sums weighted by it, are unbiased. Row t always uses the same random
    numbers: those that `ppl.run` uses for iteration t of that program under `key`. So particles do
    not depend, in any bit, on how rows are divided between calls; those of `smc` are the same but
    for the rounding of a computation that is compiled in another way.

    Args:
        program: a model whose data are scanned, called with the rows that there are so far (none:
            `model(y[:0])`). They are fed at once.
        num_particles: the number of particles.
        resample: a scheme of `ppl.resampling`.
        ess_threshold: resample before draws when the effective sample size is below this share of
            the particles.
        proposal: a program without scores that draws some of the latent addresses, in a scan of its
            own over the same rows; None draws from the model. Its arguments are fed too: those
            named as the model's get the same rows.
        key: PRNG key or seed.

    Raises:
        UnsupportedError: the program has not exactly one loop that scores, or the loop's rows are
            not the program's arguments themselves, or something needs all of them.
        ResultError: every particle has weight zero.
    """
    made = Stream(program, num_particles, resample, ess_threshold, proposal)
    made._begin(as_key(key))
    return made


class Stream:
    """A particle filter at a moment: feed it rows, ask it for its particles. Made by `ppl.stream`.

    Its memory does not grow. A call that raises, or is interrupted, leaves it as it was.
    """

    def __init__(
        self,
        program: Program,
        num_particles: int,
        resample: str | type[Resampling] = "systematic",
        ess_threshold: float = 0.5,
        proposal: Program | None = None,
    ):
        require_program("stream", program)
        settings = bootstrap_settings("stream", num_particles, resample, ess_threshold)
        drawn = program if proposal is None else guided(program, proposal, operation="stream")
        flat, region = cut(drawn)
        rows = find_rows("stream", drawn, region)
        self._program = program
        self._plan: Online = online(drawn.structure, region, rows, *settings)
        self._values = [*flat.consts, *flat.args]
        sources = [s for s in rows.sources if s is not None]
        avals = [region.inputs[s].aval for s in sources]
        self._feed = Feed(drawn, sources, avals, len(flat.consts))
        first = len(flat.consts) + (0 if drawn is program else len(drawn.consts))
        first += len(program.consts)
        self._args = slice(first, first + len(program.args))
        self._now: Moment

    def _begin(self, key: Any) -> None:
        state = run(stage(self._plan.start, (self._fixed,), name="start"), key)
        self._now = Moment(state, None, {}, key)
        _require_mass(np.array([self.log_evidence]), 0)
        self._advance([np.asarray(self._values[s]) for s in self._feed.sources])

    @property
    def _fixed(self) -> list[Any]:
        return [x for i, x in enumerate(self._values) if i not in self._feed.sources]

    # --- Feeding --------------------------------------------------------------------------------

    def feed(self, *row: PyTree, **rows: PyTree) -> Stream:
        """Go on by one row.

        Args:
            *row: the row, if the model scans one argument: of the argument's structure, each array
                without its leading axis.
            **rows: by the names of the model's arguments, if it scans several.

        Returns:
            The stream itself.

        Raises:
            ArgumentError: the row has another structure, shape or dtype; an argument is missing.
            ObservationError: an observation is NaN or outside its distribution's support.
            ResultError: no particle has positive weight. The stream stays as it was.
        """
        return self._advance(self._feed.arrays("feed", row, rows, many=False))

    def feed_many(self, *rows: PyTree, **more: PyTree) -> Stream:
        """Go on by a number of rows, along the leading axis of the arrays. See `feed`.

        Args:
            *rows: the rows, if the model scans one argument.
            **more: by the names of the model's arguments, if it scans several.
        """
        return self._advance(self._feed.arrays("feed_many", rows, more, many=True))

    def _advance(self, arrays: list[np.ndarray]) -> Stream:
        """Feed arrays of rows; the stream is another at the end, or as it was."""
        values = list(self._values)
        for s, x in zip(self._feed.sources, arrays, strict=True):
            values[s] = x
        # Look at the rows as at the data of the whole model.
        sites, consts = self._program.structure.sites, self._program.consts
        check_inputs(sites, consts, values[self._args], "stream")
        state, latest, _, key = self._now
        steps: list[dict[str, np.ndarray]] = []
        total = arrays[0].shape[0]
        for begin in range(0, total, BLOCK):
            count = min(BLOCK, total - begin)
            padded = [np.zeros((BLOCK, *x.shape[1:]), x.dtype) for x in arrays]
            for buffer, x in zip(padded, arrays, strict=True):
                buffer[:count] = x[begin : begin + count]
            state, latest, stats = _block(self._plan, state, padded, key, count)
            steps.append({k: np.asarray(x)[:count] for k, x in stats.items()})
            _require_mass(steps[-1]["log_evidence"][:, -1], self.num_steps + begin + 1)
        self._now = Moment(state, latest, _joined(steps), key)
        return self

    # --- What is known --------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the stream to a file (.npz, no pickle), which is replaced whole or not at all.

        Args:
            path: the file.
        """
        save(path, self._now, identity(self._plan, self._fixed))

    @classmethod
    @named_keywords
    def load(
        cls,
        path: str | os.PathLike[str],
        program: Program,
        num_particles: int,
        *,
        resample: str | type[Resampling] = "systematic",
        ess_threshold: float = 0.5,
        proposal: Program | None = None,
    ) -> Stream:
        """Go on where a saved stream stood: it is the same in every bit.

        Args:
            path: the file that `save` wrote.
            program: the same model, called without rows: `model(y[:0])`.
            num_particles: as given to `ppl.stream`; what follows likewise.
            resample: a scheme.
            ess_threshold: a share of the particles.
            proposal: a program, or None.

        Raises:
            ArgumentError: the program has rows; those that were fed are in the file.
            ResultError: the file is damaged, or of a stream of another program or other settings.
        """
        made = cls(program, num_particles, resample, ess_threshold, proposal)
        count = max(made._values[s].shape[0] for s in made._feed.sources)
        if count:
            raise ArgumentError(
                message(
                    f"Stream.load got {program.name} with {count} rows",
                    needs="a program without rows",
                    why="the state in the file has seen its rows already, and would not see these",
                    fix="Stream.load(path, model(y[:0]), num_particles), and feed_many(y)",
                )
            )
        made._now = load(path, made._plan, made._fixed, made._feed.shapes)
        return made

    @property
    def population(self) -> Population:
        """The particles now.

        `choices` holds the sites before the loop, as far as particles still have them, those of the
        latest iteration without the loop's axis, and those after it. `values` is what the program
        would return had the data ended here; None if that needs all rows or what each iteration
        gave, which a stream does not keep. What the model computes from the number of its rows
        keeps its value of the start. `log_evidence_se` is NaN once all particles descend from one
        of the first, as they do after many rows. `steps` is that of the last call.
        """
        state, latest, steps, key = self._now
        population = run(stage(self._plan.finish, (state, latest), name="finish"), key)
        population.steps.update(jax.device_put(steps))
        return population

    @property
    def log_evidence(self) -> float:
        """The log of the evidence estimate of all rows, in nats."""
        high, low = map(float, self._now.state.evidence)
        return high + (low + float(self._now.state.weights.log_mean))

    @property
    def ess(self) -> float:
        """The effective sample size of the weights."""
        return float(self._now.state.weights.ess)

    @property
    def num_particles(self) -> int:
        """The number of particles."""
        return self._plan.count

    @property
    def num_steps(self) -> int:
        """How many rows there have been."""
        return int(self._now.state.steps)

    def __repr__(self) -> str:
        return (
            f"Stream({self._program.name}, num_particles={self.num_particles}): {self.num_steps} "
            f"rows, log evidence {self.log_evidence:.4f}, ess {self.ess:.1f}"
        )


def _block_impl(plan: Online, state: State, rows: Any, key: Any, count: Any) -> Any:
    def step(state: State, i: Any) -> Any:
        row = [x[i] for x in rows]
        made = stage(plan.step, (state, row), name="step")
        return run(made, jax.random.fold_in(loop_key_of(key), state.steps))

    _, latest, stats = jax.eval_shape(step, state, 0)
    latest, stats = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        (latest, jax.tree.map(lambda s: jax.ShapeDtypeStruct((BLOCK, *s.shape), s.dtype), stats)),
    )

    def body(i: Any, carry: Any) -> Any:
        state, _, kept = carry
        state, latest, stats = step(state, i)
        return state, latest, jax.tree.map(lambda b, x: b.at[i].set(x), kept, stats)

    return jax.lax.fori_loop(0, count, body, (state, latest, stats))


_block = jax.jit(_block_impl, static_argnums=0)


def _require_mass(log_evidence: np.ndarray, first: int) -> None:
    bad = np.flatnonzero(~np.isfinite(log_evidence))
    if bad.size:
        value = log_evidence[bad[0]]
        many = "weights that are not numbers" if np.isnan(value) else "no particle of weight"
        raise ResultError(
            message(
                f"stream got log evidence {value} at step {first + int(bad[0])}",
                needs="at least one particle of positive weight, and finite weights",
                why=f"there are {many} then; the stream is as it was before the call",
                fix="check the row against the model's support, use more particles, or a proposal",
            )
        )


def _joined(steps: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Put what blocks recorded end to end, flat as a run of the whole program has it."""
    return {k: np.concatenate([s[k] for s in steps]).reshape(-1) for k in (steps or [{}])[0]}
