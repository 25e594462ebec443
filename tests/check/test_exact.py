"""`preserves`, `invariant`, `reversible`, `unbiased`: verdicts, reports and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from tests import zoo

pytestmark = pytest.mark.usefixtures("x64")


# --- Algorithms, right and wrong ----------------------------------------------------------------


def importance(program):
    return ppl.importance(program, num_particles=2)


@ppl.kernel
def flip_a(trace):
    """Propose the other value of "a": symmetric, so the ratio is that of the densities."""
    new = trace.with_choices({"a": 1 - trace.choices["a"]})
    ratio = jnp.exp(jnp.minimum(0.0, new.log_density - trace.log_density))
    return ppl.choose(ppl.sample("accept", dist.Bernoulli(ratio)) == 1, new, trace)


def proposing(probability):
    """Propose "a" with this probability, and accept as if the proposal were symmetric."""

    @ppl.kernel
    def move(trace):
        new = trace.with_choices({"a": ppl.sample("new", dist.Bernoulli(probability))})
        ratio = jnp.exp(jnp.minimum(0.0, new.log_density - trace.log_density))
        return ppl.choose(ppl.sample("accept", dist.Bernoulli(ratio)) == 1, new, trace)

    return move


def redraw(address):
    """Gibbs: draw a bit from its full conditional."""

    @ppl.kernel
    def move(trace):
        both = [trace.with_choices({address: jnp.asarray(b)}) for b in (0, 1)]
        odds = both[1].log_density - both[0].log_density
        value = ppl.sample("value", dist.Bernoulli(logits=odds))
        return ppl.choose(value == 1, both[1], both[0])

    return move


@ppl.kernel
def sweep(trace):
    """Redraw one bit, then the other: invariant, and not reversible."""
    with ppl.scope("one"):
        trace = redraw("a")(trace)
    with ppl.scope("two"):
        return redraw("b")(trace)


@ppl.kernel
def stale(trace):
    """Flip "a" always, and keep the old run's value, weight and density."""
    import dataclasses

    choices = {**trace.choices, "a": 1 - trace.choices["a"]}
    return dataclasses.replace(trace, choices=choices)


@ppl.model
def shifting():
    """A flag decides which site exists, and how many values it has."""
    flag = ppl.sample("flag", dist.Bernoulli(0.4))

    def few():
        return ppl.sample("few", dist.Bernoulli(0.3))

    def many():
        x = ppl.sample("many", dist.Categorical(probs=jnp.array([0.2, 0.3, 0.5])))
        ppl.factor("tilt", jnp.where(x == 0, -jnp.inf, -0.5 * x))
        return x

    return flag, jax.lax.cond(flag == 1, many, few)


def crossing(corrected):
    """Flip the flag and draw the branch's site uniformly; the ratio counts both, or forgets it."""

    @ppl.kernel
    def move(trace):
        few = ppl.sample("new few", dist.Bernoulli(0.5))
        many = ppl.sample("new many", dist.DiscreteUniform(0, 2))
        flag = 1 - trace.choices["flag"]
        new = trace.with_choices({"flag": flag, "few": few, "many": many})
        # To "many" one of three is drawn, back to "few" one of two.
        jump = jnp.where(flag == 1, jnp.log(3.0 / 2.0), jnp.log(2.0 / 3.0)) if corrected else 0.0
        ratio = jnp.exp(jnp.minimum(0.0, new.log_density - trace.log_density + jump))
        return ppl.choose(ppl.sample("accept", dist.Bernoulli(ratio)) == 1, new, trace)

    return move


# --- preserves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("transformer", [importance, ppl.weighted, ppl.traced, lambda p: p])
def test_valid_transformers_pass(transformer):
    report = ppl.check.preserves(transformer, zoo.two_coins())
    assert report.passed
    assert report.false_alarm == 0
    assert report.statistic < 1e-12


@pytest.mark.parametrize(
    ("transformer", "why"),
    [
        (lambda p: ppl.scale(p, 0.5, ["a"]), "the total mass differs"),
        (lambda p: ppl.mask(p, False), "the total mass differs"),
        (lambda p: ppl.do(p, {"b": 1}), "the total mass differs"),
    ],
)
def test_invalid_transformers_fail_and_say_why(transformer, why):
    report = ppl.check.preserves(transformer, zoo.two_coins())
    assert report.verdict == "failed"
    assert not report
    assert why in "".join(report.notes)
    with pytest.raises(ppl.check.CheckFailed, match="preserves: failed"):
        report.require()


def test_a_report_shows_states_masses_and_the_program():
    text = str(ppl.check.preserves(lambda p: ppl.mask(p, False), zoo.two_coins()))
    # Without the factor (0, 0) has mass 0.7 * 0.8 = 0.56 instead of 0.14.
    assert "[0] = 0, [1] = 0" in text
    assert "0.56" in text
    assert "def two_coins()" in text
    html = ppl.check.preserves(lambda p: ppl.mask(p, False), zoo.two_coins())._repr_html_()
    assert "0.56" in html


def test_the_same_total_mass_is_not_enough():
    def swapped(program):
        @ppl.model
        def model():
            a, b = program()
            return 1 - a, b

        return model()

    report = ppl.check.preserves(swapped, zoo.two_coins())
    assert report.verdict == "failed"
    assert "the total mass agrees" in report.notes[0]


def test_small_evidence_does_not_hide_a_difference():
    @ppl.model
    def rare(weight):
        a = ppl.sample("a", dist.Bernoulli(0.5))
        ppl.factor("rare", -100.0 + weight * a)
        return a

    assert ppl.check.preserves(lambda _: rare(0.1), rare(0.0)).verdict == "failed"
    assert ppl.check.preserves(lambda _: rare(0.1), rare(0.1)).passed


def test_two_measures_without_mass_are_undecided():
    @ppl.model
    def impossible():
        a = ppl.sample("a", dist.Bernoulli(0.5))
        ppl.factor("never", -jnp.inf)
        return a

    report = ppl.check.preserves(importance, impossible())
    assert report.verdict == "undecided"
    assert not report.passed


def test_quadrature_makes_a_continuous_program_exact():
    program = zoo.normal_normal(zoo.NORMAL_DATA.astype(float))
    report = ppl.check.preserves(ppl.weighted, program, quadrature={"mu": 32}, tolerance=1e-10)
    assert report.passed
    assert report.false_alarm == 0


def test_too_few_nodes_decide_nothing():
    @ppl.kernel
    def independent(trace):
        new = trace.with_choices({"p": ppl.sample("new", dist.Beta(2.0, 3.0))})
        old, size = trace.choices["p"], new.choices["p"]
        back = dist.Beta(2.0, 3.0).log_prob(old) - dist.Beta(2.0, 3.0).log_prob(size)
        ratio = jnp.exp(jnp.minimum(0.0, new.log_density - trace.log_density + back))
        return ppl.choose(ppl.sample("accept", dist.Bernoulli(ratio)) == 1, new, trace)

    def check(nodes):
        rules = {"p": nodes, "kernel/new": nodes}
        return ppl.check.invariant(independent, zoo.beta_binomial(3), quadrature=rules)

    assert check(8).verdict == "undecided"
    assert "use more nodes" in check(8).notes[0]
    assert check(48).passed


def test_two_programs_may_be_equal():
    assert ppl.check.equal(zoo.two_coins(), zoo.two_coins()).passed
    report = ppl.check.equal(zoo.two_coins(), ppl.mask(zoo.two_coins(), False))
    assert report.verdict == "failed"


@pytest.mark.slow
def test_a_continuous_program_is_compared_by_draws():
    # False alarm 1e-6, as the report says.
    program = zoo.branching()
    report = ppl.check.preserves(lambda p: ppl.importance(p, num_particles=3), program, key=1)
    assert report.passed
    assert 0 < report.false_alarm <= 1e-6
    assert "compared by draws" in "".join(report.notes)
    wrong = ppl.check.preserves(lambda p: ppl.mask(p, False), program, key=1)
    assert wrong.verdict == "failed"


def test_preserves_refuses_what_is_no_transformer():
    with pytest.raises(ppl.PPLError, match=r"transformer that returned float; needs a function"):
        ppl.check.preserves(lambda p: 1.0, zoo.two_coins())
    with pytest.raises(ppl.PPLError, match="preserves got Model"):
        ppl.check.preserves(importance, zoo.two_coins)
    with pytest.raises(ppl.PPLError, match="different structure"):
        ppl.check.preserves(lambda p: zoo.beta_binomial(3), zoo.two_coins(), quadrature={"p": 16})


# --- invariant and reversible -------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [flip_a, proposing(0.5), redraw("a"), redraw("b")])
def test_reversible_kernels_pass_both_checks(kernel):
    assert ppl.check.invariant(kernel, zoo.two_coins()).passed
    assert ppl.check.reversible(kernel, zoo.two_coins()).passed


def test_a_sweep_is_invariant_and_not_reversible():
    assert ppl.check.invariant(sweep, zoo.two_coins()).passed
    assert ppl.check.reversible(sweep, zoo.two_coins()).verdict == "failed"


def test_a_forgotten_proposal_ratio_fails():
    report = ppl.check.invariant(proposing(0.7), zoo.two_coins())
    assert report.verdict == "failed"
    # By hand: from a = 0 the move to 1 is proposed with 0.7 instead of 0.5.
    assert report.statistic > 0.05


def test_a_density_that_is_not_brought_up_to_date_fails():
    report = ppl.check.invariant(stale, zoo.two_coins())
    assert report.verdict == "failed"
    assert "trace up to date = False" in str(report)
    assert "trace up to date = True" not in str(report)


def test_a_move_between_branches_needs_the_ratio_of_the_proposals():
    assert ppl.check.invariant(crossing(corrected=True), shifting()).passed
    assert ppl.check.reversible(crossing(corrected=True), shifting()).passed
    assert ppl.check.invariant(crossing(corrected=False), shifting()).verdict == "failed"


def test_staying_is_invariant_and_a_plain_function_will_do():
    assert ppl.check.invariant(lambda trace: trace, shifting()).passed


def test_kernels_that_return_something_else_are_refused():
    with pytest.raises(ppl.PPLError, match=r"the kernel returned dict; needs a Trace"):
        ppl.check.invariant(lambda trace: trace.choices, zoo.two_coins())
    with pytest.raises(ppl.PPLError, match="invariant got the kernel 3"):
        ppl.check.invariant(3, zoo.two_coins())


# --- unbiased -----------------------------------------------------------------------------------


@ppl.model
def reinforce(theta, baseline):
    """Estimate the gradient of E[(b - 0.3)^2], b ~ Bernoulli(theta), by the score function."""
    b = ppl.sample("b", dist.Bernoulli(theta))
    score = jax.grad(lambda t: dist.Bernoulli(t).log_prob(b))(theta)
    return {"theta": ((b - 0.3) ** 2 - baseline) * score}


def test_the_score_function_estimator_is_unbiased_with_any_constant_baseline():
    # E = theta 0.49 + (1 - theta) 0.09: derivative 0.4.
    for baseline in (0.0, 0.25):
        report = ppl.check.unbiased(reinforce(0.2, baseline), {"theta": 0.4})
        assert report.passed
        assert report.statistic < 1e-12


def test_a_biased_estimator_fails_and_its_coordinates_are_shown():
    report = ppl.check.unbiased(reinforce(0.2, 0.0), {"theta": 0.41})
    assert report.verdict == "failed"
    assert "theta" in str(report)
    assert "0.4" in str(report)


def test_an_evidence_estimate_is_unbiased():
    @ppl.model
    def estimate():
        program = ppl.importance(zoo.two_coins.program(), num_particles=2)
        return jnp.exp(program().log_evidence)

    assert ppl.check.unbiased(estimate(), zoo.TWO_COINS_EVIDENCE).passed
    assert not ppl.check.unbiased(estimate(), zoo.TWO_COINS_EVIDENCE + 1e-6).passed


def test_unbiased_by_draws_where_sites_are_continuous():
    @ppl.model
    def mean():
        return ppl.sample("x", dist.Uniform(0.0, 1.0)) ** 2

    report = ppl.check.unbiased(mean(), 1 / 3, key=0)
    assert report.passed
    assert 0 < report.false_alarm <= 1e-6
    assert ppl.check.unbiased(mean(), 0.4, key=0).verdict == "failed"


def test_unbiased_refuses_another_form():
    with pytest.raises(ppl.PPLError, match="unbiased got exact of shape"):
        ppl.check.unbiased(reinforce(0.2, 0.0), 0.4)


def test_enumeration_is_repeated_without_compiling():
    from tests.compiling import compilations

    ppl.check.unbiased(reinforce(0.2, 0.0), {"theta": 0.4})
    with compilations() as found:
        assert ppl.check.unbiased(reinforce(np.float64(0.3), 0.1), {"theta": 0.4}).passed
    assert found.count == 0


def test_unknown_settings_are_refused_even_where_none_is_needed():
    with pytest.raises(ppl.PPLError, match=r"unknown keyword false_alrm.*Did you mean"):
        ppl.check.preserves(importance, zoo.two_coins(), false_alrm=1e-3)
    with pytest.raises(ppl.PPLError, match="invariant got the unknown keyword num_particles"):
        ppl.check.invariant(flip_a, zoo.two_coins(), num_particles=3)
    assert ppl.check.preserves(importance, zoo.two_coins(), false_alarm=1e-3).passed


def test_an_unknown_address_for_quadrature_is_refused():
    program = zoo.normal_normal(zoo.NORMAL_DATA.astype(float))
    with pytest.raises(ppl.PPLError, match=r'preserves\(quadrature=\) got unknown address "mo"'):
        ppl.check.preserves(ppl.weighted, program, quadrature={"mo": 32})


def test_an_estimator_on_too_few_nodes_is_undecided():
    @ppl.model
    def root():
        return jnp.sqrt(ppl.sample("x", dist.Uniform(0.0, 1.0)))

    # E[sqrt(x)] = 2 / 3.
    assert ppl.check.unbiased(root(), 2 / 3, quadrature={"x": 7}).verdict == "undecided"
    assert ppl.check.unbiased(root(), 2 / 3, quadrature={"x": 64}).passed
    assert ppl.check.unbiased(root(), 0.7, quadrature={"x": 64}).verdict == "failed"
