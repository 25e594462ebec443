"""Sequential Monte Carlo: the measure exactly, evidence and errors by replication, memory."""

import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import ppl
import ppl.distributions as dist
from ppl import _jax
from ppl.inference.particles import Run, cloud
from ppl.inference.particles.bootstrap import Bootstrap
from ppl.resampling import SCHEMES, MultinomialResampling
from ppl.staging import stage
from tests import zoo
from tests.compiling import compilations
from tests.laws import same

pytestmark = pytest.mark.usefixtures("x64")

LEVEL = 1e-6  # false alarms of each statistical test, both sides
BOUND = -stats.norm.ppf(LEVEL / 2)

MOVES = np.array([[0.7, 0.3], [0.2, 0.8]])
LIT = np.array([0.1, 0.8])


@ppl.model
def chain(seen, reverse=False):
    """Score before, in and after a loop; return its history."""
    first = ppl.sample("first", dist.Bernoulli(0.3))
    ppl.factor("tilt", jnp.where(first == 1, -1.0, 0.0))

    def step(state, lit):
        state = ppl.sample("state", dist.Bernoulli(jnp.asarray(MOVES)[state, 1]))
        ppl.sample("lit", dist.Bernoulli(jnp.asarray(LIT)[state]), obs=lit)
        return state, state

    last, history = jax.lax.scan(step, first, seen, reverse=reverse)
    after = ppl.sample("after", dist.Bernoulli(jnp.where(last == 1, 0.6, 0.2)))
    ppl.factor("end", -0.5 * after)
    return {"first": first, "state": history, "after": after}


@ppl.model
def rows(seen):
    """A loop in a loop; a parameter of all iterations; scores and draws in turn."""
    theta = ppl.sample("theta", dist.Bernoulli(0.4))

    def row(x, seen):
        x = ppl.sample("x", dist.Bernoulli(jnp.where(x == 1, 0.7, 0.4)))
        ppl.factor("tilt", -0.4 * x * theta)

        def column(z, y):
            z = ppl.sample("z", dist.Bernoulli(0.3 + 0.2 * z + 0.1 * theta))
            ppl.sample("y", dist.Bernoulli(0.2 + 0.3 * z + 0.2 * x), obs=y)
            return z, z

        z, zs = jax.lax.scan(column, x, seen)
        return z, (x, zs)

    _, (xs, zs) = jax.lax.scan(row, 0, seen)
    return {"theta": theta, "x": xs, "z": zs}


@ppl.model
def scores_first():
    """In each iteration the score comes before the draw."""

    def step(x, y):
        ppl.sample("y", dist.Bernoulli(0.2 + 0.5 * x), obs=y)
        return ppl.sample("x", dist.Bernoulli(0.3 + 0.4 * x)), None

    start = ppl.sample("start", dist.Bernoulli(0.5))
    return jax.lax.scan(step, start, jnp.array([1, 0, 1]))[0]


@ppl.model
def dying(seen):
    """The last state but one forbids what is seen next."""

    def step(x, y):
        x = ppl.sample("x", dist.Bernoulli(jnp.where(x == 1, 0.5, 0.0)))
        ppl.sample("y", dist.Bernoulli(jnp.where(x == 1, 0.5, 0.0)), obs=y)
        return x, None

    return jax.lax.scan(step, 1, seen)[0]


PROGRAMS = {
    "chain": lambda: chain(np.array([1, 0])),
    "backwards": lambda: chain(np.array([1, 0]), True),
    "rows": lambda: rows(np.array([[1], [0]])),
    "columns": lambda: rows(np.array([[1, 0]])),
    "scores first": scores_first,
    "dying": lambda: dying(np.array([1, 1])),
    "two coins": zoo.two_coins,
}


@functools.cache
def exact(name):
    return ppl.enumerate(PROGRAMS[name]())


def flipping(address):
    """Metropolis: flip all elements of a binary site, if it is there yet."""

    @ppl.kernel
    def flip(trace):
        if address not in trace.choices:
            return trace.with_choices({})
        flips = ppl.sample("flip", dist.Bernoulli(0.3))
        old = trace.choices[address]
        new = trace.with_choices({address: jnp.where(flips == 1, 1 - old, old)})
        ratio = jnp.exp(new.log_density - trace.log_density)
        accept = ppl.sample("accept", dist.Bernoulli(jnp.minimum(1.0, ratio)))
        return ppl.choose(accept == 1, new, trace)

    return flip


def potential(choices, step):
    return sum((jnp.sum(0.7 * (step + 1.0) * x) for x in choices.values()), jnp.zeros(()))


# --- The measure, exactly -----------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("options", [{}, {"ess_threshold": 1, "trajectories": False}], ids=str)
def test_the_measure_is_kept(name, options):
    same(ppl.extract(ppl.smc(PROGRAMS[name](), 2, **options)), exact(name))


@pytest.mark.parametrize("resample", SCHEMES)
def test_every_scheme_keeps_the_measure(resample):
    same(ppl.extract(ppl.smc(PROGRAMS["chain"](), 3, resample, ess_threshold=1)), exact("chain"))


@hypothesis.settings(max_examples=25, database=None)
@hypothesis.given(
    ppl.check.programs(size=6, max_worlds=8, observations=True),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from(["systematic", "multinomial", "ssp"]),
)
def test_random_programs_keep_their_measure(program, ess_threshold, resample):
    report = ppl.check.preserves(
        lambda p: ppl.extract(ppl.smc(p, 2, resample, ess_threshold=ess_threshold)), program
    )
    assert report.passed, report


tiny = ppl.check.programs(size=3, max_worlds=4, latents=(1, 2), observations=True)


@pytest.mark.slow
@hypothesis.settings(max_examples=8, database=None)
@hypothesis.given(tiny, st.booleans())
def test_random_programs_keep_their_measure_under_moves(program, last):
    hypothesis.assume(program.latents)
    q = ppl.smc(program, 2, kernel=ppl.kernels.single_site(), move_last=last, ess_threshold=0.7)
    report = ppl.check.equal(ppl.extract(q), program)
    assert report.passed, report


@hypothesis.settings(max_examples=12, database=None)
@hypothesis.given(ppl.check.programs(size=6, max_worlds=8, observations=True))
def test_random_programs_keep_their_measure_under_potentials(program):
    q = ppl.smc(program, 2, "stratified", ess_threshold=0.9, lookahead=potential)
    report = ppl.check.equal(ppl.extract(q), program)
    assert report.passed, report


@pytest.mark.parametrize("name", ["chain", "backwards", "rows", "columns"])
def test_potentials_keep_the_measure(name):
    q = ppl.smc(PROGRAMS[name](), 2, "multinomial", ess_threshold=0.9, lookahead=potential)
    same(ppl.extract(q), exact(name))


@pytest.mark.parametrize(
    ("name", "address"),
    [("chain", "first"), ("backwards", "state"), ("rows", "theta"), ("columns", "z")],
)
def test_moves_keep_the_measure(name, address):
    q = ppl.smc(PROGRAMS[name](), 2, kernel=flipping(address), ess_threshold=0.7)
    same(ppl.extract(q), exact(name))


@pytest.mark.parametrize(("name", "address"), [("backwards", "state"), ("rows", "z")])
def test_moves_of_the_last_step_keep_the_measure(name, address):
    q = ppl.smc(PROGRAMS[name](), 2, kernel=flipping(address), move_last=True)
    same(ppl.extract(q), exact(name))


@ppl.model
def one_coin():
    a = ppl.sample("a", dist.Bernoulli(0.3))
    ppl.factor("tilt", -1.0 * a)
    return a


def test_moving_only_after_resampling_is_biased():
    kernel = flipping("a")
    assert ppl.check.invariant(kernel, one_coin()).passed
    for always in (True, False):
        q = ppl.smc(one_coin(), 2, kernel=kernel, ess_threshold=1, move_always=always)
        report = ppl.check.equal(ppl.extract(q), one_coin())
        assert report.passed is always


@ppl.model
def noted(seen):
    """Deterministics among the choices, alone and in the loop."""
    with ppl.plate("note", 2) as index:
        ppl.deterministic("index", index)
    x = ppl.sample("x", dist.Bernoulli(0.4))

    def step(x, y):
        odds = ppl.deterministic("odds", 0.2 + 0.5 * x)
        x = ppl.sample("z", dist.Bernoulli(odds))
        ppl.sample("y", dist.Bernoulli(0.3 + 0.4 * x), obs=y)
        return x, None

    return jax.lax.scan(step, x, seen)[0]


def test_deterministics_are_no_choices():
    program = noted(np.array([1, 0]))
    for options in ({"lookahead": potential}, {"kernel": flipping("z")}):
        q = ppl.smc(program, 2, ess_threshold=1, **options)
        same(ppl.extract(q), ppl.enumerate(program))
        assert set(ppl.run(q, 0).choices) == {"x", "z"}


class _Losing(Bootstrap):
    """Resample, and forget what the weights were."""

    def before(self, run, place, cloud):
        moved = super().before(run, place, cloud)
        kept = moved.weights._replace(log_evidence=jnp.zeros(()))
        return moved._replace(weights=kept)


def test_losing_the_evidence_is_seen():
    def losing(p):
        run = lambda p: Run(_Losing(MultinomialResampling, 1.0), 2).program(p)  # noqa: E731
        return ppl.extract(stage(run, (p,), name="losing"))

    assert not ppl.check.preserves(losing, PROGRAMS["chain"]()).passed


@ppl.model
def lit_guide(seen):
    """Draw each state from what is seen then."""

    def step(state, lit):
        towards = jnp.where(lit == 1, 0.8, 0.3)
        return ppl.sample("state", dist.Bernoulli(0.5 * towards + 0.2 * state)), None

    jax.lax.scan(step, 0, seen)


def test_proposals_keep_the_measure_and_stand_in_the_loop():
    seen = np.array([1, 0])
    q = ppl.smc(chain(seen), 2, proposal=lit_guide(seen), ess_threshold=1)
    same(ppl.extract(q), exact("chain"))
    population = ppl.run(q, 0)
    assert set(population.choices) == {"first", "state", "after"}
    # One step before the loop, two in it, one after it.
    assert population.steps["ess"].shape == (4,)


def test_smc_nests():
    inner = ppl.extract(ppl.smc(zoo.two_coins(), 2))
    same(ppl.extract(ppl.importance(inner, 2)), exact("two coins"))
    seen = np.array([1])
    inner = ppl.extract(ppl.smc(chain(seen), 2, ess_threshold=1))
    same(ppl.extract(ppl.smc(inner, 2, ess_threshold=1)), ppl.enumerate(chain(seen)))


@ppl.model
def switching(seen):
    """A hidden chain, and in each step the choice of a sensor."""

    def step(x, y):
        x = ppl.sample("x", dist.Bernoulli(0.3 + 0.4 * x))
        s = ppl.sample("s", dist.Categorical(probs=jnp.array([0.5, 0.3, 0.2])))
        like = jnp.array([[0.1, 0.5, 0.9], [0.7, 0.2, 0.6]])
        ppl.sample("y", dist.Bernoulli(like[x, s]), obs=y)
        return x, x

    return jax.lax.scan(step, 0, seen)[1]


def test_sums_within_steps_keep_the_measure_and_lower_the_variance():
    program = switching(np.array([1, 0]))
    summed = ppl.marginalize(program, ["s"], in_steps=True)
    filters = [ppl.smc(p, 2, ess_threshold=1) for p in (program, summed)]
    measure = ppl.enumerate(program)
    for q in filters:
        same(ppl.extract(q), measure)
    squares = [
        float(ppl.enumerate(q).expect(lambda p: jnp.exp(2 * p.log_evidence))) for q in filters
    ]
    variances = [x - float(measure.total_mass) ** 2 for x in squares]
    assert 0 < variances[1] < 0.1 * variances[0]
    assert ppl.run(filters[1], 0).steps["ess"].shape == (2,)
    draws = ppl.run(ppl.recover(summed, {"x": np.array([1, 0])}), 0)
    assert draws["s"].shape == (2,)
    with pytest.raises(ppl.PPLError, match=r'in_steps=True for "x", which a loop carries'):
        ppl.marginalize(program, ["x"], in_steps=True)


# --- What comes out -----------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [None, flipping("theta")], ids=["plain", "moves"])
def test_choices_are_those_of_the_values(kernel):
    q = ppl.smc(rows(np.array([[1, 0, 1], [0, 0, 1]])), 7, ess_threshold=1, kernel=kernel)
    population = ppl.run(q, 0)
    assert {a: x.shape for a, x in population.choices.items()} == {
        "theta": (7,),
        "x": (7, 2),
        "z": (7, 2, 3),
    }
    for address, x in population.choices.items():
        np.testing.assert_array_equal(x, population.values[address])
    # One score in each row, and one in each of its columns.
    assert {k: x.shape for k, x in population.steps.items()} == {
        "ess": (8,),
        "log_evidence": (8,),
        "resampled": (8,),
    }
    assert abs(population.steps["log_evidence"][-1] - population.log_evidence) < 1e-12
    assert population.predictive(0)["y"].shape == (7, 2, 3)


def test_all_particles_dead_is_said():
    population = ppl.run(ppl.smc(dying(np.array([1, 0, 1, 1, 1, 1, 1])), 2), 3)
    assert population.log_evidence == -jnp.inf
    assert np.isnan(population.log_evidence_se)
    assert not any(np.isnan(np.asarray(x)).any() for x in population.steps.values())
    since = int(np.argmax(np.asarray(population.steps["log_evidence"]) == -np.inf))
    with pytest.raises(ppl.errors.ResultError, match=rf"weight zero since step {since}; needs"):
        population.expect("x")


def _sizes(jaxpr):
    for eqn in jaxpr.eqns:
        yield from (math.prod(v.aval.shape) for v in eqn.outvars)
        for sub in _jax.subjaxprs(eqn):
            yield from _sizes(sub)


def test_a_filter_holds_nothing_of_particles_times_iterations():
    def largest(trajectories):
        program = zoo.linear_gaussian(np.zeros(30))
        last = stage(lambda p: p()[-1], (program,), name="last")
        q = ppl.smc(
            last if trajectories else _last_state(np.zeros(30)), 50, trajectories=trajectories
        )
        return max(_sizes(q.structure.jaxpr))

    assert largest(True) >= 50 * 30
    assert largest(False) < 50 * 10


@ppl.model
def _last_state(y, a=0.8, q=0.6, r=0.4):
    def step(state, y):
        x = ppl.sample("x", dist.Normal(a * state, q))
        ppl.sample("y", dist.Normal(x, r), obs=y)
        return x, None

    return jax.lax.scan(step, jnp.zeros(()), y)[0]


def test_new_data_and_keys_do_not_compile():
    def run(seed):
        y = np.random.default_rng(seed).normal(size=12)
        return float(ppl.run(ppl.smc(_last_state(y), 40), seed).log_evidence)

    first = run(0)
    with compilations() as found:
        assert run(1) != first
    assert found.count == 0


# --- Against exact answers ----------------------------------------------------------------------

Y = np.random.default_rng(1).normal(size=20)


def replicated(program, count, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.jit(jax.vmap(lambda k: ppl.run(program, k)))(keys)


def test_linear_gaussian_evidence_smoother_and_errors():
    mean, _, evidence = zoo.linear_gaussian_answer(Y)
    runs = replicated(ppl.smc(zoo.linear_gaussian(Y), 800), 400)
    ratio = np.exp(np.asarray(runs.log_evidence) - evidence)
    error = ratio.std(ddof=1) / math.sqrt(len(ratio))
    assert abs(ratio.mean() - 1) < BOUND * error
    # The evidence times a weighted sum is unbiased for every smoothed mean.
    weights = special.softmax(np.asarray(runs.log_weights), axis=1)
    sums = ratio[:, None] * np.einsum("rn,rnt->rt", weights, np.asarray(runs.choices["x"]))
    z = (sums.mean(0) - mean) / (sums.std(0, ddof=1) / math.sqrt(len(sums)))
    assert np.abs(z).max() < -stats.norm.ppf(LEVEL / 2 / len(mean))
    # Single runs know their error: the mean of the variances is the variance, within errors.
    known = np.asarray(runs.log_evidence_se) ** 2
    assert np.isfinite(known).all()
    spread = (ratio - 1) ** 2
    gap = known - spread
    assert abs(gap.mean()) < BOUND * gap.std(ddof=1) / math.sqrt(len(gap))
    covered = np.abs(np.asarray(runs.log_evidence) - evidence) < 2 * np.sqrt(known)
    assert stats.binomtest(int(covered.sum()), len(covered), 0.954).pvalue > LEVEL


def test_hidden_markov_forward_backward():
    seen = np.random.default_rng(2).integers(0, 2, size=15)

    @ppl.model
    def hmm(seen):
        def step(state, lit):
            state = ppl.sample("state", dist.Categorical(probs=jnp.asarray(MOVES)[state]))
            ppl.sample("lit", dist.Bernoulli(jnp.asarray(LIT)[state]), obs=lit)
            return state, None

        return jax.lax.scan(step, 0, seen)[0]

    like = np.where(seen[:, None] == 1, LIT, 1 - LIT)
    forward = [np.array([1.0, 0.0])]
    for row in like:
        forward.append((forward[-1] @ MOVES) * row)
    backward = [np.ones(2)]
    for row in like[::-1]:
        backward.append(MOVES @ (row * backward[-1]))
    total = forward[-1].sum()
    smoothed = [f[1] * b[1] / total for f, b in zip(forward[1:], backward[-2::-1], strict=True)]
    runs = replicated(ppl.smc(hmm(seen), 100), 400, seed=1)
    ratio = np.exp(np.asarray(runs.log_evidence)) / total
    weights = special.softmax(np.asarray(runs.log_weights), axis=1)
    sums = ratio[:, None] * np.einsum("rn,rnt->rt", weights, np.asarray(runs.choices["state"]))
    for found, truth in ((ratio[:, None], np.ones(1)), (sums, np.array(smoothed))):
        z = (found.mean(0) - truth) / (found.std(0, ddof=1) / math.sqrt(len(found)))
        assert np.abs(z).max() < -stats.norm.ppf(LEVEL / 2 / len(truth))


@ppl.model
def undefined(seen):
    """The density of what is seen is no number for some states."""

    def step(x, y):
        x = ppl.sample("x", dist.Bernoulli(0.5))
        ppl.factor("tilt", jnp.where(x == 1, jnp.nan, -1.0 * y))
        return x, None

    return jax.lax.scan(step, 0, seen)[0]


@pytest.mark.parametrize("options", [{}, {"ess_threshold": 1}, {"ess_threshold": 0}], ids=str)
def test_weights_that_are_no_numbers_are_said(options):
    population = ppl.run(ppl.smc(undefined(np.array([0, 1, 1])), 20, **options), 0)
    assert np.isnan(population.log_evidence)
    with pytest.raises(ppl.errors.ResultError, match="weights that are NaN or infinite"):
        population.expect("x")


def test_a_potential_that_is_no_number_is_said():
    never = lambda choices, step: jnp.nan  # noqa: E731
    population = ppl.run(ppl.smc(PROGRAMS["backwards"](), 4, lookahead=never), 0)
    with pytest.raises(ppl.errors.ResultError, match="weights that are NaN or infinite"):
        population.expect("first")


def test_a_single_family_knows_no_error():
    population = ppl.run(ppl.smc(zoo.linear_gaussian(np.tile(Y, 5)), 8, ess_threshold=1), 0)
    assert len(np.unique(population.families)) == 1
    assert np.isnan(population.log_evidence_se)
    assert np.isnan(population.expect(lambda x: x[0]).standard_error)
    assert any("descend from one" in note for note in population.summary().notes)


@pytest.mark.parametrize("family", [0, 5])
def test_what_one_family_knows_does_not_hang_on_rounding(family):
    """Shares that add up to a little more or less than one are those of one family all the same."""
    rng = np.random.default_rng(family)
    for _ in range(50):
        weights = cloud.Weights.equal(8)._replace(log_weights=jnp.asarray(rng.normal(size=8)))
        first = jnp.full(8, family)
        assert np.isnan(cloud.relative_error(weights, first))
        assert np.isfinite(cloud.relative_error(weights, first.at[3].set(1)))


# --- Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_particles": 0}, r"num_particles=0; needs a positive integer"),
        ({"ess_threshold": 1.5}, r"ess_threshold=1.5; needs a share"),
        ({"resample": "systemic"}, r"systemic.*systematic"),
        ({"kernel": 3}, r"smc got the kernel 3; needs a Kernel"),
        ({"kernel": flipping("a"), "num_moves": 0}, r"num_moves=0; needs a positive integer"),
        ({"kernel": flipping("a"), "lookahead": potential}, r"both a kernel and a lookahead"),
        ({"lookahead": lambda choices, step: jnp.ones(3)}, r"a lookahead that gives float64\[3\]"),
        ({"particles": 3}, r"particles"),
        ({"move_last": True}, r"move_last=True and no kernel; needs a kernel"),
    ],
)
def test_bad_settings_are_refused(options, text):
    with pytest.raises(ppl.PPLError, match=text):
        ppl.smc(PROGRAMS["chain"](), **{"num_particles": 2, **options})


def test_what_is_not_a_program_is_refused():
    with pytest.raises(ppl.PPLError, match=r"smc got Model; needs a Program"):
        ppl.smc(chain, 2)
