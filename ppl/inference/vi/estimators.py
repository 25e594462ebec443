"""How the derivative of an expectation passes a sample site: the estimators a user can choose."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from jaxtyping import ArrayLike

from ppl._types import pytree, static
from ppl.errors import ArgumentError, message, named_keywords
from ppl.primitives import GradientEstimator


@pytree
class Reparam(GradientEstimator):
    """Draw noise that no parameter touches, and move it: see `reparam`."""


@pytree
class Implicit(GradientEstimator):
    """Move the draw along its distribution function: see `implicit`."""


@pytree
class Reinforce(GradientEstimator):
    """Weigh the score by the cost: see `reinforce`."""

    baseline: Any = None
    learn: bool = static(default=False)
    leave_one_out: bool = static(default=False)


@pytree
class Enum(GradientEstimator):
    """Sum over the support: see `enum`."""


@pytree
class MeasureValued(GradientEstimator):
    """Difference of two draws: see `mvd`."""


@pytree
class StraightThrough(GradientEstimator):
    """Differentiate the mean in place of the draw: see `straight_through`."""

    relaxes: ClassVar[bool] = True


@pytree
class GumbelSoftmax(GradientEstimator):
    """Relax the draw: see `gumbel_softmax`."""

    temperature: Any
    hard: bool = static(default=False)
    relaxes: ClassVar[bool] = True


@pytree
class Ignore(GradientEstimator):
    """Leave the draw's own derivative out: see `ignore`."""


def reparam() -> Reparam:
    """Write the draw as a differentiable function of parameters and of noise without parameters.

    Unbiased to any order if the cost is a smooth function of the draw. For distributions with
    location and scale, uniform, exponential and half-normal ones, multivariate normal and
    transformed ones the noise is a site of its own; for others the sampler's own derivative is
    used, which for gamma, beta, Dirichlet and Student's t is the implicit one (Figurnov, Mohamed &
    Mnih 2018).
    """
    return Reparam()


def implicit() -> Implicit:
    """Differentiate a continuous draw by the implicit function theorem.

    With distribution function F and density p, dx / dtheta = -(dF / dtheta) / p at the draw x
    (Figurnov, Mohamed & Mnih 2018, eq. 4). Unbiased to any order if the cost is a smooth function
    of the draw. For scalar distributions with a differentiable `cdf`, and for the von Mises, gamma,
    beta, Dirichlet and Student's t distributions.
    """
    return Implicit()


@named_keywords
def reinforce(
    baseline: ArrayLike | Literal["leave_one_out"] | None = None,
    learn: bool = False,
) -> Reinforce:
    """Use the score function: the cost, less a baseline, times the gradient of the log density.

    The cost is what depends on the draw: terms that do not, and other lanes of a plate or `vmap`,
    are left out where the program's operations show it.

    Unbiased to any order, for every distribution whose density is differentiable in its parameters
    and whose support does not move with them, which is refused (Glynn 1987; Williams 1992); any
    order by the surrogate of Foerster et al. (2018).

    Args:
        baseline: what is subtracted from that cost: a number, or an array that the model computed
            from what stands before the site (an array of a network in the model: one for each
            `vmap` lane). "leave_one_out" takes the mean cost of the other samples, and needs
            `expectation(..., num_samples=2)` or more.
        learn: also give the baseline a gradient, that of half the squared distance from the cost,
            so that what it was computed from is learned along with all else; its gradient is then
            no longer that of the expectation, which does not depend on it.

    Raises:
        ArgumentError: the baseline is another word, or there is none to learn.
    """
    if isinstance(baseline, str) and baseline == "leave_one_out":
        if learn:
            _refuse(
                'baseline="leave_one_out" with learn=True', "no learning: it is not a parameter"
            )
        return Reinforce(None, False, True)
    if isinstance(baseline, str):
        _refuse(f"baseline={baseline!r}", 'a number, an array, None, or "leave_one_out"')
    if learn and baseline is None:
        _refuse("learn=True without a baseline", "a baseline that depends on parameters")
    return Reinforce(baseline, bool(learn), False)


def enum() -> Enum:
    """Sum over the values of a finite site instead of drawing one.

    Exact, and unbiased to any order, as long as all values of all such sites together are at most
    256 (the rest of the program runs once for each combination). Elements beyond that, such as
    those of long loops, are drawn, and each adds the sum over its own values of the derivative of
    their probability times the cost of the program run with that value instead: unbiased for first
    derivatives, named error for higher ones.
    """
    return Enum()


def mvd() -> MeasureValued:
    """Use a measure-valued (weak) derivative: the cost at draws of two other distributions.

    The derivative of a density in a parameter is c (p+ - p-) with densities p+ and p-; the estimate
    is c times the difference of the costs there (Mohamed et al. 2020, section 6), for every
    parameter of every element of the site. The cost need not be smooth. Unbiased for first
    derivatives; higher ones are refused. For Bernoulli, categorical, Poisson, geometric,
    exponential and normal distributions.
    """
    return MeasureValued()


def straight_through() -> StraightThrough:
    """Use the derivative of the mean of the distribution for that of the draw.

    **Biased.** Exact where the cost is linear in the draw (Bengio et al. 2013). For Bernoulli sites
    and one-hot ones (multinomials of one trial), whose draws are then floating numbers, zeros and
    ones; it has to be said at the `ppl.sample` statement.
    """
    return StraightThrough()


@named_keywords
def gumbel_softmax(temperature: ArrayLike, hard: bool = False) -> GumbelSoftmax:
    """Put a smooth function of noise in place of the draw.

    **Biased**, in value and derivative. With Gumbel noise g, softmax((logits + g) / temperature)
    comes near the one-hot draw as the temperature falls, and its derivative varies more (Jang et
    al. 2017; Maddison et al. 2017). For Bernoulli sites and one-hot ones (multinomials of one
    trial), whose draws are then floating numbers; it has to be said at the `ppl.sample` statement.
    What runs the program as it is (`ppl.run`, `ppl.enumerate`) draws zeros and ones.

    Args:
        temperature: a positive number.
        hard: draw zeros and ones in `expectation` too, and only differentiate as if relaxed; the
            value is then unbiased.

    Raises:
        ArgumentError: the temperature is not positive.
    """
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ArgumentError(
            message(
                f"gumbel_softmax got temperature={temperature!r}",
                needs="a positive number",
                fix="ppl.vi.gumbel_softmax(0.5)",
            )
        )
    return GumbelSoftmax(temperature, bool(hard))


def ignore() -> Ignore:
    """Treat the draw as if its distribution had no parameters.

    **Biased**, unless it has none. What particle objectives do with resampling (Maddison et al.
    2017, section 4).
    """
    return Ignore()


def _refuse(what: str, needs: str) -> None:
    raise ArgumentError(
        message(f"reinforce got {what}", needs=needs, fix="ppl.vi.reinforce(baseline=0.5)")
    )
