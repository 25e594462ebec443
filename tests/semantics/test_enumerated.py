"""`enumerate` under every control-flow construct, against plain Python that walks every run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from numpy.testing import assert_allclose

import ppl
import ppl.distributions as dist
from ppl.errors import AddressError, ArgumentError, DistributionError, UnsupportedError
from ppl.semantics.worlds import candidates
from tests import zoo
from tests.check import oracle
from tests.compiling import compilations
from tests.semantics import finite_nested_cases, walks
from tests.semantics.finite_cases import CASES

B, C, sample, factor = dist.Bernoulli, dist.Categorical, ppl.sample, ppl.factor

pytestmark = pytest.mark.usefixtures("x64")
assert finite_nested_cases  # its cases stand in the same table


@pytest.mark.parametrize("name", CASES)
def test_control_flow_means_what_plain_loops_say(name):
    walks.check(ppl.enumerate(ppl.model(CASES[name].model)()), CASES[name].ref)


@pytest.mark.parametrize("name", CASES)
def test_weighing_and_tracing_keep_the_measure(name):
    program = ppl.model(CASES[name].model)()
    wanted = ppl.enumerate(program)
    assert ppl.enumerate(ppl.extract(ppl.weighted(program))).total_variation(wanted) < 1e-10
    places = [site.placed for site in program.sites if site.kind == "latent"]
    if any(place.whiles for place in places):
        with pytest.raises(UnsupportedError, match="while_loop"):
            ppl.traced(program)
    else:
        assert ppl.enumerate(ppl.extract(ppl.traced(program))).total_variation(wanted) < 1e-10


# --- Handlers -----------------------------------------------------------------------------------


def test_two_coins_by_hand():
    measure = ppl.enumerate(zoo.two_coins())
    assert {(int(a), int(b)) for (a, b), _ in measure} == zoo.TWO_COINS.keys()
    for point, mass in zoo.TWO_COINS.items():
        assert_allclose(measure.mass(point), mass, rtol=1e-10)
    assert_allclose(measure.total_mass, zoo.TWO_COINS_EVIDENCE, rtol=1e-10)


def test_handlers_change_the_measure_as_they_say():
    """P(a, b) = P(a) P(b | a) w(a, b); each handler drops, repeats or fixes one of the three."""
    p = zoo.two_coins()
    mass = lambda q: {(int(a), int(b)): m for (a, b), m in ppl.enumerate(q)}  # noqa: E731
    pa, pb = {0: 0.7, 1: 0.3}, {0: (0.8, 0.2), 1: (0.1, 0.9)}
    weight = lambda a, b: 0.25 if a == b else 1.0  # noqa: E731
    expected = {
        ppl.condition(p, {"b": 1}): {(a, 1): pa[a] * pb[a][1] * weight(a, 1) for a in (0, 1)},
        ppl.do(p, {"b": 1}): {(a, 1): pa[a] * weight(a, 1) for a in (0, 1)},
        ppl.do(p, {"a": 1}): {(1, b): pb[1][b] * weight(1, b) for b in (0, 1)},
        ppl.mask(p, False, ["equal"]): {(a, b): pa[a] * pb[a][b] for a in (0, 1) for b in (0, 1)},
        ppl.scale(p, 3.0, ["a", "equal"]): {
            (a, b): pa[a] ** 3 * pb[a][b] * weight(a, b) ** 3 for a in (0, 1) for b in (0, 1)
        },
        ppl.scale(p, 0.0, ["a"]): {(a, b): pb[a][b] * weight(a, b) for a in (0, 1) for b in (0, 1)},
        ppl.unobserve(ppl.condition(p, {"b": 1}), ["b"]): zoo.TWO_COINS,
    }
    for program, wanted in expected.items():
        found = mass(program)
        assert found.keys() == wanted.keys()
        assert_allclose([found[k] for k in wanted], list(wanted.values()), rtol=1e-10)


def test_replay_fixes_draws_and_does_not_weigh_them():
    p = zoo.two_coins()
    measure = ppl.enumerate(ppl.replay(p, {"a": 1}))
    assert_allclose(measure.mass((1, 0)), 0.1, rtol=1e-10)
    assert_allclose(measure.mass((1, 1)), 0.9 * 0.25, rtol=1e-10)
    assert len(measure) == 2


def test_handlers_inside_loops_and_branches():
    """Observe, scale and mask sites of a scan with a branch; the reference is a plain walk."""

    @ppl.model
    def model():
        def step(c, p):
            b = sample("b", B(p))

            def yes():
                z = sample("z", B(0.3))
                sample("y", B(0.2 + 0.6 * z), obs=1)
                return z

            return (c := c + lax.cond(b == 1, yes, lambda: 2)), c

        return lax.scan(step, 0, jnp.array([0.3, 0.6]))

    def ref(w, seen=(None, None), power=1.0, kept=(True, True)):
        c, out = 0, []
        for t, p in enumerate((0.3, 0.6)):
            if seen[t] is None:
                b = w.draw("b", p)
            else:
                b = seen[t]
                w.score(np.log(p if b else 1 - p))
            if b:
                z = w.draw("z", 0.3)
                w.score((power - 1) * np.log(0.3 if z else 0.7))
                w.score(np.log(0.2 + 0.6 * z) if kept[t] else 0.0)
                c += z
            else:
                c += 2
            out.append(c)
        return c, np.array(out)

    p = model()
    walks.check(ppl.enumerate(p), ref)
    b = jnp.array([1, 0])
    walks.check(ppl.enumerate(ppl.condition(p, {"b": b})), lambda w: ref(w, seen=(1, 0)))
    walks.check(ppl.enumerate(ppl.scale(p, 0.5, ["z"])), lambda w: ref(w, power=0.5))
    masked = ppl.mask(p, jnp.array([True, False]), ["y"])
    walks.check(ppl.enumerate(masked), lambda w: ref(w, kept=(True, False)))


def test_brute_force_over_the_joint_density_agrees():
    @ppl.model
    def model(y):
        with ppl.plate("n", 2):
            z = sample("z", C(probs=jnp.array([0.2, 0.5, 0.3])))
            sample("y", dist.Normal(z, 1.0), obs=y)
        k = sample("k", dist.Binomial(2, 0.3 + 0.1 * z[0]))
        return z.sum(), lax.cond(k == 1, lambda: sample("u", B(0.4)), lambda: k)

    program = model(jnp.array([0.3, 1.4]))
    found = {walks.key(value): mass for value, mass in ppl.enumerate(program)}
    wanted = {walks.key(value): mass for value, mass in oracle.brute_force(program).items()}
    assert found.keys() == wanted.keys()
    assert oracle.distance(found, wanted) < 1e-10


def test_a_subsampled_plate_averages_over_ordered_subsets():
    """Members i, j in order, each with probability 1/6, weighted n / m = 3 / 2."""
    y = [0.2, 0.7, 0.9]

    @ppl.model
    def model(y):
        z = sample("z", B(0.4))
        with ppl.plate("n", 3, subsample_size=2) as index:
            sample("y", B(jnp.where(z == 1, y[index], 0.5)), obs=jnp.ones(2, int))
        return z, index

    def ref(w):
        z = w.draw("z", 0.4)
        pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
        pair = w.draw("n", dict.fromkeys(pairs, 1 / 6))
        w.score(1.5 * sum(np.log(y[i] if z else 0.5) for i in pair))
        return z, np.array(pair)

    walks.check(ppl.enumerate(model(jnp.array(y))), ref)


# --- What is refused ----------------------------------------------------------------------------


def enumerated(fun, **settings):
    return ppl.enumerate(ppl.model(fun)(), **settings)


def test_an_infinite_support_is_refused_with_the_site_and_the_fix():
    with pytest.raises(UnsupportedError, match=r'Poisson at "n".*finite support.*Categorical'):
        enumerated(lambda: sample("n", dist.Poisson(2.0)))
    with pytest.raises(UnsupportedError, match=r'Normal at "x".*quadrature=\{"x": 64\}'):
        enumerated(lambda: sample("x", dist.Normal(0.0, 1.0)))
    with pytest.raises(UnsupportedError, match=r'DiscreteUniform at "k".*1000001 values'):
        enumerated(lambda: sample("k", dist.DiscreteUniform(0, 10**6)))


def test_masses_that_do_not_sum_to_one_are_refused():
    def model():
        a = sample("a", B(0.5))
        return sample("z", C(probs=jnp.array([0.5, 0.2 + 0.3 * a])))

    with pytest.raises(DistributionError, match=r'Categorical at "z".*probability 0\.7;.*sum'):
        enumerated(model)


def test_masses_that_do_not_sum_to_one_are_refused_in_one_lane_of_a_branch():
    def model():
        def lane(q):
            b = sample("b", B(0.5))
            yes = lambda: sample("z", C(probs=jnp.array([0.5, 0.5]) * q))  # noqa: E731
            return lax.cond(b == 1, yes, lambda: 0)

        return jax.vmap(lane)(jnp.array([1.0, 0.8]))

    with pytest.raises(DistributionError, match=r'Categorical at "z".*probability 0\.8;'):
        enumerated(model)


@pytest.mark.parametrize("number", [jnp.nan, -0.3])
@pytest.mark.parametrize(
    "bad",
    [
        B,
        lambda p: B(p).expand([2]).to_event(1),
        lambda p: dist.Binomial(2, p),
        lambda p: C(probs=jnp.stack([0.5, 0.5, p])),
        lambda p: C(logits=jnp.log(jnp.stack([0.5, 0.5, p]))),
        lambda p: dist.Multinomial(2, jnp.stack([0.5, 0.5, p])),
    ],
)
@pytest.mark.parametrize("obs", [False, True])
def test_probabilities_outside_of_their_domain_are_refused(bad, number, obs):
    """NumPyro would make a zero of them, and three of these models keep a total of one."""

    def model():
        a = sample("a", B(0.5))
        d = bad(jnp.where(a == 1, number, 0.0))
        seen = jnp.zeros(d.batch_shape + d.event_shape, int)
        if isinstance(d, dist.MultinomialProbs):
            seen = jnp.array([1, 1, 0])
        return sample("z", d, obs=seen if obs else None)

    with pytest.raises(
        DistributionError, match=r'at "z".*NaN or \+inf; operands.*(nan|-0\.3).*jnp.where'
    ):
        enumerated(model)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_scores_that_are_nan_or_infinite_are_refused(bad):
    def model():
        a = sample("a", B(0.5))
        factor("w", jnp.where(a == 1, bad, 0.0))
        return a

    with pytest.raises(DistributionError, match=r'a factor at "w".*NaN or \+inf.*(nan|inf);'):
        enumerated(model)


def test_nan_is_no_matter_in_a_world_of_mass_zero():
    def model():
        a = sample("a", B(0.5))
        factor("rule", jnp.where(a == 1, -jnp.inf, 0.0))
        return sample("z", B(jnp.where(a == 1, jnp.nan, 0.25)))

    walks.check(enumerated(model), lambda w: (w.score(np.log(0.5)), w.draw("z", 0.25))[1])


def test_bounds_the_wrong_way_round_have_no_mass():
    def model():
        low = sample("low", dist.DiscreteUniform(0, 2))
        return sample("z", dist.DiscreteUniform(low, 1))

    with pytest.raises(DistributionError, match=r'DiscreteUniform at "z".*probability'):
        enumerated(model)


def test_too_many_worlds_are_refused_with_their_site():
    def model():
        return jax.vmap(lambda _: sample("x", B(0.5)), in_axes=None, axis_size=12)(0)

    message = r'\d+ worlds at "x".*max_worlds=100.*max_worlds=400.*marginalize'
    with pytest.raises(UnsupportedError, match=message):
        enumerated(model, max_worlds=100)
    assert len(enumerated(model, max_worlds=4096)) == 4096


def test_a_loop_without_an_end_is_refused():
    def model():
        return lax.while_loop(lambda c: sample("go", B(0.5)) == 1, lambda c: c + 1, 0)

    message = r'while_loop around "go".* 30 times, and 1 worlds.*max_iterations=300'
    with pytest.raises(UnsupportedError, match=message):
        enumerated(model, max_iterations=30)


def test_a_loop_may_use_all_of_its_iterations():
    def model():
        return lax.while_loop(lambda c: c < 5, lambda c: c + sample("x", B(1.0)), 0)

    assert enumerated(model, max_iterations=5).mass(5) == pytest.approx(1.0, abs=1e-10)
    with pytest.raises(UnsupportedError, match="max_iterations=4"):
        enumerated(model, max_iterations=4)


def test_settings_are_checked():
    with pytest.raises(ArgumentError, match=r'64 for "a".* discrete site; needs a number of nodes'):
        ppl.enumerate(zoo.two_coins(), quadrature={"a": 64})
    with pytest.raises(AddressError, match="nowhere"):
        ppl.enumerate(zoo.two_coins(), quadrature={"nowhere": 64})
    with pytest.raises(ArgumentError, match=r"semiring='min'.*'sum', 'max', 'count'"):
        ppl.enumerate(zoo.two_coins(), semiring="min")
    with pytest.raises(AddressError, match="nowhere"):
        ppl.enumerate(zoo.two_coins(), semiring=ppl.expectation({"nowhere": abs}))


def test_traced_programs_are_refused():
    @jax.jit
    def inside(p):
        ppl.enumerate(ppl.model(lambda p: sample("a", B(p)))(p))
        return p

    with pytest.raises(UnsupportedError, match=r"traced arrays.*jax.jit and jax.vmap; ppl.marg"):
        inside(0.3)


def test_a_program_of_no_mass_gives_a_measure_without_points():
    def model():
        a = sample("a", B(0.5))
        factor("never", -jnp.inf)
        return {"a": a, "v": jnp.zeros(2)}

    measure = enumerated(model)
    assert len(measure) == 0
    assert measure.total_mass == 0.0
    assert measure.values["v"].shape == (0, 2)
    observed = enumerated(lambda: sample("o", B(jnp.where(sample("a", B(0.5)) < 2, 0.0, 1.0)), 1))
    assert len(observed) == 0  # and no mass of 1e-308 either


# --- Values that NumPy and XLA treat differently ------------------------------------------------


def test_integer_remainders_by_zero_and_empty_reductions_are_those_of_xla():
    def model():
        k = sample("k", C(probs=jnp.array([0.2, 0.5, 0.3])))
        top = jnp.max((k * jnp.ones(3))[:0], initial=-1.0)
        return lax.rem(jnp.array(7), k), lax.rem(jnp.array(-7), k), top, jnp.sum(k * jnp.ones(0))

    def ref(w):
        k = w.draw("k", [0.2, 0.5, 0.3])
        return (7, 0, 1)[k], (-7, 0, -1)[k], -1.0, 0.0

    walks.check(enumerated(model), ref)


def test_prng_keys_may_differ_between_worlds():
    def model():
        k = sample("k", C(probs=jnp.array([0.2, 0.5, 0.3])))
        one, two = jax.random.split(jax.random.key(k))
        sample("other", B(0.5))
        return jax.random.uniform(one), jax.random.bits(two) % 8

    def ref(w):
        one, two = jax.random.split(jax.random.key(w.draw("k", [0.2, 0.5, 0.3])))
        return float(jax.random.uniform(one)), int(jax.random.bits(two) % 8)

    walks.check(enumerated(model), ref)


# --- No compiling for new data ------------------------------------------------------------------


def test_new_data_of_the_same_shape_traces_and_compiles_nothing(monkeypatch):
    @ppl.model
    def model(p, y):
        def step(z, y):
            z = sample("z", C(probs=p[z]))
            sample("y", dist.Normal(z, 1.0), obs=y)
            return z, lax.cond(z == 1, lambda: sample("b", B(0.5)), lambda: 0)

        return lax.scan(step, 0, y)

    def new(seed):
        rng = np.random.default_rng(seed)
        p, y = rng.dirichlet(np.ones(3), 3), rng.normal(size=4)
        return ppl.enumerate(model(jnp.array(p), jnp.array(y))).total_mass

    made = []
    traced = candidates._traced
    monkeypatch.setattr(candidates, "_traced", lambda *args: made.append(1) or traced(*args))
    first = new(0)
    assert made
    made.clear()
    with compilations() as found:
        second = new(1)
    assert found.count == 0
    assert not made
    assert first != second


def test_single_precision_is_good_to_single_precision():
    """1e-5: a dozen roundings of 6e-8 in each factor, over at most twelve factors."""
    with jax.enable_x64(False):
        for name in ("scan_of_scan", "vmap_of_scan_of_cond", "plates_around_and_inside"):
            measure = ppl.enumerate(ppl.model(CASES[name].model)())
            walks.check(measure, CASES[name].ref, tolerance=1e-5)
