"""Known bugs, reinstated one by one: the checks must accept the correct version and reject these.

On every one of 120 random programs (60 for kernels, whose exact checks take long) the correct
algorithm passes. A mutant is the correct algorithm on many programs (one without scores cannot lose
its evidence), so it must fail on some of them; how many is printed (`pytest -rP`) and bounded from
below.
"""

import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.check import invariant, preserves, programs, source, unbiased
from tests.mutants import gradients, populations, single_site

pytestmark = pytest.mark.usefixtures("x64")

COUNT, FEWER = 120, 60


def census(strategy, correct, mutants, check, count=COUNT):
    """Check everything on random programs; give, by name, on how many each mutant failed."""
    rejected = dict.fromkeys(mutants, 0)
    seen = [0]

    @hypothesis.settings(max_examples=count, database=None)
    @hypothesis.given(strategy)
    def run(program):
        seen[0] += 1
        check(correct, program).require()
        for name, mutant in mutants.items():
            rejected[name] += check(mutant, program).verdict == "failed"

    run()
    assert seen[0] == count
    for name, times in rejected.items():
        print(f"{name}: rejected on {times} of {count} programs")
    return rejected


def exactly(check, *args):
    """Run a check that must not fall back on draws."""
    report = check(*args)
    assert report.false_alarm == 0
    return report


# --- Single-site Metropolis-Hastings ------------------------------------------------------------


def keeps_choices(kernel, program):
    return exactly(invariant, kernel, program)


@pytest.mark.slow
def test_single_site_metropolis_hastings():
    """Sites come and go, and supports shift, in these programs; the correct ratio covers it."""
    mutants = {
        "monad-bayes, q m n / p": single_site.precedence,
        "q n p / m": single_site.swapped,
    }
    strategy = programs(size=5, max_worlds=8)
    rejected = census(strategy, single_site.single_site, mutants, keeps_choices, FEWER)
    assert all(times >= 5 for times in rejected.values())


@pytest.mark.slow
def test_the_smallest_program_that_tells():
    """Two bits, the second given the first: lengths matter, and some moves are rejected."""
    smallest = hypothesis.find(
        programs(size=4, max_worlds=8, control_flow=(), distributions=("Bernoulli",)),
        lambda program: not invariant(single_site.precedence, program),
        settings=hypothesis.settings(max_examples=200, database=None),
    )
    assert [site.kind for site in smallest.sites] == ["latent", "latent"], source(smallest)


@pytest.mark.slow
def test_a_branch_is_entered_with_its_ratio():
    mutants = {
        "GenJAX, no ratio across branches": single_site.no_branch_ratio,
        "q / p": single_site.no_lengths,
    }
    strategy = programs(size=5, max_worlds=8, latents=(2, 4), control_flow=("cond", "switch"))
    rejected = census(strategy, single_site.single_site, mutants, keeps_choices, 100)
    assert min(rejected.values()) >= 5


@pytest.mark.slow
def test_the_current_density_is_up_to_date():
    """Seen in where the second move leads, without the note that traces keep of themselves."""
    mutants = {"monad-bayes, stale density": single_site.two_moves_of_stale_density}
    strategy = programs(size=4, max_worlds=6)
    rejected = census(strategy, single_site.two_moves, mutants, keeps_choices, FEWER)
    assert min(rejected.values()) >= 5


@pytest.mark.slow
def test_a_trace_that_says_something_stale_is_found_after_one_move():
    strategy = programs(size=4, max_worlds=8)
    mutants = {"a stale trace": single_site.stale}
    rejected = census(strategy, single_site.single_site, mutants, keeps_choices, FEWER)
    assert min(rejected.values()) >= 5


@ppl.model
def coins():
    x = ppl.sample("x", dist.Bernoulli(0.5))
    ppl.sample("y", dist.Bernoulli(0.5))
    ppl.factor("f", jnp.where(x == 1, jnp.log(0.2), 0.0))
    return x


@ppl.model
def flagged():
    """A fair flag; the branches' likelihoods differ by 2.5 nats. Each branch has a site."""

    def there():
        ppl.sample("a", dist.Bernoulli(0.5))
        ppl.factor("f", -2.5)

    def here():
        ppl.sample("b", dist.Bernoulli(0.5))

    flag = ppl.sample("flag", dist.Bernoulli(0.5))
    jax.lax.cond(flag == 1, there, here)
    return flag


def stationary(kernel, program, address):
    """P(address = 1) after ever more moves: from the kernel's matrix, by enumeration."""
    start = ppl.enumerate(single_site.states(program))
    rows = [ppl.enumerate(single_site.moved(kernel, program, x)) for x in start.points]
    matrix = np.array([[row.mass(x) for x in start.points] for row in rows])
    np.testing.assert_allclose(matrix.sum(1), 1.0, rtol=1e-12)  # no move leaves the support
    # The only solution of pi P = pi, sum pi = 1: the chain reaches every state.
    n = len(matrix)
    system = np.vstack([matrix.T - np.eye(n), np.ones(n)])
    law, _, rank, _ = np.linalg.lstsq(system, np.append(np.zeros(n), 1.0))
    assert rank == n
    return sum(p for p, (choices, _) in zip(law, start.points, strict=True) if choices[address])


@pytest.mark.parametrize(
    ("kernel", "program", "address", "expected"),
    [
        # From x = 0 to 1 with min(1, 0.2), back with 1: odds 0.2, which is 1/6.
        (single_site.single_site, coins, "x", 1 / 6),
        # Two sites before and after: min(1, 0.2 * 4) and 1, so odds 0.8, which is 4/9.
        (single_site.precedence, coins, "x", 4 / 9),
        # 0.2 both ways.
        (single_site.swapped, coins, "x", 1 / 2),
        (single_site.single_site, flagged, "flag", 1 / (1 + np.exp(2.5))),
        # Every move across is accepted. (0.4985 was a Monte Carlo estimate of this.)
        (single_site.no_branch_ratio, flagged, "flag", 1 / 2),
    ],
)
def test_stationary_laws_in_closed_form(kernel, program, address, expected):
    assert stationary(kernel, program(), address) == pytest.approx(expected, rel=1e-10)
    found = ppl.enumerate(program()).normalize().mass(1)
    assert invariant(kernel, program()).passed == (abs(found - expected) < 1e-10)


def test_the_numbers_of_the_bug_reports():
    """As they were published, to the digits that were given."""
    assert stationary(single_site.precedence, coins(), "x") == pytest.approx(0.444, abs=5e-4)
    assert stationary(single_site.single_site, coins(), "x") == pytest.approx(0.167, abs=5e-4)
    assert stationary(single_site.single_site, flagged(), "flag") == pytest.approx(0.0759, abs=5e-5)


# --- Populations --------------------------------------------------------------------------------


def keeps_measure(transformer, program):
    return exactly(preserves, transformer, program)


def keeps_lanes(transformer, program):
    """Two lanes of a `vmap` are two independent runs."""
    return exactly(preserves, lambda _: transformer(program), populations.in_sequence(program))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("correct", "mutant", "check", "least"),
    [
        (populations.spawn, populations.unnormalised_spawn, keeps_measure, COUNT),
        (populations.smc, populations.smc_without_evidence, keeps_measure, COUNT // 2),
        (populations.tempered, populations.tempered_without_correction, keeps_measure, 10),
        (populations.two_lanes, populations.two_lanes_with_one_draw, keeps_lanes, COUNT // 2),
    ],
    ids=["spawn", "resampling", "tempering", "vmap"],
)
def test_populations(correct, mutant, check, least):
    strategy = programs(size=5, max_worlds=8, observations=True)
    rejected = census(strategy, correct, {mutant.__name__: mutant}, check)
    assert min(rejected.values()) >= least


# --- Gradients ----------------------------------------------------------------------------------


@ppl.model
def normals(loc, scale):
    return ppl.sample("x", dist.Normal(loc, scale))


def gaussians():
    """Independent normals of all sorts: one structure, so that compiled code is shared."""
    st = hypothesis.strategies
    two = lambda low, high: st.tuples(*[st.floats(low, high)] * 2).map(np.array)  # noqa: E731
    return st.builds(normals, two(-3, 3), two(0.6, 1.6))


def keeps_law(kernel, program):
    """By draws: fails on no more than one in a million of such series if the kernel is right."""
    return invariant(kernel, program, key=17, false_alarm=1e-6 / COUNT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("correct", "mutant"),
    [
        (gradients.mala, gradients.mala_with_one_noise),
        (gradients.hmc, gradients.hmc_without_momentum),
    ],
    ids=["mala", "hmc"],
)
def test_gradient_kernels(correct, mutant):
    rejected = census(gaussians(), correct, {mutant.__wrapped_model__.__name__: mutant}, keeps_law)
    assert min(rejected.values()) >= COUNT // 2


def exact_gradient(phi, table, count):
    """The gradient of E[log mean w], summed over all draws."""
    every = jnp.array(list(itertools.product((0, 1), repeat=2 * count))).reshape(-1, count, 2)

    def bound(phi):
        def term(z):
            probability = jnp.exp(jnp.sum(gradients.log_guide(phi, z)))
            return probability * gradients.bound_of(phi, table, z)

        return jnp.sum(jax.vmap(term)(every))

    return jax.grad(bound)(phi)


def targets():
    """A guide, and log joint probabilities of two bits."""
    st = hypothesis.strategies
    numbers = lambda *shape: st.lists(  # noqa: E731
        st.floats(-3, 3), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))
    ).map(lambda x: jnp.array(x).reshape(shape))
    return st.tuples(numbers(2), numbers(2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("correct", [gradients.iwae, gradients.iwae_with_baseline])
@pytest.mark.parametrize("count", [2, 3])
def test_gradients_of_importance_weighted_bounds(correct, count):
    gradient = jax.jit(exact_gradient, static_argnums=2)

    def check(estimator, target):
        return exactly(unbiased, estimator(*target, count), gradient(*target, count))

    mutants = {
        "its own draw in the baseline": gradients.iwae_with_own_baseline,
        "signals of one draw": gradients.iwae_with_single_signals,
        "no score term": gradients.iwae_without_scores,
    }
    rejected = census(targets(), correct, mutants, check)
    assert all(times >= COUNT // 2 for times in rejected.values())
