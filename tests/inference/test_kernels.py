"""Kernels on traces: their contract, and single-site moves, which are checked exactly."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ppl
import ppl.distributions as dist
from ppl.errors import AddressError, ArgumentError, UnsupportedError
from ppl.inference.single_site import propose
from ppl.inference.trace_kernel import accepted
from ppl.semantics.kernel import started
from ppl.staging import stage
from tests import zoo

B, sample = dist.Bernoulli, ppl.sample
single_site = ppl.kernels.single_site


def exactly(check, kernel, program):
    report = check(kernel, program)
    assert report.false_alarm == 0, report
    return report


# --- Exact invariance ---------------------------------------------------------------------------


@ppl.model
def branching():
    """Sites that come and go, under an observation and a factor, with an impossible run."""
    flag = sample("flag", B(0.3))

    def there():
        a = sample("a", dist.Categorical(probs=jnp.array([0.2, 0.5, 0.3])))
        ppl.factor("f", jnp.array([0.5, -1.0, -jnp.inf])[a])
        return a

    value = lax.cond(flag == 1, there, lambda: sample("b", B(0.6)))
    sample("y", B(jnp.array([0.1, 0.8, 0.4])[value]), obs=1)
    return value


@ppl.model
def plates():
    p = sample("p", B(0.4))
    with ppl.plate("n", 2):
        x = sample("x", B(jnp.where(p == 1, 0.9, 0.2)))
    sample("y", B(jnp.mean(x) * 0.8 + 0.1), obs=0)
    return x


@ppl.model
def chain():
    def step(x, y):
        x = sample("x", B(jnp.where(x == 1, 0.7, 0.2)))
        lax.cond(x == 1, lambda: sample("e", B(0.4)), lambda: 0)
        sample("y", B(jnp.where(x == 1, 0.9, 0.3)), obs=y)
        return x, None

    return lax.scan(step, 0, jnp.array([1, 0]))[0]


@ppl.model
def tempered(power):
    return ppl.scale(ppl.scale(branching.program(), power, ["y", "f"]), 0.5, ["flag"])()


@pytest.mark.parametrize("model", [branching, plates, chain, lambda: tempered(0.3)])
def test_single_site_keeps_the_measure(x64, model):
    assert exactly(ppl.check.invariant, single_site(), model()).passed


def test_single_site_is_reversible(x64):
    assert exactly(ppl.check.reversible, single_site(), branching()).passed


@ppl.kernel
def counting_all(trace):
    """Restricted to "flag" and "a", but the lengths are those of all sites."""
    found, every = propose(trace, ["flag", "a"]), propose_all(trace)
    ratio = found.log_q - found.log_p + jnp.log(every(trace)) - jnp.log(every(found.trace))
    return ppl.choose(accepted(ratio), found.trace, trace)


def propose_all(trace):
    return lambda t: 2 + jnp.sum(t.present["a"]) + jnp.sum(t.present["b"])


def test_single_site_on_some_addresses(x64):
    program = branching()
    assert exactly(ppl.check.invariant, single_site(["flag", "a"]), program).passed
    assert exactly(ppl.check.invariant, single_site("b"), program).passed
    assert exactly(ppl.check.invariant, counting_all, program).verdict == "failed"


def test_a_run_without_the_addresses_stays(x64):
    trace = ppl.trace_of(branching(), {"flag": 1, "a": 1, "b": 0})
    moves = ppl.enumerate(stage(lambda t: single_site("b")(t).canonical[0], (trace,)))
    ((point, mass),) = zip(moves.points, moves.masses, strict=True)
    assert mass == pytest.approx(1.0, rel=1e-12)
    assert {a: int(x) for a, x in point.items()} == {"flag": 1, "a": 1, "b": 0}


@pytest.mark.slow
def test_single_site_on_some_addresses_of_random_programs(x64):
    @hypothesis.settings(max_examples=25, database=None)
    @hypothesis.given(ppl.check.programs(size=5, max_worlds=8, latents=(2, 4)))
    def run(program):
        exactly(ppl.check.invariant, single_site(program.latents[::2]), program).require()

    run()


# --- Continuous sites, impossible states --------------------------------------------------------


@ppl.model
def mixed(y):
    """A site of shifting support, a branch by a continuous site, discrete sites in and out."""
    k = sample("k", B(0.3))
    x = sample("x", dist.Gamma(2.0, 1.0 + k))
    u = lax.cond(
        x > 1.5,
        lambda: sample("u", dist.Uniform(-1.0, x)),
        lambda: sample("b", B(0.5)).astype(float),
    )
    sample("y", dist.Normal(x + u, 1.0), obs=y)
    return x


@pytest.mark.slow
def test_single_site_on_continuous_sites():
    ppl.check.invariant(single_site(), mixed(1.0), key=1, resolution=0.03).require()


KERNELS = {
    "single_site": single_site(),
    "random_walk": ppl.kernels.random_walk(0.5, num_steps=2),
    "hmc": ppl.kernels.hmc(0.3, 2),
}


@pytest.mark.parametrize("name", KERNELS)
def test_impossible_states_give_no_nan(name):
    """All data are impossible: nothing is left to compare, and every density stays -inf."""

    @ppl.model
    def dead():
        x = sample("x", dist.Uniform(0.0, 1.0))
        sample("y", dist.Uniform(0.0, x), obs=2.0)

    trace = ppl.trace_of(dead(), {"x": 0.5})
    moved = ppl.run(KERNELS[name](trace), 0)
    assert float(moved.log_density) == -np.inf
    assert not any(np.isnan(x).any() for x in jax.tree.leaves(moved))


# --- The contract -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_a_thousand_traces_in_a_loop(name):
    """Under vmap and scan, from posterior draws to posterior draws: mu is normal, and stays so."""
    program, answer = zoo.normal_normal(zoo.NORMAL_DATA), zoo.normal_normal_answer()

    @ppl.model
    def many(kernel, program, count=1000):
        def one(_):
            mu = sample("start", dist.Normal(answer.mean, answer.sd))
            trace = ppl.trace_of(program, {"mu": mu})
            trace, _ = lax.scan(lambda t, _: (kernel(t), None), trace, length=10)
            return mu, trace.choices["mu"]

        return jax.vmap(one)(jnp.arange(count))

    start, end = (np.asarray(x, float) for x in ppl.run(many(KERNELS[name], program), 3))
    assert np.mean(start != end) > 0.3
    z = (end - answer.mean) / answer.sd
    # Two z-scores, each beyond 5 with probability 6e-7: false alarms about once in a million.
    assert abs(np.mean(z)) * np.sqrt(1000) < 5
    assert abs(np.mean(z**2) - 1) * np.sqrt(1000 / 2) < 5


def test_settings_are_data():
    """Two kernels that differ in arrays share their structure; static settings do not."""
    trace = ppl.trace_of(zoo.normal_normal(zoo.NORMAL_DATA), {"mu": 0.0})

    def structure(kernel):
        return stage(lambda k, t: k(t), (kernel, trace)).structure, kernel(trace).structure

    walk, hmc = ppl.kernels.random_walk, ppl.kernels.hmc
    assert structure(walk(0.1))[1] is structure(walk(0.2))[1]
    assert structure(walk(0.1))[1] is not structure(walk(0.1, num_steps=2))[1]
    assert structure(hmc(0.1, 3))[1] is structure(hmc(0.2, 3))[1]
    assert structure(single_site())[1] is structure(single_site())[1]
    assert isinstance(walk(0.1), ppl.Kernel)


def test_traces_of_runs_can_be_moved():
    """Their density is not known yet."""
    program = zoo.normal_normal(zoo.NORMAL_DATA)
    trace = ppl.trace(program, 0)
    for kernel in KERNELS.values():
        moved = ppl.run(kernel(trace), 1)
        wanted = ppl.log_density(program, moved.choices)
        assert float(moved.log_density) == pytest.approx(float(wanted), rel=1e-5)


def test_a_kernel_may_be_an_attribute():
    class Holder:
        kernel = single_site()

    assert Holder().kernel is Holder.kernel


def test_programs_without_choices_stay_as_they_are():
    program = ppl.model(lambda: ppl.factor("f", 0.5))()
    trace = ppl.trace_of(program, {})
    assert float(ppl.run(single_site()(trace), 0).log_weight) == 0.5


# --- Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        single_site,
        lambda a: ppl.kernels.random_walk(0.1, addresses=a),
        lambda a: ppl.kernels.hmc(0.1, 2, addresses=a),
    ],
)
def test_bad_addresses_are_refused(make):
    trace = ppl.trace_of(zoo.normal_normal(zoo.NORMAL_DATA), {"mu": 0.0})
    with pytest.raises(AddressError, match=r'unknown address "nu".*Did you mean "mu"'):
        make(["nu"])(trace)
    with pytest.raises(AddressError, match=r'unknown address "y"'):
        make("y")(trace)
    for bad in ([], ["mu", "mu"], [1]):
        with pytest.raises(AddressError, match="needs one or more different addresses"):
            make(bad)
    with pytest.raises(ArgumentError, match="needs a trace that knows its program"):
        make(["mu"])(dataclasses.replace(trace, program=None))


def test_flat_priors_cannot_be_redrawn_and_may_be_held():
    trace = ppl.trace_of(zoo.flat_normal(zoo.NORMAL_DATA), {"mu": 0.0})
    with pytest.raises(UnsupportedError, match=r'single_site got the improper .* at "mu".*random_'):
        single_site()(trace)

    @ppl.model
    def two():
        mu = sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        return sample("x", dist.Normal(mu, 1.0))

    trace = ppl.trace_of(two(), {"mu": 3.0, "x": 0.0})
    moved = ppl.run(single_site("x")(trace), 0)
    assert float(moved.choices["mu"]) == 3.0
    assert float(moved.choices["x"]) != 0.0


def test_unknown_settings_are_refused():
    with pytest.raises(ArgumentError, match=r"single_site got the unknown keyword adresses"):
        single_site(adresses=["x"])
    with pytest.raises(ArgumentError, match=r"random_walk got the unknown keyword step"):
        ppl.kernels.random_walk(0.1, step=2)


def test_kernels_start_from_the_program_too(x64):
    """As `ppl.check.invariant` does, in a model of one's own."""
    program = branching()

    def run(kernel, program):
        with ppl.scope("move"):
            return kernel(started(program)).value

    after = ppl.enumerate(stage(run, (single_site(), program), name="after"))
    assert after.total_variation(ppl.enumerate(program)) < 1e-10
