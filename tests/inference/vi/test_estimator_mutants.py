"""Known mistakes of gradient estimators, put in one by one: the exact check refuses each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from tests.inference.vi.finite_sums import mean, refuse_bias
from tests.inference.vi.test_expectation import AT, branched, mapped, scanned, straight
from tests.inference.vi.test_expectation import with_estimators as cost_of

pytestmark = pytest.mark.usefixtures("x64")
vi = ppl.vi


def module(name):
    import importlib

    return importlib.import_module(f"ppl.inference.vi.{name}")


def no_score_in_loops(monkeypatch):
    """The score of sites in a scan is lost: a silent zero."""
    surrogate = module("surrogate")
    scored = surrogate.scored

    def lost(site, leaves, value, estimator):
        found = scored(site, leaves, value, estimator)
        return jax.tree.map(lambda x: 0 * x, found) if site.address == "x" else found

    monkeypatch.setattr(surrogate, "scored", lost)
    return cost_of(scanned, "reinforce")


def draws_shared_too_far(monkeypatch):
    """A run with another value keeps draws whose distribution has changed."""
    surrogate = module("surrogate")
    monkeypatch.setattr(
        surrogate, "same", lambda site, leaves, known, law: jnp.ones(site.sizes, bool)
    )
    return cost_of(straight, "mvd")


def absent_sites_counted_with_their_density(monkeypatch):
    """Values listed for a site in a branch that is not taken count as impossible."""
    expectation = module("expectation")

    def chance(self, records, listed):
        found = [jnp.prod(records[a].value.probability) for a in listed]
        return jnp.prod(jnp.array([1.0, *found]))

    monkeypatch.setattr(expectation._Estimate, "_chance", chance)
    return cost_of(branched, "enum")


def listed_weights_of_the_first_run(monkeypatch):
    """A changed run is weighed by the probabilities that listed values had before the change."""
    expectation = module("expectation")
    fork = expectation._Estimate._fork

    def mistaken(self, address, records, listed):
        before, after = self._chance(records, listed), self._chance
        self._chance = lambda found, listed: before
        total = fork(self, address, records, listed)
        self._chance = after
        return total

    monkeypatch.setattr(expectation._Estimate, "_fork", mistaken)
    return cost_of(straight, "mvd", "enum")


def one_element_for_all(monkeypatch):
    """The other value is put at every lane of a site, not at one."""
    surrogate = module("surrogate")
    wide = surrogate.wide

    def everywhere(flag, value):
        return jnp.any(wide(flag, value)) | wide(flag, value)

    monkeypatch.setattr(surrogate, "wide", everywhere)
    return cost_of(mapped, "mvd")


def laws_taken_for_one(monkeypatch):
    """Equal parameters are taken for equal distributions, whatever these are."""
    surrogate = module("surrogate").Surrogate
    monkeypatch.setattr(surrogate, "_law", lambda self, site: jnp.zeros(site.sizes, int))

    @ppl.model
    def cost(th):
        a = ppl.sample("a", dist.Bernoulli(jax.nn.sigmoid(th[0])), grad=vi.mvd())
        b = jax.lax.cond(
            a == 1,
            lambda: ppl.sample("b", dist.Bernoulli(probs=0.7)),
            lambda: ppl.sample("b", dist.Bernoulli(logits=0.7)),
        )
        return jnp.sin(1.0 + a + 2 * b * th[1])

    return cost


MUTANTS = [
    laws_taken_for_one,
    no_score_in_loops,
    draws_shared_too_far,
    absent_sites_counted_with_their_density,
    listed_weights_of_the_first_run,
    one_element_for_all,
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_refused(mutant, monkeypatch):
    with monkeypatch.context() as patched:
        cost = mutant(patched)
        with pytest.raises(AssertionError, match=r"Not equal|failed"):
            refuse_bias(cost, AT)


def test_a_baseline_that_contains_its_own_sample_is_refused(monkeypatch):
    """So is importance-weighted learning without the correction of its baseline."""
    cost = cost_of(straight, "reinforce")
    exact = jax.grad(mean(cost, AT))(AT)

    def slope():
        return jax.grad(mean(lambda p: vi.expectation(cost(p), num_samples=2), AT))(AT)

    np.testing.assert_allclose(slope(), exact, atol=1e-10)
    own = lambda costs: jnp.broadcast_to(jnp.mean(costs), costs.shape)  # noqa: E731
    monkeypatch.setattr(module("expectation"), "_means_of_others", own)
    cost = cost_of(straight, "reinforce")
    assert np.max(np.abs(slope() - exact)) > 1e-3


def test_a_bound_of_several_draws_needs_the_score_of_all():
    """Importance-weighted bounds whose draws are scored by their own weight alone are biased."""

    @ppl.model
    def model():
        a = ppl.sample("a", dist.Bernoulli(0.3))
        ppl.factor("f", jnp.where(a == 1, 1.0, -0.5))

    @ppl.model
    def guide(ph):
        ppl.sample("a", dist.Bernoulli(jax.nn.sigmoid(ph)))

    at = np.array(0.4)

    def right(ph):
        return vi.iwelbo(model(), guide(ph), num_particles=2)

    exact = refuse_bias(right, at)

    @ppl.model
    def wrong(ph):
        def particle(_):
            choices = ppl.traced(guide.program(jax.lax.stop_gradient(ph)))().choices
            q = ppl.log_density(guide.program(ph), choices)
            return q, ppl.log_density(model.program(), choices) - q

        q, w = jax.vmap(particle)(jnp.arange(2))
        stop = jax.lax.stop_gradient
        bound = jax.nn.logsumexp(w) - jnp.log(2.0)
        return bound + jnp.sum(stop(jax.nn.softmax(w) * w) * (q - stop(q)))

    found = jax.grad(mean(lambda ph: vi.expectation(wrong(ph)), at))(at)
    assert abs(found - exact) > 1e-3
