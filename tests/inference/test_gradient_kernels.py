"""Kernels that follow gradients or levels keep the posterior, whatever the data.

`ppl.check.geweke` moves draws of a program, given data of their own; `ppl.check.sbc` runs whole
chains. Each fails a sound kernel with probability at most 1e-6. Mutants show what they see: each is
a kernel of the package with one part exchanged.
"""

import jax.numpy as jnp
import pytest

import ppl
import ppl.distributions as dist
from ppl._types import pytree
from ppl.inference import elliptical_slice, hmc, mala, nuts, slice, trajectory
from ppl.inference.coordinates import Coordinates
from ppl.inference.dynamics import phase

kernels = ppl.kernels

# --- Two programs -------------------------------------------------------------------------------


@ppl.model
def measured(y):
    """A normal mean, and a variance of inverse gamma prior: conjugate, and not normal."""
    variance = ppl.sample("variance", dist.InverseGamma(4.0, 3.0))
    mean = ppl.sample("mean", dist.Normal(1.0, jnp.sqrt(variance)))
    with ppl.plate("n", 3):
        ppl.sample("y", dist.Normal(mean, jnp.sqrt(variance)), obs=y)


@ppl.model
def thinned(y):
    """A positive latent and one between zero and one, of which the datum tells the product."""
    rate = ppl.sample("rate", dist.Weibull(1.0, 3.0))
    share = ppl.sample("share", dist.Kumaraswamy(2.0, 3.0))
    ppl.sample("y", dist.Exponential(rate * share), obs=y)


# Of laws that vanish at the bounds, so that a mutant without a Jacobian has somewhere to be.
PROGRAMS = {"measured": measured(jnp.zeros(3)), "thinned": thinned(1.0)}

# Steps so long that a part of the moves is rejected: where all are accepted no ratio is tested.
RIGHT = {
    "nuts": kernels.nuts(step_size=0.7),
    "hmc": kernels.hmc(0.3, 2),
    "mala": kernels.mala(0.3),
    "slice": kernels.slice(width=1.0),
    "ellipse": kernels.elliptical_slice(addresses=["mean"]),  # whose prior is normal
}
CASES = [
    (name, program)
    for program in ("measured", "thinned")
    for name in RIGHT
    if (name, program) != ("ellipse", "thinned")
]


def geweke(kernel, program):
    return ppl.check.geweke(kernel, program, key=0, false_alarm=1e-6)


@pytest.mark.parametrize(("name", "program"), CASES)
def test_the_posterior_is_kept(name, program):
    geweke(RIGHT[name], PROGRAMS[program]).require()


# --- Mutants ------------------------------------------------------------------------------------


def without_jacobian(space, z):
    """The density of the choices in place of that of their coordinates."""
    point = space.space.at(z)
    return point.log_density - point.log_jacobian


def without_kinetic_energy(state, inverse_mass):
    return state.log_density


def without_the_last_half_kick(log_density, state, step_size, inverse_mass):
    half = state.momentum + 0.5 * step_size * state.gradient
    return phase(log_density, state.position + step_size * inverse_mass * half, half)


def from_a_half_that_turned(*args):
    """The end of a trajectory is its last candidate, though its half made a U-turn."""
    after = trajectory.grow(*args)
    ended = after.numbers.status > 0
    return after._replace(chosen=jnp.where(ended, after.candidate, after.chosen))


def without_first_kinetic_energy(momentum, coins):
    """The start of a trajectory has the energy of a particle at rest."""
    return trajectory.noise(momentum, coins)._replace(kinetic=jnp.zeros(()))


def by_one_end(*args):
    """The first leaf of a trajectory is chosen always, whatever its energy."""
    before, after = args[1], trajectory.grow(*args)
    first = before.numbers.status > 0
    return after._replace(chosen=jnp.where(first, after.candidate, after.chosen))


def too_near(address, law):
    """Heights of a slice that lie too near below the density."""
    return ppl.sample(address, dist.Exponential(3.0) if address == "height" else law)


MUTANTS = {
    "nuts without the Jacobian": ("nuts", Coordinates, "log_density", without_jacobian),
    "hmc without the Jacobian": ("hmc", Coordinates, "log_density", without_jacobian),
    "mala without the Jacobian": ("mala", Coordinates, "log_density", without_jacobian),
    "slice without the Jacobian": ("slice", Coordinates, "log_density", without_jacobian),
    "nuts from a half that turned": ("nuts", nuts, "grow", from_a_half_that_turned),
    "nuts by one end": ("nuts", nuts, "grow", by_one_end),
    "nuts without kinetic energy": ("nuts", nuts, "noise", without_first_kinetic_energy),
    "hmc without kinetic energy": ("hmc", hmc, "log_energy", without_kinetic_energy),
    "hmc without a half kick": ("hmc", hmc, "leapfrog", without_the_last_half_kick),
    "mala without kinetic energy": ("mala", mala, "log_energy", without_kinetic_energy),
    "mala without a half kick": ("mala", mala, "leapfrog", without_the_last_half_kick),
    "slice by a wrong height": ("slice", slice, "sample", too_near),
    "ellipse by a wrong height": ("ellipse", elliptical_slice, "sample", too_near),
}


def mutant(monkeypatch, kernel, owner, name, part):
    """A kernel that is staged with a part exchanged; a new one, so that no cache has it."""

    @ppl.kernel
    def wrong(trace):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, part)
            return kernel.move(trace)

    return wrong


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_rejected(name, monkeypatch):
    kernel, *exchanged = MUTANTS[name]
    wrong = mutant(monkeypatch, RIGHT[kernel], *exchanged)
    program = "measured" if kernel == "ellipse" else "thinned"
    assert geweke(wrong, PROGRAMS[program]).verdict == "failed"


# --- Chains -------------------------------------------------------------------------------------
#
# `mcmc` runs NUTS in a loop of its own, in coordinates. With a step that is given it adapts nothing
# but waits: the warmup forgets where a chain started.


@ppl.model
def waiting(y):
    """A positive latent, and two data that it scales."""
    rate = ppl.sample("rate", dist.Weibull(1.0, 3.0))
    with ppl.plate("n", 2):
        ppl.sample("y", dist.Exponential(rate), obs=y)


@pytree
class WithoutJacobian(nuts.Nuts):
    """NUTS on the density of `rate` in place of that of its logarithm z, which is by z larger."""

    def flat_step(self, gradient, state, noise, num_warmup):
        def wrong(z):
            density, slope = gradient(z)
            return density - z[0], slope - 1.0

        return super().flat_step(wrong, state, noise, num_warmup)


SETTINGS = kernels.nuts(step_size=0.8, inverse_mass=1.0)
WRONG = WithoutJacobian(
    SETTINGS.step_size, SETTINGS.inverse_mass, SETTINGS.target_accept, None, 10, 0
)


@pytest.mark.parametrize(("kernel", "verdict"), [(SETTINGS, "passed"), (WRONG, "failed")])
def test_chains_of_nuts_are_calibrated(kernel, verdict):
    def infer(program):
        return ppl.mcmc(
            program, kernel, num_samples=31, num_warmup=30, num_chains=1, thin=4, init={"rate": 1.0}
        )

    report = ppl.check.sbc(
        infer, waiting(jnp.ones(2)), key=0, num_draws=31, num_simulations=500, false_alarm=1e-6
    )
    assert report.verdict == verdict, report
