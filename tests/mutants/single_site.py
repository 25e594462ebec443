"""`ppl.kernels.single_site`, and what it could get wrong.

The ratio is q n / (p m): see `ppl/inference/single_site.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

import ppl
from ppl.inference.single_site import propose
from ppl.inference.trace_kernel import accepted
from ppl.semantics.kernel import started
from ppl.staging import stage

single_site = ppl.kernels.single_site()


def _mutant(trace: ppl.Trace, log_ratio: Any) -> ppl.Trace:
    """Redraw one site, and accept by another ratio."""
    if not trace.choices:
        return trace
    found = propose(trace)
    return ppl.choose(accepted(log_ratio(found)), found.trace, trace)


def _q_over_p(found: Any) -> Any:
    return found.log_q - found.log_p


def _correct(found: Any) -> Any:
    return _q_over_p(found) + jnp.log(found.n) - jnp.log(found.m)


# --- Mutants ------------------------------------------------------------------------------------


@ppl.kernel
def precedence(trace):
    """monad-bayes' artifact: (q m / p) n, where the brackets of q n / (p m) were left out."""
    return _mutant(trace, lambda x: _q_over_p(x) + jnp.log(x.m) + jnp.log(x.n))


@ppl.kernel
def swapped(trace):
    """The product and quotient of q n / (p m) exchanged: q n p / m."""
    return _mutant(trace, lambda x: x.log_q + x.log_p + jnp.log(x.n) - jnp.log(x.m))


@ppl.kernel
def no_lengths(trace):
    """The numbers of sites forgotten: q / p."""
    return _mutant(trace, _q_over_p)


@ppl.kernel
def no_branch_ratio(trace):
    """GenJAX's update of a branch: where another branch is taken the densities are not compared."""

    def ratio(x):
        possible = x.trace.log_density > -jnp.inf
        return jnp.where(x.branched & possible, 0.0, _correct(x))

    return _mutant(trace, ratio)


@ppl.kernel
def two_moves(trace):
    """Two moves, one after the other."""
    with ppl.scope("one"):
        trace = single_site(trace)
    with ppl.scope("two"):
        return single_site(trace)


@ppl.kernel
def two_moves_of_stale_density(trace):
    """The second move compares with the density that the first one started from."""
    with ppl.scope("one"):
        moved = single_site(trace)
    with ppl.scope("two"):
        moved = single_site(dataclasses.replace(moved, _log_density=trace.log_density))
    return moved.with_choices({})


@ppl.kernel
def stale(trace):
    """The trace that is returned carries the density it had before the move."""
    return dataclasses.replace(single_site(trace), _log_density=trace.log_density)


# --- What a kernel does, as programs ------------------------------------------------------------


def states(program: ppl.Program) -> ppl.Program:
    """The choices of a program's runs, and which exist."""
    return stage(lambda p: started(p).canonical, (program,), name="states")


def moved(kernel: Any, program: ppl.Program, state: Any) -> ppl.Program:
    """Where one move from a state leads."""

    def run(program: ppl.Program, choices: Any) -> Any:
        return kernel(ppl.trace_of(program, choices)).canonical

    choices = {a: jnp.asarray(x) for a, x in state[0].items()}
    return stage(run, (program, choices), name="moved")
