"""The evaluation of a jaxpr over worlds: how they split, join, and go through control flow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppl import _jax
from ppl.errors import UnsupportedError, at, message
from ppl.interpreter import placed_sites
from ppl.primitives import sample_p, score_p
from ppl.semantics import semirings
from ppl.semantics.semirings import Choice, Sum, Weights
from ppl.semantics.worlds import candidates, grouping
from ppl.semantics.worlds.arrays import inlined, lifted
from ppl.semantics.worlds.plan import plan, scan_inputs


class State(NamedTuple):
    """The worlds: their weights, and what enclosing regions hold, as one number a region."""

    weights: Weights
    held: tuple[np.ndarray, ...] = ()

    @property
    def worlds(self) -> int:
        return len(self.weights[0])

    def take(self, rows: np.ndarray) -> State:
        return State(semirings.take(self.weights, rows), tuple(h[rows] for h in self.held))


class ImpossibleError(Exception):
    """No world of positive mass is left."""


#: Arrays with an axis of worlds; None for what nobody needs.
Arrays = list[Any]


def _take(arrays: Sequence[np.ndarray], rows: np.ndarray) -> Arrays:
    """Pick worlds; arrays that all worlds share stay as they are."""
    return [x if x.shape[0] == 1 else x[rows] for x in arrays]


class Evaluator:
    """The evaluation of jaxprs over worlds. Regions return their state and wanted outputs."""

    def __init__(
        self,
        semiring: Sum,
        quadrature: Mapping[str, int],
        tolerance: float | None,
        max_worlds: int,
        max_iterations: int,
    ):
        self.semiring, self.quadrature, self.tolerance = semiring, quadrature, tolerance
        self.max_worlds, self.max_iterations = max_worlds, max_iterations
        # Quadrature nodes may be tiny, and yet differ in what matters: their logarithms.
        self.floor = 0.0 if quadrature else 1.0
        self.path: list[int] = []
        #: Whether worlds have split since they were last joined.
        self.split = False

    def region(
        self,
        state: State,
        jaxpr: Any,
        consts: Sequence[Any],
        args: Sequence[Any],
        wanted: Sequence[bool],
    ) -> tuple[State, list[Any]]:
        """Run an open jaxpr; outputs that are not wanted are None."""
        planned = plan(jaxpr, wanted)
        ins = [*map(lifted, consts), *args]
        names = (*jaxpr.constvars, *jaxpr.invars)
        env = {v: x for v, x, w in zip(names, ins, planned.inputs, strict=True) if w}

        def read(atom: Any) -> Any:
            return lifted(atom.val) if isinstance(atom, _jax.Literal) else env.get(atom)

        for step in planned.steps:
            values = [read(v) for v in step.ins]
            if step.block is not None:
                env.update(zip(step.outs, step.block(values, state.worlds), strict=True))
            else:
                later = [v for v in env if v not in step.dead]
                run = self._rule(step.eqn)
                keep = [env[v] for v in later]
                state, outs, keep = run(state, step.eqn, values, keep, step.wanted)
                env = dict(zip(later, keep, strict=True))
                env.update((v, x) for v, x in zip(step.outs, outs, strict=True) if x is not None)
            for v in step.dead:
                env.pop(v, None)
        outs = [read(v) if w else None for v, w in zip(jaxpr.outvars, wanted, strict=True)]
        return state, outs

    def _rule(self, eqn: Any) -> Callable[..., tuple[State, list[Any], Arrays]]:
        name = eqn.primitive.name
        rules = {"scan": self._scan, "cond": self._cond, "while": self._while}
        if eqn.primitive is sample_p:
            return self._sample
        if eqn.primitive is score_p:
            return self._score
        if name in rules:
            return rules[name]
        if inlined(eqn) is not None:
            return self._inline
        site = next(p.site for sub in _jax.subjaxprs(eqn) for p in placed_sites(sub))
        raise UnsupportedError(
            message(
                f"enumerate met the JAX operation '{name}' around the site "
                f"{at(site.address, site.source)}",
                needs=f"sites to stand only inside jit, checkpoint, {', '.join(rules)}",
                why="an operation without a rule would lose the draws and scores inside it",
                fix=f"move the sample or factor statement out of '{name}'",
            )
        )

    # --- Worlds ---------------------------------------------------------------------------------

    def join(self, state: State, arrays: Sequence[Any]) -> tuple[State, Arrays]:
        """Join worlds that agree on the arrays and on what is held."""
        if state.worlds == 1 or not self.split:
            return state, list(arrays)
        self.split = False
        columns = [*state.held, *(x for x in arrays if x is not None and x.shape[0] > 1)]
        groups = grouping.group(columns, state.worlds, self.tolerance, self.floor)
        if groups.number == state.worlds:
            return state, list(arrays)
        weights = self.semiring.join(state.weights, groups)
        joined = State(weights, tuple(h[groups.first] for h in state.held))
        return joined, [x if x is None else _take([x], groups.first)[0] for x in arrays]

    def holding(
        self,
        state: State,
        keep: Sequence[np.ndarray],
        run: Callable[[State], tuple[State, list[Any]]],
    ) -> tuple[State, list[Any], Arrays]:
        """Run a region while `keep` is held: what differs between worlds becomes one number."""
        varied = [k for k, x in enumerate(keep) if x.shape[0] > 1]
        groups = grouping.group([keep[k] for k in varied], state.worlds, self.tolerance, self.floor)
        table = {k: keep[k][groups.first] for k in varied}
        kept = [table.get(k, x) for k, x in enumerate(keep)]
        if groups.number <= 1:
            state, outs = run(state)
            return state, outs, kept
        state, outs = run(state._replace(held=(*state.held, groups.codes)))
        codes = state.held[-1]
        back = [x if k not in table else table[k][codes] for k, x in enumerate(kept)]
        return state._replace(held=state.held[:-1]), outs, back

    # --- Sites ----------------------------------------------------------------------------------

    def _sample(
        self, state: State, eqn: Any, leaves: Arrays, keep: Arrays, wanted: Any
    ) -> tuple[State, list[Any], Arrays]:
        site = eqn.params["site"]
        if site.kind != "latent":
            value = candidates.observed_value(site, leaves, state.worlds)
            if site.kind == "observed":
                state, _, [*keep, value] = self._score(state, eqn, leaves, [*keep, value], ())
            return state, [value], keep
        state, both = self.join(state, [*leaves, *keep])
        leaves, keep = both[: len(leaves)], both[len(leaves) :]
        nodes = self.quadrature.get(site.address, 0)
        found = candidates.candidates(site, leaves, state.worlds, nodes)
        parents, value, log_mass, coarse = candidates.choose(
            found, site, state.worlds, self.max_worlds
        )
        if not len(parents):
            raise ImpossibleError
        self.split = True
        state = state.take(parents)
        choice = Choice(site.address, tuple(self.path), parents, value, log_mass, coarse)
        state = state._replace(weights=self.semiring.choose(state.weights, choice))
        return state, [value if wanted[0] else None], _take(keep, parents)

    def _score(
        self, state: State, eqn: Any, leaves: Arrays, keep: Arrays, wanted: Any
    ) -> tuple[State, list[Any], Arrays]:
        log_weight = candidates.score(eqn.params["site"], leaves, state.worlds)
        weights = self.semiring.score(state.weights, np.broadcast_to(log_weight, (state.worlds,)))
        state = state._replace(weights=weights)
        possible = np.flatnonzero(weights[0] > -np.inf)
        if not len(possible):
            raise ImpossibleError
        if len(possible) < state.worlds:
            state, keep = state.take(possible), _take(keep, possible)
        return state, [], keep

    # --- Control flow ---------------------------------------------------------------------------

    def _inline(
        self, state: State, eqn: Any, values: Arrays, keep: Arrays, wanted: Any
    ) -> tuple[State, list[Any], Arrays]:
        jaxpr, consts = _jax.open_jaxpr(inlined(eqn))
        return self.holding(
            state, keep, lambda state: self.region(state, jaxpr, consts, values, wanted)
        )

    def _cond(
        self, state: State, eqn: Any, values: Arrays, keep: Arrays, wanted: Any
    ) -> tuple[State, list[Any], Arrays]:
        index, *args = values
        branches = eqn.params["branches"]
        index = np.clip(index.astype(np.int64), 0, len(branches) - 1)

        def run(state: State) -> tuple[State, list[Any]]:
            parts = []
            for b in np.unique(index):
                rows = np.arange(state.worlds)
                if index.shape[0] > 1:
                    rows = np.flatnonzero(index == b)
                jaxpr, consts = _jax.open_jaxpr(branches[b])
                try:
                    part = self.region(state.take(rows), jaxpr, consts, _take(args, rows), wanted)
                except ImpossibleError:
                    continue
                parts.append(self.join(*part))
            return self._together(parts)

        return self.holding(state, keep, run)

    def _together(self, parts: list[tuple[State, list[Any]]]) -> tuple[State, list[Any]]:
        """Put the worlds of several branches side by side."""
        if not parts:
            raise ImpossibleError
        if len(parts) == 1:
            return parts[0]
        self.split = True
        states = [s for s, _ in parts]
        weights = self.semiring.together([s.weights for s in states])
        held = tuple(np.concatenate(hs) for hs in zip(*(s.held for s in states), strict=True))
        outs = [
            None
            if xs[0] is None
            else np.concatenate(
                [
                    np.broadcast_to(x, (s.worlds, *x.shape[1:]))
                    for s, x in zip(states, xs, strict=True)
                ]
            )
            for xs in zip(*(outs for _, outs in parts), strict=True)
        ]
        return State(weights, held), outs

    def _scan(
        self, state: State, eqn: Any, values: list[Any], keep: Arrays, wanted: Any
    ) -> tuple[State, list[Any], Arrays]:
        params = eqn.params
        n, m = _jax.scan_sizes(eqn)
        jaxpr, consts = _jax.open_jaxpr(params["jaxpr"])
        inputs, inside = scan_inputs(eqn, wanted)
        fixed, carry = (
            values[:n],
            [x if w else None for x, w in zip(values[n : n + m], inputs[n:], strict=False)],
        )
        xs = [x if w else None for x, w in zip(values[n + m :], inputs[n + m :], strict=True)]
        ys: list[Any] = [None] * len(inside[m:])
        history = np.zeros(state.worlds, np.int64)
        steps = range(params["length"])
        for t in reversed(steps) if params["reverse"] else steps:
            rows = [x if x is None else x[:, t] for x in xs]
            args, hold = [*fixed, *carry, *rows], [*fixed, *xs]
            here = [k for k, x in enumerate(hold) if x is not None]
            self.path.append(t)
            try:
                # The history so far is one number for each world: a row of `ys`.
                state, outs, back = self.holding(
                    state,
                    [*keep, *(hold[k] for k in here), history],
                    lambda state, args=args: self.region(state, jaxpr, consts, args, inside),
                )
            finally:  # a branch around the loop may turn out impossible
                self.path.pop()
            keep, back, history = back[: len(keep)], back[len(keep) : -1], back[-1]
            for k, x in zip(here, back, strict=True):
                hold[k] = x
            fixed, xs, carry, new = hold[:n], hold[n:], outs[:m], outs[m:]
            varied = [x for x in new if x is not None]
            if varied:
                history = np.broadcast_to(history, (state.worlds,))
                state, ys, history = _append(state, ys, new, history, self.tolerance, self.floor)
            state, both = self.join(state, [*carry, history, *keep, *(hold[k] for k in here)])
            carry, history, rest = both[:m], both[m], both[m + 1 :]
            keep = rest[: len(keep)]
            for k, x in zip(here, rest[len(keep) :], strict=True):
                hold[k] = x
            fixed, xs = hold[:n], hold[n:]
        if not params["length"]:
            ys = [
                np.zeros((1, *v.aval.shape), v.aval.dtype) if w else None
                for v, w in zip(eqn.outvars[m:], inside[m:], strict=True)
            ]
        stacked = [self._history(y, history, params["reverse"]) for y in ys]
        return state, [*carry, *stacked], keep

    @staticmethod
    def _history(y: Any, history: np.ndarray, reverse: bool) -> Any:
        if y is None:
            return None
        y = y[history] if len(y) > 1 else y
        return y[:, ::-1] if reverse else y

    def _while(
        self, state: State, eqn: Any, values: Arrays, keep: Arrays, wanted: Any
    ) -> tuple[State, list[Any], Arrays]:
        params = eqn.params
        n, m = params["cond_nconsts"], params["body_nconsts"]
        test, test_consts = _jax.open_jaxpr(params["cond_jaxpr"])
        body, body_consts = _jax.open_jaxpr(params["body_jaxpr"])
        everything = [True] * len(body.outvars)

        def run(state: State) -> tuple[State, list[Any]]:
            fixed, carry = values[: n + m], values[n + m :]
            done: list[tuple[State, list[Any]]] = []
            for _ in range(self.max_iterations + 1):
                both = [*fixed, *carry]
                args = [*fixed[:n], *carry]
                try:
                    state, (go,), both = self.holding(
                        state,
                        both,
                        lambda state, args=args: self.region(
                            state, test, test_consts, args, [True]
                        ),
                    )
                except ImpossibleError:
                    return self.join(*self._together(done))
                go = np.broadcast_to(go, (state.worlds,))
                fixed, carry = both[: n + m], both[n + m :]
                out, on = np.flatnonzero(~go), np.flatnonzero(go)
                if len(out):
                    done.append(self.join(state.take(out), _take(carry, out)))
                if not len(on):
                    return self.join(*self._together(done))
                state, fixed, carry = state.take(on), _take(fixed, on), _take(carry, on)
                args = [*fixed[n:], *carry]
                try:
                    state, carry, fixed = self.holding(
                        state,
                        fixed,
                        lambda state, args=args: self.region(
                            state, body, body_consts, args, everything
                        ),
                    )
                except ImpossibleError:
                    return self.join(*self._together(done))
                state, both = self.join(state, [*carry, *fixed])
                carry, fixed = both[: len(carry)], both[len(carry) :]
            raise UnsupportedError(_unbounded(eqn, self.max_iterations, state.worlds))

        return self.holding(state, keep, run)


def _append(
    state: State,
    ys: list[Any],
    new: list[Any],
    history: np.ndarray,
    tolerance: float | None,
    floor: float,
) -> tuple[State, list[Any], np.ndarray]:
    """Add a row to each world's history; equal histories share one."""
    columns = [x for x in new if x is not None and x.shape[0] > 1]
    groups = grouping.group([history, *columns], state.worlds, tolerance, floor)
    old = history[groups.first]
    grown = []
    for y, x in zip(ys, new, strict=True):
        if x is None:
            grown.append(None)
            continue
        row = _take([x], groups.first)[0]
        row = np.broadcast_to(row, (groups.number, *row.shape[1:]))[:, None]
        grown.append(row if y is None else np.concatenate([y[old], row], axis=1))
    return state, grown, groups.codes


def _unbounded(eqn: Any, most: int, worlds: int) -> str:
    placed = [p.site for sub in _jax.subjaxprs(eqn) for p in placed_sites(sub)]
    return message(
        f"enumerate ran the while_loop around {at(placed[0].address, placed[0].source)} "
        f"{most} times, and {worlds} worlds go on",
        needs=f"every world to leave the loop within max_iterations={most}",
        why="the measure would lack the worlds that go on",
        fix=f"ppl.enumerate(program, max_iterations={10 * most}), or bound the loop in its test",
    )
