"""The posteriors of `stan-dev/posteriordb` in this language, written from their `model.md`.

`POSTERIORS[name].program(data)` is the program for the contents of `data.json`. Its draws bear the
names of the reference: "beta[2]" is entry 1 of the site `beta`. Where the program has another
coordinate, `choices` gives it from the reference's.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ppl
import ppl.distributions as dist

Data = Mapping[str, Any]
Values = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Posterior:
    program: Callable[[Data], ppl.Program]
    choices: Callable[[Values, Data], Values] = lambda values, _: values
    # For the fit: settings of NUTS, and whether its curvature asks for double precision.
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_samples: int = 1000
    x64: bool = False
    # Whether the fit runs for longer than it compiles, and so is worth compiling for speed.
    long: bool = False
    # Where all chains start, if that has to be told; None for the package's own starts.
    init: Mapping[str, Any] | None = None
    # A scale in whose lowest values chains are known to diverge: the neck of a funnel.
    neck: str | None = None


def entry(draws: Mapping[str, Any], name: str) -> np.ndarray:
    """Find the draws, of shape (chain, draw), of a name of the reference such as "beta[2]"."""
    address, index = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", name).groups()  # type: ignore[union-attr]
    x = np.asarray(draws[address])
    return x if index is None else x[..., int(index) - 1]


def gather(row: Mapping[str, float]) -> Values:
    """Put one reference draw, by flat names, together into arrays by site."""
    parts: dict[str, list[float]] = {}
    for name, value in row.items():
        parts.setdefault(name.split("[")[0], []).append(value)
    scalars = {name for name in row if "[" not in name}
    return {a: np.float64(v[0]) if a in scalars else np.array(v, float) for a, v in parts.items()}


# --- Regression ----------------------------------------------------------------------------------


def _coefficients(count: int) -> Any:
    with ppl.plate("coefficient", count):
        return ppl.sample("beta", dist.ImproperUniform(dist.constraints.real, (), ()))


@ppl.model
def flat_regression(X, y):
    beta = _coefficients(X.shape[1])
    sigma = ppl.sample("sigma", dist.ImproperUniform(dist.constraints.positive, (), ()))
    with ppl.plate("row", y.shape[0]):
        ppl.sample("y", dist.Normal(X @ beta, sigma), obs=y)


@ppl.model
def half_cauchy_regression(X, y):
    beta = _coefficients(X.shape[1])
    sigma = ppl.sample("sigma", dist.HalfCauchy(2.5))
    with ppl.plate("row", y.shape[0]):
        ppl.sample("y", dist.Normal(X @ beta, sigma), obs=y)


@ppl.model
def normal_regression(X, y):
    with ppl.plate("coefficient", X.shape[1]):
        beta = ppl.sample("beta", dist.Normal(0.0, 10.0))
    sigma = ppl.sample("sigma", dist.HalfNormal(10.0))
    with ppl.plate("row", y.shape[0]):
        ppl.sample("y", dist.Normal(X @ beta, sigma), obs=y)


@ppl.model
def centred_regression(X, y):
    b = ppl.sample("b", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    intercept = ppl.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = ppl.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    with ppl.plate("row", y.shape[0]):
        ppl.sample("y", dist.Normal(intercept + X @ b, sigma), obs=y)


def _design(data: Data, *columns: str | np.ndarray) -> np.ndarray:
    """Stack columns (names of the data, or arrays) after one of ones."""
    arrays = [np.asarray(data[c] if isinstance(c, str) else c, float) for c in columns]
    return np.stack([np.ones_like(arrays[0]), *arrays], axis=1)


def _log(data: Data, *names: str) -> list[np.ndarray]:
    return [np.log(np.asarray(data[n], float)) for n in names]


def _float(data: Data, name: str) -> np.ndarray:
    return np.asarray(data[name], float)


def earn_height(data):
    return flat_regression(_design(data, "height"), _float(data, "earn"))


def logearn_height(data):
    return flat_regression(_design(data, "height"), *_log(data, "earn"))


def logearn_interaction_z(data):
    height = _float(data, "height")
    z = (height - height.mean()) / height.std(ddof=1)
    male = _float(data, "male")
    return flat_regression(_design(data, z, male, z * male), *_log(data, "earn"))


def logearn_logheight_male(data):
    return flat_regression(_design(data, *_log(data, "height"), "male"), *_log(data, "earn"))


def kidscore_momhs(data):
    return half_cauchy_regression(_design(data, "mom_hs"), _float(data, "kid_score"))


def kidscore_momiq(data):
    return half_cauchy_regression(_design(data, "mom_iq"), _float(data, "kid_score"))


def _kidscore_interaction(data, hs: float, iq: float) -> ppl.Program:
    c_hs, c_iq = _float(data, "mom_hs") - hs, _float(data, "mom_iq") - iq
    return flat_regression(_design(data, c_hs, c_iq, c_hs * c_iq), _float(data, "kid_score"))


def kidscore_interaction_c(data):
    return _kidscore_interaction(data, np.mean(data["mom_hs"]), np.mean(data["mom_iq"]))


def kidscore_interaction_c2(data):
    return _kidscore_interaction(data, 0.5, 100.0)


_MEASURED = ("diam1", "diam2", "canopy_height", "total_height", "density")


def mesquite(data):
    return flat_regression(_design(data, *_MEASURED, "group"), _float(data, "weight"))


def logmesquite(data):
    return flat_regression(_design(data, *_log(data, *_MEASURED), "group"), *_log(data, "weight"))


def logmesquite_logva(data):
    d1, d2, height = _log(data, "diam1", "diam2", "canopy_height")
    X = _design(data, d1 + d2 + height, d1 + d2, "group")
    return flat_regression(X, *_log(data, "weight"))


def logmesquite_logvash(data):
    d1, d2, height, total = _log(data, "diam1", "diam2", "canopy_height", "total_height")
    X = _design(data, d1 + d2 + height, d1 + d2, d1 - d2, total, "group")
    return flat_regression(X, *_log(data, "weight"))


def nes(data):
    ages = [_float(data, "age_discrete") == k for k in (2, 3, 4)]
    X = _design(data, "real_ideo", "race_adj", *ages, "educ1", "gender", "income")
    return flat_regression(X, _float(data, "partyid7"))


def blr(data):
    return normal_regression(_float(data, "X"), _float(data, "y"))


def diamonds(data):
    X = _float(data, "X")[:, 1:]
    return centred_regression(X - X.mean(axis=0), _float(data, "Y"))


# --- Hierarchies and time series -----------------------------------------------------------------


@ppl.model
def _eight_schools_centered(sigma, y):
    mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
    tau = ppl.sample("tau", dist.HalfCauchy(5.0))
    with ppl.plate("school", y.shape[0]):
        theta = ppl.sample("theta", dist.Normal(mu, tau))
        ppl.sample("y", dist.Normal(theta, sigma), obs=y)


@ppl.model
def _eight_schools_noncentered(sigma, y):
    mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
    tau = ppl.sample("tau", dist.HalfCauchy(5.0))
    with ppl.plate("school", y.shape[0]):
        theta_trans = ppl.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = ppl.deterministic("theta", mu + tau * theta_trans)
        ppl.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_centered(data):
    return _eight_schools_centered(_float(data, "sigma"), _float(data, "y"))


def eight_schools_noncentered(data):
    return _eight_schools_noncentered(_float(data, "sigma"), _float(data, "y"))


def standardised(values: Values, _: Data) -> Values:
    """Give the non-centred coordinate of the schools."""
    mu, tau, theta = values["mu"], values["tau"], values["theta"]
    return {"mu": mu, "tau": tau, "theta_trans": (theta - mu) / tau}


@ppl.model
def _autoregression(lags, y):
    alpha = ppl.sample("alpha", dist.Normal(0.0, 10.0))
    with ppl.plate("lag", lags.shape[1]):
        beta = ppl.sample("beta", dist.Normal(0.0, 10.0))
    sigma = ppl.sample("sigma", dist.HalfCauchy(2.5))

    def step(carry, now):
        past, value = now
        return carry, ppl.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=value)

    jax.lax.scan(step, (), (lags, y))


def arK(data):  # noqa: N802
    y, K = _float(data, "y"), data["K"]
    lags = np.stack([y[K - k : len(y) - k] for k in range(1, K + 1)], axis=1)
    return _autoregression(lags, y[K:])


@ppl.model
def _arma11(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 10.0))
    phi = ppl.sample("phi", dist.Normal(0.0, 2.0))
    theta = ppl.sample("theta", dist.Normal(0.0, 2.0))
    sigma = ppl.sample("sigma", dist.HalfCauchy(2.5))

    def step(carry, value):
        before, error = carry
        mean = mu + phi * before + theta * error
        ppl.sample("y", dist.Normal(mean, sigma), obs=value)
        return (value, value - mean), None

    jax.lax.scan(step, (mu, jnp.zeros_like(mu)), y)


def arma11(data):
    return _arma11(_float(data, "y"))


def _forward(log_start: Any, emissions: Any, theta: Any) -> Any:
    """Log-likelihood of a hidden Markov model, states summed out."""

    def step(g, emission):
        return emission + jax.nn.logsumexp(g[:, None] + jnp.log(theta), axis=0), None

    g, _ = jax.lax.scan(step, log_start + emissions[0], emissions[1:])
    return jax.nn.logsumexp(g)


def _ordered_normal(address: str, constraint: Any, means: Any) -> Any:
    """Independent normals of sd 1, restricted to an order and not normalised again."""
    x = ppl.sample(address, dist.ImproperUniform(constraint, (), (len(means),)))
    ppl.factor(f"{address}_prior", dist.Normal(means, 1.0).log_prob(x).sum())
    return x


@ppl.model
def _hmm_example(y):
    theta1 = ppl.sample("theta1", dist.Dirichlet(jnp.ones(2)))
    theta2 = ppl.sample("theta2", dist.Dirichlet(jnp.ones(2)))
    mu = _ordered_normal("mu", dist.constraints.positive_ordered_vector, jnp.array([3.0, 10.0]))
    emissions = dist.Normal(mu, 1.0).log_prob(y[:, None])
    ppl.factor("path", _forward(0.0, emissions, jnp.stack([theta1, theta2])))


@ppl.model
def _hmm_drive(u, v, alpha, tau, rho):
    theta1 = ppl.sample("theta1", dist.Dirichlet(alpha[0]))
    theta2 = ppl.sample("theta2", dist.Dirichlet(alpha[1]))
    means = jnp.array([0.0, 3.0])
    phi = _ordered_normal("phi", dist.constraints.ordered_vector, means)
    lam = _ordered_normal("lambda", dist.constraints.ordered_vector, means)
    of_u = dist.Normal(phi, tau).log_prob(u[:, None])
    of_v = dist.Normal(lam, rho).log_prob(v[:, None])
    ppl.factor("path", _forward(0.0, of_u + of_v, jnp.stack([theta1, theta2])))


def hmm_example(data):
    return _hmm_example(_float(data, "y"))


def hmm_drive(data):
    return _hmm_drive(*(_float(data, n) for n in ("u", "v", "alpha", "tau", "rho")))


# --- Gaussian processes, differential equations --------------------------------------------------


@ppl.model
def _gp_regression(x, y):
    rho = ppl.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = ppl.sample("alpha", dist.HalfNormal(2.0))
    sigma = ppl.sample("sigma", dist.HalfNormal(1.0))
    K = alpha**2 * jnp.exp(-((x[:, None] - x) ** 2) / (2 * rho**2))
    covariance = K + sigma * jnp.eye(x.shape[0])
    ppl.sample("y", dist.MultivariateNormal(0.0, covariance_matrix=covariance), obs=y)


def gp_regr(data):
    return _gp_regression(_float(data, "x"), _float(data, "y"))


#: About how well the data know the coefficients of the mean, and those of the log sd.
_KNOWN = {"": 2.0, "_sigma": 0.3}


def _stretch(suffix, sd, scale, frequencies):
    """Give the coefficients' prior sds, and those of the coordinates that they are sampled in.

    Of 40 coefficients the data know some far better than the prior does, and of others nothing.
    Neither centred nor standardised coordinates suit both. A standard normal number times
    sqrt(1 + (w / c)^2) is the coefficient but for a factor where w is far above c, and is itself
    where it is far below.
    """
    w = sd * (2 * np.pi) ** 0.25 * scale**0.5 * jnp.exp(-((scale * frequencies) ** 2) / 4)
    return w, jnp.sqrt(1 + (w / _KNOWN[suffix]) ** 2)


@ppl.model
def _accel_gp(basis, frequencies, basis_sigma, frequencies_sigma, y):
    def process(suffix, basis, frequencies):
        sd = dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 36.0))
        sd = ppl.sample(f"sdgp{suffix}_1", sd)
        scale = ppl.sample(f"lscale{suffix}_1", dist.InverseGamma(1.124909, 0.0177))
        w, r = _stretch(suffix, sd, scale, frequencies)
        with ppl.plate(f"basis{suffix}", basis.shape[1]):
            z = ppl.sample(f"stretched{suffix}", dist.Normal(0.0, r)) / r
        return basis @ (w * ppl.deterministic(f"zgp{suffix}_1", z))

    mean = ppl.sample("Intercept", dist.StudentT(3.0, -13.0, 36.0))
    mean = mean + process("", basis, frequencies)
    log_sd = ppl.sample("Intercept_sigma", dist.StudentT(3.0, 0.0, 10.0))
    log_sd = log_sd + process("_sigma", basis_sigma, frequencies_sigma)
    with ppl.plate("row", y.shape[0]):
        ppl.sample("y", dist.Normal(mean, jnp.exp(log_sd)), obs=y)


def accel_gp(data):
    of_mean = _float(data, "Xgp_1"), _float(data, "slambda_1")[:, 0]
    of_sigma = _float(data, "Xgp_sigma_1"), _float(data, "slambda_sigma_1")[:, 0]
    return _accel_gp(*of_mean, *of_sigma, _float(data, "Y"))


def stretched(values: Values, data: Data) -> Values:
    """Give the coordinates of the Gaussian processes' coefficients."""
    given = {a: x for a, x in values.items() if not a.startswith("zgp")}
    for suffix in _KNOWN:
        frequencies = _float(data, f"slambda{suffix}_1")[:, 0]
        sd, scale = values[f"sdgp{suffix}_1"], values[f"lscale{suffix}_1"]
        _, r = _stretch(suffix, sd, scale, frequencies)
        given[f"stretched{suffix}"] = np.asarray(r * values[f"zgp{suffix}_1"])
    return given


#: Steps of the integrator between two measurements.
_STEPS = 16


@ppl.model
def _lotka_volterra(ts, y_init, y):
    loc, scale = jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])
    theta = ppl.sample("theta", dist.TruncatedNormal(loc, scale, low=0.0).to_event(1))
    z_init = ppl.sample("z_init", dist.LogNormal(jnp.log(10.0), 1.0).expand([2]).to_event(1))
    sigma = ppl.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))

    # Of the logarithms: they keep populations positive, and the density needs nothing else. Steps
    # of fixed size, so that poor parameters take no longer, and the gradient is that of the sum.
    a, b, c, d = theta
    growth, hunting = jnp.stack([a, -c]), jnp.stack([-b, d])

    def velocity(log_z):
        return growth + hunting * jnp.exp(log_z[::-1])

    def runge_kutta(log_z, h):
        k1 = velocity(log_z)
        k2 = velocity(log_z + h / 2 * k1)
        k3 = velocity(log_z + h / 2 * k2)
        k4 = velocity(log_z + h * k3)
        return log_z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    def between(log_z, gap):
        step = lambda x, _: (runge_kutta(x, gap / _STEPS), None)  # noqa: E731
        log_z, _ = jax.lax.scan(step, log_z, length=_STEPS)
        return log_z, log_z

    gaps = jnp.diff(ts, prepend=0.0)
    _, log_z = jax.lax.scan(between, jnp.log(z_init), gaps)
    ppl.sample("y_init", dist.LogNormal(jnp.log(z_init), sigma).to_event(1), obs=y_init)
    with ppl.plate("time", ts.shape[0]):
        ppl.sample("y", dist.LogNormal(log_z, sigma).to_event(1), obs=y)


def lotka_volterra(data):
    return _lotka_volterra(*(_float(data, n) for n in ("ts", "y_init", "y")))


# Regressions whose columns are far from orthogonal.
_CORRELATED: Mapping[str, Any] = {"low_rank": 8}

POSTERIORS: dict[str, Posterior] = {
    "arK-arK": Posterior(arK),
    "arma-arma11": Posterior(arma11),
    "bball_drive_event_1-hmm_drive_1": Posterior(hmm_drive, x64=True, long=True),
    "diamonds-diamonds": Posterior(diamonds, settings={"low_rank": 26}, x64=True, long=True),
    "earnings-earn_height": Posterior(earn_height, settings=_CORRELATED, x64=True),
    "earnings-logearn_height": Posterior(logearn_height, settings=_CORRELATED, x64=True),
    "earnings-logearn_interaction_z": Posterior(logearn_interaction_z),
    "earnings-logearn_logheight_male": Posterior(
        logearn_logheight_male, settings=_CORRELATED, x64=True
    ),
    "eight_schools-eight_schools_centered": Posterior(
        eight_schools_centered,
        settings={"target_accept": 0.995},
        num_samples=6000,
        long=True,
        neck="tau",
    ),
    "eight_schools-eight_schools_noncentered": Posterior(
        eight_schools_noncentered, choices=standardised
    ),
    "gp_pois_regr-gp_regr": Posterior(gp_regr, x64=True),
    "hmm_example-hmm_example": Posterior(hmm_example),
    # A second mode explains the swings as noise; `model.md` names this start.
    "hudson_lynx_hare-lotka_volterra": Posterior(
        lotka_volterra,
        settings=_CORRELATED,
        x64=True,
        long=True,
        init={"theta": [0.5, 0.03, 0.8, 0.03], "z_init": [30.0, 5.0], "sigma": [0.3, 0.3]},
    ),
    "kidiq-kidscore_momhs": Posterior(kidscore_momhs),
    "kidiq-kidscore_momiq": Posterior(kidscore_momiq, settings=_CORRELATED, x64=True),
    "kidiq_with_mom_work-kidscore_interaction_c": Posterior(kidscore_interaction_c),
    "kidiq_with_mom_work-kidscore_interaction_c2": Posterior(kidscore_interaction_c2),
    "mcycle_gp-accel_gp": Posterior(
        accel_gp,
        choices=stretched,
        # A second mode, near lscale_1 = 0.012, has 1 % of the mass and a fifth of the variance of
        # lscale_1; the chains enter it some 80 times.
        settings={"low_rank": 40, "target_accept": 0.95},
        num_samples=8000,
        x64=True,
        long=True,
    ),
    "mesquite-logmesquite": Posterior(logmesquite, settings=_CORRELATED, x64=True),
    "mesquite-logmesquite_logva": Posterior(logmesquite_logva, settings=_CORRELATED, x64=True),
    "mesquite-logmesquite_logvash": Posterior(logmesquite_logvash, settings=_CORRELATED, x64=True),
    "mesquite-mesquite": Posterior(mesquite, settings=_CORRELATED, x64=True),
    "nes1972-nes": Posterior(nes, settings=_CORRELATED, x64=True),
    "nes1980-nes": Posterior(nes, settings=_CORRELATED, x64=True),
    "nes1984-nes": Posterior(nes, settings=_CORRELATED, x64=True),
    "nes1992-nes": Posterior(nes, settings=_CORRELATED, x64=True),
    "nes1996-nes": Posterior(nes, settings=_CORRELATED, x64=True),
    "sblri-blr": Posterior(blr),
}
