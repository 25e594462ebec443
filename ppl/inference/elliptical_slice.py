"""`elliptical_slice`: slice sampling along ellipses, for latents with a Gaussian prior."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ppl import distributions as dist
from ppl._types import Choices, pytree, static
from ppl.context import current_context
from ppl.errors import UnsupportedError, at, check_addresses, message, named_keywords
from ppl.inference.trace_kernel import TraceKernel, as_addresses
from ppl.interpreter import Frame, Interpreter, evaluate
from ppl.primitives import Operands, Site, lanes, log_prob, sample_p, value_of, with_operand
from ppl.program import Program
from ppl.semantics.density import Density
from ppl.semantics.kernel import choose
from ppl.semantics.weighted import Trace
from ppl.sites import Input, SiteInfo
from ppl.statements import sample, scope

#: Distributions that are Gaussian, whose mean NumPyro knows.
_GAUSSIAN = ("Normal", "MultivariateNormal", "LowRankMultivariateNormal")


@named_keywords
def elliptical_slice(*, addresses: Sequence[str] | None = None) -> EllipticalSlice:
    """Make the elliptical slice sampler on latents with a Gaussian prior.

    **Meaning.** Leaves the program's measure on choices invariant, exactly, and is reversible. The
    sites are moved together, on the ellipse through their present values and a draw from their
    prior; all the rest of the density is the likelihood, densities of held latents among it. There
    is nothing to tune. A point on which a held site would come into being or go is outside of the
    slice.

    Args:
        addresses: the latents that move; None for all. Each is normal or multivariate normal, in
            plates, loops and events as they like, and its parameters depend on none that moves.

    Returns:
        A `Kernel`.

    Raises:
        AddressError: (when called) an address is not a latent site of the program.
        UnsupportedError: (when called) a site that moves is not Gaussian, or depends on one that
            does, or there is none.

    Source: Murray, Adams and MacKay (2010), figure 2.
    """
    return EllipticalSlice(as_addresses("elliptical_slice", addresses))


@pytree
class EllipticalSlice(TraceKernel):
    """The kernel of `elliptical_slice`."""

    addresses: tuple[str, ...] | None = static()

    operation: ClassVar[str] = "elliptical_slice"

    def move(self, trace: Trace) -> Trace:
        """Draw an ellipse and a height, and shrink an arc onto a point inside of the slice."""
        program = trace._known_program("elliptical_slice")
        names = program.latents if self.addresses is None else self.addresses
        _check(program, names)
        with scope("prior"):
            prior = _prior(program, names, trace.choices)

        def along(angle: Any) -> Choices:
            def turn(x: Any, mean: Any, other: Any) -> Any:
                c, s = jnp.cos(angle), jnp.sin(angle)
                return (mean + c * (x - mean) + s * (other - mean)).astype(x.dtype)

            return {a: turn(trace.choices[a], *pair) for a, pair in prior.items()}

        def log_likelihood(angle: Any) -> Any:
            return _log_likelihood(trace, along(angle))

        now = _log_likelihood(trace, {a: trace.choices[a] for a in names})
        level = now - sample("height", dist.Exponential(1.0))
        angle = sample("angle", dist.Uniform(0.0, 2 * jnp.pi))

        def missed(state: Any) -> Any:
            # An arc that rounding has closed upon the old point ends there.
            _, _, angle, found = state
            return ~(found >= level) & (angle != 0)

        def shrink(state: Any) -> Any:
            low, high, angle, _ = state
            low, high = jnp.where(angle < 0, angle, low), jnp.where(angle < 0, high, angle)
            angle = low + (high - low) * sample("angle", dist.Uniform(0.0, 1.0))
            return low, high, angle, log_likelihood(angle)

        with scope("shrink"):
            start = angle - 2 * jnp.pi, angle, angle, log_likelihood(angle)
            *_, angle, found = jax.lax.while_loop(missed, shrink, start)
        return choose((angle != 0) & (found >= level), trace.with_choices(along(angle)), trace)


# --- What the sites' distributions say ----------------------------------------------------------


class _Drawing(Interpreter):
    """Draw moving sites anew beside the given values; note their means and the draws."""

    name = "elliptical_slice"
    unbounded = False

    def __init__(self, names: tuple[str, ...], prefix: str):
        self.names, self.prefix = names, prefix

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.kind != "latent":
            return value_of(site, leaves)
        if site.address in self.names:
            plain, bare = with_operand(site, leaves, "scale", None, mapped=False)
            renamed = dataclasses.replace(plain, address=self.prefix + site.address)
            frame.record(site, leaves, (_mean(plain, bare), sample_p.bind(*bare, site=renamed)[0]))
        return frame.given[site.address]

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        """The prior has no part in it."""


def _mean(site: Site, leaves: list[Any]) -> Any:
    def one(operands: Operands) -> Any:
        d: Any = operands.distribution
        return jnp.broadcast_to(d.mean, site.shape)

    return lanes(site, one)(leaves)


def _prior(program: Program, names: tuple[str, ...], choices: Choices) -> dict[str, Any]:
    """Give by address the mean and a draw of each moving site."""
    s, drawing = program.structure, _Drawing(names, current_context().prefix)
    out = evaluate(drawing, s.jaxpr, program.consts, program.args, given=choices)
    return {a: r.value for a, r in out.records.items()}


class _Likelihood(Density):
    """Add up all densities but those of the moving sites, of which only a scale counts."""

    name = "elliptical_slice"

    def __init__(self, names: tuple[str, ...]):
        super().__init__(record=True)
        self.names = names

    def latent(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.address not in self.names:
            return super().latent(frame, site, leaves)
        value = frame.given[site.address]
        if site.operands(leaves).scale is not None:
            plain, bare = with_operand(site, leaves, "scale", None, mapped=False)
            frame.add(jnp.sum(log_prob(site, leaves, value) - log_prob(plain, bare, value)))
        return value


def _log_likelihood(trace: Trace, moved: Mapping[str, Any]) -> Any:
    program = trace._known_program("elliptical_slice")
    s, given = program.structure, {**trace.choices, **moved}
    out = evaluate(_Likelihood(tuple(moved)), s.jaxpr, program.consts, program.args, given=given)
    same = [
        jnp.all(r.present == trace.present[a])
        for a, r in out.records.items()
        if r.present is not None and a in trace.choices
    ]
    return jnp.where(jnp.all(jnp.array(same)), out.weight, -jnp.inf) if same else out.weight


# --- What the sites must be ---------------------------------------------------------------------


def _check(program: Program, names: tuple[str, ...]) -> None:
    check_addresses("elliptical_slice", names, program.latents)
    if not names:
        raise UnsupportedError(
            message(
                f"elliptical_slice got {program.name}, which has no latent site",
                needs="at least one latent site with a Gaussian prior",
                fix="print(program) lists every site",
            )
        )
    for address in names:
        site = program.sites[address]
        others = [a for a in names if a != address]
        if site.distribution not in _GAUSSIAN:
            raise UnsupportedError(
                message(
                    f"elliptical_slice got {at(address, site.source)}, a {site.distribution}",
                    needs=f"sites that are {' or '.join(_GAUSSIAN)}",
                    why="ellipses are level sets of Gaussian densities only",
                    fix="ppl.kernels.elliptical_slice(addresses=[...]) for the Gaussian sites, and "
                    "another kernel for the rest",
                )
            )
        if causes := _causes(program, site, others):
            raise UnsupportedError(
                message(
                    f"elliptical_slice got {at(address, site.source)}, which depends on "
                    + ", ".join(f'"{a}"' for a in causes),
                    needs="sites whose distributions depend on none that moves",
                    why="together they are not Gaussian, or not with a covariance that is known",
                    fix=f'move "{address}" alone and hold what it depends on, or write it as '
                    "mean + deviation * z with z normal",
                )
            )


def _causes(program: Program, site: SiteInfo, names: Sequence[str]) -> list[str]:
    """List the moving sites that a site depends on, itself included where it stands in a loop."""
    found, stack, seen = [], [site], {site.address}
    while stack:
        parent = stack.pop()
        for address in parent.depends_on:
            if address in names and address not in found:
                found.append(address)
            if address not in seen and program.sites[address].kind == "deterministic":
                stack.append(program.sites[address])
                seen.add(address)
    if site.placed.scans or site.placed.whiles:
        checks = (c for c in program.sites.checks if c.placed.site.address == site.address)
        known = all(_is_known(x) for c in checks for x in c.parameters)
        if not known or site.conditional:
            found.append(site.address)
    return found


def _is_known(parameter: Any) -> bool:
    """Tell whether a parameter is data, so that no draw of an earlier iteration is part of it."""
    return isinstance(parameter, Input | int | float) or hasattr(parameter, "dtype")
