"""Loops of some of the lanes: they change no draw, and run side by side only where they may."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import ppl
import ppl.distributions as dist
from ppl import _jax
from ppl.semantics import blocks, lanes
from ppl.semantics.costs import waits
from tests.compiling import compilations

Y = np.array([0.3, -0.5, 1.2], np.float32)


@ppl.model
def line(y):
    a = ppl.sample("a", dist.Normal(0.0, 1.0))
    with ppl.plate("n", 3):
        b = ppl.sample("b", dist.HalfNormal(1.0))
        ppl.sample("y", dist.Normal(a, b), obs=y)


def test_loops_side_by_side_change_no_draw(x64, monkeypatch):
    """One chain a loop, two, or all in one; with momenta drawn in the loop, or for all leaves."""

    def found(most, numbers):
        monkeypatch.setattr(lanes, "MOST", most)
        monkeypatch.setattr(blocks, "NUMBERS", numbers)
        chains = ppl.run(ppl.mcmc(line(Y), ppl.kernels.nuts(), 20, 40, 4), 0, progress=False)
        assert len(chains.underway.lanes.groups) == most
        return chains

    whole = found(1, 2**14)
    for most, numbers in ((2, 2**14), (4, 2**14), (4, 2**10)):
        part = found(most, numbers)
        for name, x in whole.draws.items():
            np.testing.assert_allclose(part[name], x, rtol=1e-6)
        np.testing.assert_array_equal(part.stats["n_steps"], whole.stats["n_steps"])
        for one, other in zip(*map(jax.tree.leaves, (part.state, whole.state)), strict=True):
            assert one.shape == other.shape


@pytest.mark.parametrize(("chains", "number"), [(1, 1), (3, 3), (16, 16), (17, 1), (24, 12)])
def test_loops_are_of_equally_many_chains(chains, number):
    """Their number is not the machine's, as rounding may depend on it."""
    assert lanes._number({"a": jnp.zeros((chains, 2))}) == number


def test_chains_that_would_wait_for_threads_share_a_loop():
    """LAPACK divides a batch among XLA's threads and waits for them: several such calls never end.

    Not in every release of jaxlib. `pure_callback` waits for Python.
    """

    @ppl.model
    def process():
        scale = ppl.sample("scale", dist.HalfNormal(1.0))
        covariance = scale * jnp.eye(3) + 0.1
        ppl.sample("y", dist.MultivariateNormal(0.0, covariance), obs=jnp.ones(3))

    @ppl.model
    def calling():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        like = jax.ShapeDtypeStruct((), x.dtype)
        x = jax.lax.stop_gradient(x)
        ppl.factor("f", jax.pure_callback(np.square, like, x, vmap_method="sequential"))

    for model, length, number in ((process, 200, 1 if _jax.LAPACK_WAITS else 4), (calling, 5, 1)):
        mcmc = ppl.mcmc(model(), ppl.kernels.nuts(), length, length, 4)
        assert len(ppl.run(mcmc, 0, progress=False).underway.lanes.groups) == number


def test_blas_has_one_thread_while_chains_take_all_cores(monkeypatch):
    """And as many as before once they have ended, however they end."""
    if "openblas" not in {x["internal_api"] for x in threadpool_info()}:
        pytest.skip("SciPy's BLAS is not OpenBLAS here, whose threads can be counted")

    def threads():
        return {x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"}

    @ppl.model
    def process():
        scale = ppl.sample("scale", dist.HalfNormal(1.0))
        covariance = scale * jnp.eye(3) + 0.1
        ppl.sample("y", dist.MultivariateNormal(0.0, covariance), obs=jnp.ones(3))

    advance, seen = lanes.Groups.advance, []

    def watched(self, total):
        seen.append(threads())
        advance(self, total)
        raise RuntimeError("enough")

    monkeypatch.setattr(lanes.Groups, "advance", watched)
    monkeypatch.setattr(lanes, "_threads", lambda: 2)
    before = threads()
    with threadpool_limits(2, user_api="blas"):
        for program, chains, number in ((process(), 4, 1), (process(), 1, 2), (line(Y), 4, 2)):
            seen.clear()
            with pytest.raises(RuntimeError, match="enough"):
                ppl.run(ppl.mcmc(program, ppl.kernels.nuts(), 50, 50, chains), 0, progress=False)
            assert seen == [{number}]
            assert threads() == {2}
    assert threads() == before


LIBRARY = {
    "cholesky": jnp.linalg.cholesky,
    "conv": lambda a: jax.lax.conv(a[None, None], a[None, None], (1, 1), "SAME"),
    "eig": jnp.linalg.eig,
    "eigh": jnp.linalg.eigh,
    "expm": jsp.linalg.expm,
    "fft": jnp.fft.fft,
    "hessenberg": jax.lax.linalg.hessenberg,
    "inv": jnp.linalg.inv,
    "in a branch": lambda a: jax.lax.cond(a[0, 0] > 0, jnp.linalg.cholesky, jnp.negative, a),
    "lstsq": lambda a: jnp.linalg.lstsq(a, a)[0],
    "print": lambda a: jax.debug.print("{}", a),
    "qr": jnp.linalg.qr,
    "schur": jsp.linalg.schur,
    "slogdet": jnp.linalg.slogdet,
    "solve_triangular": lambda a: jsp.linalg.solve_triangular(a, a),
    "svd": jnp.linalg.svd,
    "tridiagonal": jax.lax.linalg.tridiagonal,
    "tridiagonal_solve": lambda a: jax.lax.linalg.tridiagonal_solve(a[0], a[0], a[0], a[:, :1]),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_calls_of_libraries_and_of_python_are_known(name):
    """In this release of JAX, whatever its primitives are called there."""
    jaxpr = jax.make_jaxpr(LIBRARY[name])(jnp.eye(3)).jaxpr
    assert waits(jaxpr) == (_jax.LAPACK_WAITS or name in ("conv", "fft", "print"))
    assert not waits(jax.make_jaxpr(lambda a: jnp.exp(a @ a).sum())(jnp.eye(3)).jaxpr)


def test_settings_of_jax_hold_in_loops_side_by_side():
    """In whichever thread they run: in the precision of the caller, and compiled once."""

    def count(num_chains):
        @ppl.model
        def pair():
            with ppl.plate("n", 2):
                ppl.sample("x", dist.Normal(0.0, 1.0))

        mcmc = ppl.mcmc(pair(), ppl.kernels.nuts(), 10, 10, num_chains)
        with compilations() as found:
            chains = ppl.run(mcmc, 0, progress=False)
        assert chains["x"].dtype == np.float64
        assert len(chains.underway.lanes.groups) == num_chains
        return found.count

    with jax.enable_x64(True):
        first = count(2)  # and small things that every run needs
        assert first >= count(2) == count(1)
