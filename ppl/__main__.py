"""`python -m ppl`: fit eight schools, say what the posterior says, draw it; check a filter."""

from __future__ import annotations

import argparse
import importlib.resources
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import ppl
import ppl.distributions as dist
from ppl.results import diagnostics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMATS = (".png", ".pdf", ".svg")
_PARTICLES = 100_000
_BLUE, _ORANGE, _GREY, _INK = "#2a6f97", "#d1773b", "#8d99a6", "#22303c"
_STYLE: Any = {  # matplotlib types its keys
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}


@ppl.model
def eight_schools(sigma: Any, y: Any = None) -> Array:
    """Partially pool the effects of coaching in eight schools (Rubin 1981), non-centred."""
    mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
    tau = ppl.sample("tau", dist.HalfCauchy(5.0))
    with ppl.plate("school", 8):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        theta = ppl.deterministic("theta", mu + tau * z)
        ppl.sample("y", dist.Normal(theta, sigma), obs=y)
    return theta


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, print and draw.

    Args:
        arguments: of the command line; those of the process by default.

    Returns:
        The exit code.
    """
    options = _options(arguments)
    file = importlib.resources.files("ppl") / "data" / "eight_schools.json"
    data = json.loads(file.read_text("utf-8"))
    schools = data["school"]
    y, sigma = (np.array(data[name], np.float32) for name in ("y", "sigma"))

    print("Eight schools coached pupils for a test. Each reports an effect y and its standard")
    print("error sigma (Rubin 1981). How much of the difference between schools is real?\n")
    program = eight_schools(jnp.asarray(sigma), jnp.asarray(y))
    print(f"{program}\n", flush=True)

    nuts = ppl.mcmc(program, ppl.kernels.nuts(target_accept=0.9))
    chains = ppl.run(nuts, options.seed)
    print(chains.summary(["mu", "tau", "theta"], coords={"school": schools}), end="\n\n")
    draws = {name: np.asarray(chains[name]) for name in ("mu", "tau", "theta")}
    replicated = np.asarray(chains.predictive(options.seed + 1)["y"])
    for line in _findings(draws["theta"], replicated, y, schools):
        print(line)
    print(_evidences(program, options.seed), end="\n\n")

    _picture(draws, y, sigma, schools).savefig(options.output)
    print(f"The picture is in {options.output}\n")
    report = _filter_is_exact()
    print("Is an inference algorithm right? It is a program too, so all its draws can be listed:")
    print(
        f"a particle filter of {_FEW} particles and its hidden Markov model denote one measure, up "
        f"to {report.statistic:.1e}\nin total variation ({report.verdict}, exact)."
    )
    return 0 if report.passed else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ppl",
        description="Fit the eight-schools model with NUTS, print the posterior, draw it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("posterior.png"),
        metavar="FILE",
        help="where to write the picture: .png, .pdf or .svg (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.output.suffix not in _FORMATS:
        parser.error(
            f"--output got {str(options.output)!r}; needs {', '.join(_FORMATS)} at the end"
        )
    if not options.output.parent.is_dir():
        parser.error(f"--output got {str(options.output)!r}; needs a folder that exists")
    return options


# --- What a person wants to know ----------------------------------------------------------------


def _findings(
    theta: Float[np.ndarray, "chain draw school"],
    replicated: Float[np.ndarray, "chain draw school"],
    y: Float[np.ndarray, " school"],
    schools: Sequence[str],
) -> list[str]:
    """Compare the two extreme schools, and the largest effect with replications of the data."""
    high, low = int(y.argmax()), int(y.argmin())
    a, c = schools[high], schools[low]
    above = _probability(theta[..., high] > theta[..., low])
    best = _probability(theta.argmax(-1) == high)
    as_large = _probability(replicated.max(-1) >= y.max())
    return [
        f"P(theta[{a}] > theta[{c}]) = {above}, although they reported {y[high]:.0f} and "
        f"{y[low]:.0f}.",
        f"P({a} is the best of the eight) = {best}.",
        f"Posterior predictive check: P(largest of eight new reports >= {y.max():.0f}) = "
        f"{as_large}.",
    ]


def _probability(event: Any) -> str:
    """Write the frequency of an event of shape (chain, draw), and its Monte Carlo error."""
    return f"{event.mean():.3f} ± {float(diagnostics.mcse(event.astype(float))):.3f}"


def _evidences(program: ppl.Program, seed: int) -> str:
    """Compare the evidence with that of one effect for all schools."""
    pooled = ppl.do(program, {"tau": 0.0})
    some, none = (_log_evidence(p, seed + k) for k, p in ((2, program), (3, pooled)))
    gap, error = none[0] - some[0], np.hypot(none[1], some[1])
    return (
        f"log evidence = {some[0]:.3f} ± {some[1]:.3f}, by importance sampling "
        f"({_PARTICLES:,} particles);\n"
        f"log evidence = {none[0]:.3f} ± {none[1]:.3f} if all schools are alike (tau = 0), which "
        f"the data {'favour' if gap > 0 else 'disfavour'}\n"
        f"by a factor of {np.exp(abs(gap)):.2f} ± {np.exp(abs(gap)) * error:.2f}."
    )


def _log_evidence(program: ppl.Program, seed: int) -> tuple[float, float]:
    """Estimate the log evidence and its standard error."""
    population = ppl.run(ppl.importance(program, num_particles=_PARTICLES), seed)
    return float(population.log_evidence), float(population.log_evidence_se)


# --- A particle filter, and what it denotes -----------------------------------------------------

_FEW = 3
_MOVES = np.array([[0.7, 0.3], [0.2, 0.8]])  # of a switch that is off or on, by its last state
_LIT = np.array([0.1, 0.8])  # how often a lamp beside it is seen lit
_SEEN = np.array([1, 0, 1])


@ppl.model
def switch(seen: Any) -> Array:
    """Draw the last state of a switch whose lamp was seen lit or not."""

    def step(state: Any, lit: Any) -> tuple[Any, None]:
        state = ppl.sample("state", dist.Bernoulli(jnp.asarray(_MOVES)[state, 1]))
        ppl.sample("lit", dist.Bernoulli(jnp.asarray(_LIT)[state]), obs=lit)
        return state, None

    return jax.lax.scan(step, 0, seen)[0]


def _filter_is_exact() -> Any:
    """Compare the measures of the filter and of its model, in double precision."""
    with jax.enable_x64(True):
        return ppl.check.preserves(lambda p: ppl.smc(p, num_particles=_FEW), switch(_SEEN))


# --- The picture --------------------------------------------------------------------------------


def _picture(
    draws: dict[str, np.ndarray], y: np.ndarray, sigma: np.ndarray, schools: Sequence[str]
) -> Figure:
    """Draw reported against estimated effects, and the posterior of their spread."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot no display is looked for

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 4.6), dpi=150, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)  # pyright: ignore
        left, right = figure.subplots(1, 2, width_ratios=(1.75, 1))
        _effects(left, draws["theta"], float(draws["mu"].mean()), y, sigma, schools)
        _spread(right, draws["tau"].ravel())
        figure.draw_without_rendering()  # settle the text while the style is in force
    return figure


def _effects(
    axes: Axes,
    theta: np.ndarray,
    mu: float,
    y: np.ndarray,
    sigma: np.ndarray,
    schools: Sequence[str],
) -> None:
    order = np.argsort(y)
    rows = np.arange(len(y))
    y, sigma = y[order], sigma[order]
    low, middle, high = np.quantile(theta, [0.16, 0.5, 0.84], axis=(0, 1))[:, order]
    up, down = rows + 0.16, rows - 0.16
    axes.axvline(mu, color=_BLUE, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.annotate(
        "mean of μ", (mu, len(y) - 0.42), (5, 0), textcoords="offset points", color=_BLUE, size=9
    )
    for start, end, row in zip(y, middle, rows, strict=True):
        axes.plot((start, end), (row + 0.16, row - 0.16), color=_GREY, linewidth=0.8, zorder=1)
    axes.errorbar(
        y,
        up,
        xerr=sigma,
        fmt="o",
        color=_ORANGE,
        ecolor=(_ORANGE, 0.5),
        elinewidth=2.5,
        markersize=6,
        label="reported ± 1 standard error",
    )
    axes.errorbar(
        middle,
        down,
        xerr=(middle - low, high - middle),
        fmt="o",
        color=_BLUE,
        ecolor=(_BLUE, 0.5),
        elinewidth=5,
        markersize=6,
        label="posterior median, central 68%",
    )
    axes.set_yticks(rows, [schools[int(k)] for k in order])
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="effect on the score, points", ylabel="school", ylim=(-0.7, len(y) - 0.1))
    axes.set_title("What schools report, and what is left of it", pad=28)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 0.985), ncols=2, fontsize=9, handletextpad=0.2
    )


def _spread(axes: Axes, tau: np.ndarray) -> None:
    """Draw the part of the posterior of tau below 20, against the prior."""
    edges = [float(k) for k in range(21)]
    axes.hist(
        tau,
        edges,
        weights=np.full(tau.shape, 1 / tau.size),
        color=_BLUE,
        alpha=0.55,
        edgecolor="white",
        label="posterior",
    )
    grid = np.linspace(edges[0], edges[-1], 201)[1:]  # the support is open at 0
    prior = np.exp(np.asarray(dist.HalfCauchy(5.0).log_prob(jnp.asarray(grid))))
    axes.plot(grid, prior, color=_INK, linewidth=1.2, linestyle=(0, (4, 3)), label="prior")
    low, high = np.quantile(tau, [0.05, 0.95])
    axes.hlines(0, low, high, color=_BLUE, linewidth=5, clip_on=False, zorder=3)
    axes.plot(
        np.median(tau),
        0,
        "o",
        color=_BLUE,
        markersize=7,
        clip_on=False,
        zorder=4,
        label=f"median {np.median(tau):.1f}, 90% in {low:.1f} to {high:.1f}",
    )
    axes.set(xlabel="τ, points", xlim=(edges[0], edges[-1]), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.set_title("τ, the spread between schools", pad=28)
    axes.legend(loc="upper right", fontsize=9)


if __name__ == "__main__":
    sys.exit(main())
