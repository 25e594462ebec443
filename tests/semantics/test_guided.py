"""`guided`: the measure of the program, whatever the proposal; in lockstep with it."""

import copy

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.interpreter import Interpreter, evaluate, placed_sites
from ppl.primitives import bind, log_prob, value_of
from ppl.semantics import guided as module
from ppl.semantics.guided import guided
from ppl.semantics.handlers import lifted
from ppl.semantics.suspension import suspend
from ppl.staging import stage
from tests.laws import law, same
from tests.mutants.populations import smc
from tests.semantics.guided_models import (
    CASES,
    YS,
    backwards,
    exact,
    hmm,
    looking,
    nested,
    nested_guide,
    one,
    plated,
    tie,
)

pytestmark = pytest.mark.usefixtures("x64")

CATEGORICAL = type(dist.Categorical(jnp.ones(2) / 2))


def told(program, addresses):
    """The measure on the value and on choices, which shows whether they lie along the same axes."""

    def run(program):
        trace = ppl.traced(program)()
        ppl.factor("told", trace.log_weight)
        choices, present = trace.canonical
        known = lambda xs: {a: xs[a] for a in addresses if a in xs}  # noqa: E731
        return trace.value, known(choices), known(present)

    return stage(run, (program,), name="told")


def same_runs(program, proposal, **options):
    g = guided(program, proposal, **options)
    latents = program.latents
    for address in latents:
        assert g.sites[address].shape == program.sites[address].shape
    same(told(g, latents), told(program, latents))
    return g


@pytest.mark.parametrize("case", CASES)
def test_the_measure_is_that_of_the_program(case):
    program, proposal = (make() for make in CASES[case])
    g = same_runs(program, proposal)
    same(g, program)
    conditional = [a for a in proposal.latents if program.sites[a].conditional]
    assert len(g.latents) == len(program.latents) + len(conditional)
    assert len(g.sites) == len(program.sites) + len(conditional) + len(proposal.latents)


# --- In lockstep --------------------------------------------------------------------------------


def loops(program):
    """The addresses in each of a program's loops."""
    scans = [eqn for eqn in program.structure.jaxpr.eqns if eqn.primitive.name == "scan"]
    return [[p.site.address for p in placed_sites(eqn.params["jaxpr"])] for eqn in scans]


def test_program_and_proposal_alternate():
    """Each iteration draws and scores, so that the cuts are where they were."""
    program = hmm(YS)
    g = guided(program, ppl.do(looking(YS), {"x0": np.array(0)}))
    assert loops(g) == [["x", "x/weight", "y"]]
    assert g.sites.addresses("latent") == program.latents
    assert len(suspend(g).steps) == len(suspend(program).steps) == len(YS) - 1
    same(suspend(g).finish(), program)


def test_values_wait_where_loops_differ():
    assert loops(guided(hmm(YS), plated())) == [["x/weight", "y"]]
    assert loops(guided(hmm(YS), backwards(YS))) == [["x"], ["x/weight", "y"]]
    other = guided(hmm(YS), backwards(YS))
    assert [a for a in other.sites.addresses() if a != "y"] == ["x", "x0", "x0/weight", "x/weight"]


def test_proposals_of_nested_loops_alternate():
    g = guided(nested(), nested_guide())
    assert g.sites["x"].placed.scans == g.sites["x/weight"].placed.scans == (2, 2)
    assert g.sites["z/proposed"].placed.scans == g.sites["z"].placed.scans == (2,)
    assert [g.sites[a].conditional for a in ("z", "z/proposed")] == [True, False]


def test_the_posterior_as_proposal_gives_constant_weights():
    log_evidence = np.log(ppl.enumerate(hmm(YS)).total_mass)
    points = ppl.enumerate(ppl.weighted(guided(hmm(YS), exact(YS)))).points
    assert len(points) == 8
    np.testing.assert_allclose([p.log_weight for p in points], log_evidence, rtol=1e-12)


def test_particles_of_a_guided_program():
    """Bootstrap SMC on it is SMC with a proposal."""
    propose = lambda p: smc(guided(p, looking(YS[:2])))  # noqa: E731
    assert ppl.check.preserves(propose, hmm(YS[:2])).require().false_alarm == 0


def test_a_guided_program_can_be_guided():
    first = guided(hmm(YS), looking(YS))
    second = same_runs(first, backwards(YS))
    assert {"x/weight", "x/weight'"} <= set(second.sites.addresses())
    same(second, hmm(YS))


def test_it_differentiates():
    """The weight of given choices is differentiable in the parameters of both."""

    @ppl.model
    def normal(loc):
        z = jax.lax.scan(lambda c, _: (ppl.sample("z", dist.Normal(c, 1.0)),) * 2, loc, None, 2)[1]
        ppl.factor("f", -(z[1] ** 2))

    def weight(loc, moved):
        g = guided(normal(loc), normal_guide(moved))
        return ppl.trace_of(g, {"z": jnp.array([0.5, -1.0])}).log_weight

    @ppl.model
    def normal_guide(loc):
        jax.lax.scan(lambda c, _: (ppl.sample("z", dist.Normal(c, 2.0)), None), loc, None, 2)

    found = jax.grad(weight, (0, 1))(0.25, 0.1)
    np.testing.assert_allclose(found, (0.25, -0.1), rtol=1e-12)


# --- Ratios that are wrong ----------------------------------------------------------------------


def upside_down(site, leaves, value, proposed):
    return -module_ratio(site, leaves, value, proposed)


def forgotten(site, leaves, value, proposed):
    return module_ratio(site, leaves, value, jnp.zeros_like(proposed))


def everywhere(site, leaves, value, proposed):
    """Count the proposal's density where the program has no site."""
    return log_prob(site, leaves, value) - proposed


module_ratio = module._ratio
MUTANTS = {
    "upside down": (upside_down, ("data-dependent", "nested", "lanes", "plates")),
    "forgotten": (forgotten, ("data-dependent", "nested", "lanes", "plates")),
    "where absent": (everywhere, ("vmapped branch",)),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_ratios_are_found(name, monkeypatch):
    mutant, cases = MUTANTS[name]
    for case in cases:
        program, proposal = (make() for make in CASES[case])
        monkeypatch.setattr(module, "_ratio", mutant)
        wrong = ppl.enumerate(guided(program, proposal, operation=name))
        exactly = ppl.enumerate(program)
        assert wrong.total_variation(exactly) > 1e-3 * exactly.total_mass


# --- Random programs ----------------------------------------------------------------------------


class Tilting(Interpreter):
    """The program without what it scores, and with other probabilities, at some of its sites."""

    name = "tilting"

    def __init__(self, kept):
        self.kept = kept

    def sample(self, frame, site, leaves):
        if site.kind != "latent":
            return value_of(site, leaves)
        if site.address not in self.kept:
            return jnp.zeros((*site.sizes, *site.shape), site.dtype)
        return bind(*lifted(site, leaves, tilted))[0]

    def score(self, frame, site, leaves):
        pass


def tilted(operands):
    """Move every distribution, and make possible what was not."""

    def moved(d):
        d = copy.copy(d)
        if isinstance(d, dist.ExpandedDistribution):
            d.base_dist = moved(d.base_dist)
        elif hasattr(d, "probs"):
            kinds = d.probs.shape[-1] if isinstance(d, CATEGORICAL) else 2
            d.probs = 0.6 * d.probs + 0.4 / kinds
        elif isinstance(d, dist.Normal):
            d.loc = d.loc + 0.3
        return d

    return operands._replace(distribution=moved(operands.distribution))


def tilt(program, addresses):
    def run(program):
        s = program.structure
        return evaluate(Tilting(addresses), s.jaxpr, program.consts, program.args).outs

    return stage(run, (program,), name="tilted")


STRAIGHT = ("plate", "vmap", "scan", "jit", "checkpoint", "submodel")
# Their supports do not depend on other sites, which the proposal may not have.
STATIC = ppl.check.programs(size=6, max_worlds=16, distributions=("Bernoulli", "Categorical"))


def unconditional(program):
    return [a for a in program.latents if not program.sites[a].conditional]


@pytest.mark.slow
@law
@hypothesis.given(STATIC, st.data())
def test_random_programs_with_tilted_proposals(program, data):
    """The proposal has the program's loops and lanes, less what stands in branches."""
    known = unconditional(program)
    kept = data.draw(st.sets(st.sampled_from(known), min_size=1)) if known else set()
    same_runs(program, tilt(program, tuple(sorted(kept))))


@ppl.model
def uniform(sites):
    for address, low, high, shape in sites:
        ppl.sample(address, dist.DiscreteUniform(low, high).expand(shape))


@pytest.mark.slow
@law
@hypothesis.given(ppl.check.programs(size=5, max_worlds=16))
def test_random_programs_with_uniform_proposals(program):
    """Everything is proposed before the program runs, whether or not it reaches the site."""
    runs = ppl.enumerate(ppl.traced(program)).points
    sites = tuple(
        (a, *(int(f([f(r.choices[a]) for r in runs])) for f in (np.min, np.max)), s.shape)
        for a, s in ((a, program.sites[a]) for a in program.latents)
    )
    hypothesis.assume(np.prod([float(b - a + 1) ** np.prod(s) for _, a, b, s in sites]) <= 300)
    same_runs(program, uniform(sites))


@pytest.mark.slow
@hypothesis.settings(max_examples=8, database=None)  # each is compiled twice
@hypothesis.given(ppl.check.programs("continuous", size=6, control_flow=STRAIGHT))
def test_random_continuous_programs(program):
    """The weight of a run is the ratio of the two densities, to rounding."""
    known = program.latents
    q = tilt(program, known)
    trace = ppl.trace(guided(program, q), 0)
    joint = ppl.log_density(program, {a: trace.choices[a] for a in program.latents})
    drawn = ppl.log_density(q, {a: trace.choices[a] for a in known})
    np.testing.assert_allclose(trace.log_weight, joint - drawn, rtol=1e-10)


# --- What is refused ----------------------------------------------------------------------------


@ppl.model
def looped():
    def step(s):
        return s[0] + 1, ppl.sample("x", dist.Bernoulli(0.5))

    return jax.lax.while_loop(lambda s: s[0] < 3, step, (0, 0))


@ppl.model
def masked_out(y):
    with ppl.plate("i", 2):
        ppl.sample("x", dist.Bernoulli(0.5).mask(jnp.array([True, False])), obs=y)


@ppl.model
def scored():
    ppl.sample("x", dist.Bernoulli(0.5))
    ppl.factor("f", 1.0)


@ppl.model
def branched(x):
    return jax.lax.cond(x, lambda: ppl.sample("x", dist.Bernoulli(0.5)), lambda: jnp.zeros((), int))


@ppl.model
def pair(x):
    return jax.vmap(lambda x: branched(x))(x)


MASKED = ppl.unobserve(masked_out(np.array([0, 1])))
REFUSED = {
    "unknown": (lambda: hmm(YS), lambda: one("z"), ppl.errors.AddressError, r'"z".*Known: "x0"'),
    "shape": (
        lambda: hmm(YS),
        one,
        ppl.errors.AddressError,
        r'discrete values of shape \(\) at "x" \(guided_models.py:.*shape \(3,\), as the program',
    ),
    "loop": (looped, one, ppl.errors.UnsupportedError, r'for "x" .* in a while_loop; needs'),
    "branch": (
        one,
        lambda: branched(True),
        ppl.errors.UnsupportedError,
        r'may not draw "x" .* outside of branches',
    ),
    "score": (one, scored, ppl.errors.OpenObservationsError, r'scores at "f" .*; needs'),
    "masked": (
        lambda: MASKED,
        lambda: MASKED,
        ppl.errors.UnsupportedError,
        r'of a masked distribution at "x" .*; needs probability distributions',
    ),
    "masked program": (
        lambda: MASKED,
        lambda: tie("x", 2),
        ppl.errors.UnsupportedError,
        r'for the masked distribution at "x"',
    ),
    "joint": (
        lambda: pair(np.array([True, False])),
        lambda: tie("x", 2),
        ppl.errors.UnsupportedError,
        r'one density for \(2,\) values at "x" .* Fix: draw them independently',
    ),
    "no program": (lambda: hmm(YS), lambda: one, ppl.errors.ArgumentError, "needs a Program"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    program, proposal, kind, text = REFUSED[name]
    with pytest.raises(kind, match=f"smc.*{text}"):
        guided(program(), proposal(), operation="smc")


def test_unknown_keywords():
    with pytest.raises(ppl.errors.ArgumentError, match='Did you mean "proposal"'):
        guided(one(), propsal=one())
