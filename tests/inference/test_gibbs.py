"""Exact Gibbs: what it draws is the conditional distribution, at once only where that is right."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import stats

import ppl
import ppl.distributions as dist
from ppl.errors import AddressError, ArgumentError, UnsupportedError
from ppl.inference.gibbs import ByInversion, gibbs
from ppl.semantics.kernel import choices_of
from ppl.semantics.slices import sliced_density
from ppl.staging import stage
from tests.compiling import compilations
from tests.mutants.single_site import moved, states

B, sample = dist.Bernoulli, ppl.sample


def exactly(check, kernel, program):
    report = check(kernel, program)
    assert report.false_alarm == 0, report
    return report


# --- Models, and how each of their addresses is drawn -------------------------------------------


@ppl.model
def mixture(y):
    b = sample("b", B(0.4))
    with ppl.plate("n", y.shape[0]):
        z = sample("z", dist.Categorical(jnp.array([0.5, 0.3, 0.2])))
        sample("y", dist.Normal(jnp.array([0.0, 1.0, 3.0])[z] + b, 1.0), obs=y)
    return jnp.sum(z)  # members meet here, but no term of the density does


@ppl.model
def row(size):
    """An Ising row: neighbours meet."""
    with ppl.plate("n", size):
        s = sample("s", B(0.4))
    ppl.factor("f", 0.8 * jnp.sum(s[1:] == s[:-1]))
    return s


@ppl.model
def hidden(y):
    p = sample("p", B(0.3))

    def step(x, y):
        x = sample("x", B(jnp.array([0.2, 0.6])[(x + p) % 2]))
        sample("y", B(0.1 + 0.7 * x), obs=y)
        return x, x

    return lax.scan(step, 0, y)[1]


@ppl.model
def lanes(y):
    """Members that `vmap` makes, with events of their own."""

    def one(y):
        z = sample("z", dist.Multinomial(2, jnp.array([0.2, 0.3, 0.5])))
        sample("y", B(0.1 + 0.4 * z[1]), obs=y)

    jax.vmap(one)(y)


@ppl.model
def moving():
    """A flag that decides which sites there are, twice; a site in two branches of one address."""
    a = sample("a", B(0.3))

    def there():
        c = sample("c", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
        sample("y", B(0.2 + 0.3 * c), obs=1)
        return c

    c = lax.cond(a == 1, there, lambda: 2)
    d = sample("d", B(0.1 + 0.4 * c))
    u = lax.cond(d == 1, lambda: sample("u", B(0.7)), lambda: sample("u", B(0.2)))
    ppl.factor("f", -0.9 * u)
    return c + d


@ppl.model
def chain():
    """A site that comes and goes with the iterations of another."""

    def step(x, y):
        x = sample("x", B(jnp.where(x == 1, 0.7, 0.2)))
        lax.cond(x == 1, lambda: sample("e", B(0.4)), lambda: 0)
        sample("y", B(jnp.where(x == 1, 0.9, 0.3)), obs=y)
        return x, None

    return lax.scan(step, 0, jnp.array([1, 0]))[0]


@ppl.model
def impossible():
    """Hard constraints: some states have probability zero, given anything."""
    a = sample("a", B(0.5))
    with ppl.plate("n", 2):
        z = sample("z", B(jnp.where(a == 1, 1.0, 0.3)))
        sample("y", B(jnp.where(z == 1, 0.6, 0.0)), obs=jnp.array([1, 0]))


@ppl.model
def elements():
    """An event of separate elements, of members that are a drawn subset."""
    with ppl.plate("n", 2, subsample_size=1) as i:
        z = sample("z", B(jnp.stack([0.2 + 0.5 * i, 0.4 + 0.0 * i], -1)).to_event(1))
    ppl.factor("f", 0.5 * z[0, 0] * z[0, 1])


MODELS = {
    "mixture": (lambda: mixture(jnp.array([0.3, 2.0])), {"z": "at once", "b": "at once"}),
    "row": (lambda: row(3), {"s": "in turn"}),
    "hidden": (lambda: hidden(jnp.array([1, 0, 1])), {"x": "at once", "p": "at once"}),
    "lanes": (lambda: lanes(jnp.array([1, 0])), {"z": "at once"}),
    "moving": (
        moving,
        {"a": "in turn", "c": "at once", "d": "in turn", "u": "in turn"},
    ),
    "chain": (chain, {"x": "in turn", "e": "at once"}),
    "elements": (elements, {"z": "in turn", "n": "at once"}),
    "impossible": (impossible, {"a": "at once", "z": "at once"}),
}


def way(kernel, program):
    """Whether a kernel draws all members of its address at once: in the order of its draws."""
    choices = {s.address: jnp.zeros(s.shape, s.dtype) for s in program.sites if s.kind == "latent"}
    sites = kernel(ppl.trace_of(program, choices)).sites
    loops = [s.path for s in sites if s.address in [f"{a}/draw" for a in kernel.addresses]]
    return "in turn" if any(loops) else "at once"


@pytest.mark.parametrize("name", MODELS)
def test_gibbs_keeps_the_measure(x64, name):
    make, ways = MODELS[name]
    program = make()
    assert exactly(ppl.check.invariant, gibbs(), program).passed
    for address, how in ways.items():
        kernel = gibbs(addresses=address)
        if how == "at once" or (name, address) == ("moving", "a"):
            assert exactly(ppl.check.reversible, kernel, program).passed
        assert way(kernel, program) == how, address


@pytest.mark.parametrize(
    ("name", "address"),
    [(n, a) for n, (_, ways) in MODELS.items() for a, how in ways.items() if how == "at once"],
)
def test_what_is_drawn_at_once_is_the_conditional_distribution(x64, name, address):
    """Not only invariant, but forgetting the old."""
    program = MODELS[name][0]()

    start = ppl.enumerate(states(program))
    possible = [x for x, mass in zip(start.points, start.masses, strict=True) if mass > 0]
    for state in (possible[0], possible[-1]):
        rest = {a: jnp.asarray(x) for a, x in state[0].items() if a != address}
        given = ppl.enumerate(stage(conditional, (program, rest), name="given"))
        after = ppl.enumerate(moved(gibbs(addresses=address), program, state))
        assert after.total_variation(given.normalize()) < 1e-10


def conditional(program, rest):
    """The choices of a program, some of them observed."""
    own = choices_of(ppl.condition(program, rest))()
    return ppl.trace_of(program, {**rest, **own}).canonical


# --- Random programs ----------------------------------------------------------------------------


def is_checked(kernel, program):
    """Check exactly; tell whether that was possible (a support may move with others)."""
    try:
        report = exactly(ppl.check.invariant, kernel, program)
    except UnsupportedError as error:
        if "whose support is not known when the program is staged" not in str(error):
            raise
        return False
    return bool(report.require())


def on_random_programs(count, strategy, kernel=lambda program: gibbs()):
    checked = [0]

    @hypothesis.settings(max_examples=count, database=None)
    @hypothesis.given(strategy)
    def run(program):
        checked[0] += is_checked(kernel(program), program)

    run()
    assert checked[0] > 0.8 * count


def test_gibbs_on_random_programs(x64):
    on_random_programs(12, ppl.check.programs(size=5, max_worlds=8, latents=(1, 4)))


@pytest.mark.slow
@pytest.mark.parametrize("some", ["plate vmap scan", "cond switch scan plate"])
def test_gibbs_on_random_control_flow(x64, some):
    strategy = ppl.check.programs(
        size=6, max_worlds=16, latents=(2, 5), observations=True, control_flow=tuple(some.split())
    )
    on_random_programs(30, strategy, lambda p: gibbs(addresses=p.latents[::-1]))


# --- Mutants ------------------------------------------------------------------------------------


@ppl.kernel
def in_parallel(trace):
    """All members at once, each given the old values of the others."""
    old = trace.choices["s"]
    density = sliced_density(trace.program, "s")

    def weights(i):
        at = lambda v: density.at({"s": old.at[i].set(v)}).log_density  # noqa: E731
        return jax.vmap(at)(jnp.arange(2))

    logits = jax.vmap(weights)(jnp.arange(old.size))
    return trace.with_choices({"s": sample("s/draw", dist.CategoricalLogits(logits))})


@ppl.kernel
def with_other_sites(trace):
    """A flag drawn by the density of what its branches would have, whatever sites they have."""
    density = sliced_density(trace.program, "a")
    weights = jax.vmap(lambda a: density.at({**trace.choices, "a": a}).log_density)(jnp.arange(2))
    return trace.with_choices({"a": sample("a/draw", dist.CategoricalLogits(weights))})


@pytest.mark.parametrize(
    ("mutant", "program"), [(in_parallel, lambda: row(3)), (with_other_sites, moving)]
)
def test_mutants_are_rejected(x64, mutant, program):
    assert exactly(ppl.check.invariant, mutant, program()).verdict == "failed"


def test_members_that_do_not_meet_may_be_drawn_in_parallel(x64):
    """The mutant is wrong because of what it is applied to."""

    @ppl.model
    def apart():
        with ppl.plate("n", 3):
            s = sample("s", B(0.4))
            ppl.factor("f", 0.8 * s)

    assert exactly(ppl.check.invariant, in_parallel, apart()).passed


# --- Drawing by inversion -----------------------------------------------------------------------


def test_inversion_draws_from_the_law():
    """A chi-squared test of each row, together false in one of a million cases."""
    probs = np.array([[0.1, 0.0, 0.6, 0.3], [0.0, 0.25, 0.75, 0.0], [0.0, 0.2, 0.0, 0.8]])
    with np.errstate(divide="ignore"):
        law = ByInversion(jnp.asarray(np.log(probs) - 50.0, jnp.float32), validate_args=False)
    draws = np.asarray(law.sample(jax.random.key(0), (20_000,)))
    assert draws.shape == (20_000, 3)
    for row, p in zip(draws.T, probs, strict=True):
        counts = np.bincount(row, minlength=4)
        assert counts[p == 0].sum() == 0
        assert stats.chisquare(counts[p > 0], 20_000 * p[p > 0]).pvalue > 1e-6 / 3


def test_inversion_never_draws_what_is_impossible():
    """With many values, rounding makes sums that should be equal differ."""
    logits = jnp.where(jnp.arange(1000) % 3 == 0, 0.1 * jnp.sin(jnp.arange(1000.0)), -jnp.inf)
    draws = ByInversion(logits, validate_args=False).sample(jax.random.key(1), (50_000,))
    assert (np.asarray(draws) % 3 == 0).all()


# --- Cost ---------------------------------------------------------------------------------------


def test_a_plate_takes_as_many_evaluations_as_there_are_values():
    num = 50
    program = mixture(jnp.zeros(num))
    trace = ppl.trace_of(program, {"b": 0, "z": jnp.zeros(num, int)})
    jaxpr = gibbs(addresses="z")(trace).structure.jaxpr
    largest = max(v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars)
    assert largest == 3 * num
    assert "scan" not in {eqn.primitive.name for eqn in jaxpr.eqns}


def test_new_data_compile_nothing():
    def trace(y, z):
        return ppl.trace_of(mixture(y), {"b": 1, "z": z})

    first = trace(jnp.array([0.0, 1.0]), jnp.array([0, 1]))
    second = trace(jnp.array([2.0, 1.0]), jnp.array([2, 1]))
    ppl.run(gibbs()(first), 0)
    with compilations() as found:
        ppl.run(gibbs()(second), 1)
    assert found.count == 0


# --- States of density zero, refusals -----------------------------------------------------------


def test_impossible_states_give_no_nan():
    program = impossible()

    @ppl.model
    def dead():
        value = program()
        ppl.factor("never", -jnp.inf)
        return value

    choices = {s.address: jnp.zeros(s.shape, int) for s in program.sites if s.kind == "latent"}
    moved = ppl.run(gibbs()(ppl.trace_of(dead(), choices)), 0)
    assert float(moved.log_density) == -np.inf
    assert not any(np.isnan(x).any() for x in jax.tree.leaves(moved))


def test_where_no_value_is_possible_a_member_stays():
    @ppl.model
    def stuck():
        with ppl.plate("n", 3):
            s = sample("s", dist.Categorical(jnp.ones(4)))
        ppl.factor("f", jnp.where(jnp.sum(s) == 100, 0.0, -jnp.inf))

    trace = ppl.trace_of(stuck(), {"s": jnp.array([3, 1, 2])})
    assert ppl.run(gibbs()(trace), 0).choices["s"].tolist() == [3, 1, 2]


@ppl.model
def kinds(total):
    x = sample("x", dist.Normal(0.0, 1.0))
    sample("n", dist.Poisson(jnp.exp(x)))
    sample("k", dist.Binomial(total, 0.3))
    sample("b", B(0.3))


def test_refusals():
    trace = ppl.trace_of(kinds(3), {"x": 0.0, "n": 0, "k": 0, "b": 0})
    with pytest.raises(UnsupportedError, match=r'"x" .*Fix: ppl.kernels.hmc.*ppl.kernels.on\('):
        gibbs(addresses=["x"])(trace)
    with pytest.raises(UnsupportedError, match=r'"n" .*has more than 100000 values.*single_site\('):
        gibbs(addresses=["n"])(trace)
    traced = ppl.trace_of(kinds(jnp.array(3)), trace.choices)
    with pytest.raises(UnsupportedError, match=r'"k" .*not known when the program is staged'):
        gibbs(addresses=["k"])(traced)
    with pytest.raises(AddressError, match=r'gibbs got unknown address "z"'):
        gibbs(addresses=["z"])(trace)
    with pytest.raises(AddressError, match="gibbs got addresses="):
        gibbs(addresses=[])
    with pytest.raises(ArgumentError, match="gibbs got the unknown keyword adresses"):
        gibbs(adresses=["z"])
    with pytest.raises(UnsupportedError, match="which has no latent site of finite support"):
        gibbs()(ppl.trace_of(ppl.model(lambda: sample("x", dist.Normal(0.0, 1.0)))(), {"x": 0.0}))


def test_all_finite_latents_are_drawn_and_the_others_held():
    trace = ppl.trace_of(kinds(3), {"x": 0.5, "n": 2, "k": 0, "b": 0})
    ends = [ppl.run(gibbs()(trace), key).choices for key in range(20)]
    assert {float(c["x"]) for c in ends} == {0.5}
    assert {int(c["n"]) for c in ends} == {2}
    assert len({int(c["k"]) for c in ends}) > 1
    assert len({int(c["b"]) for c in ends}) > 1
