"""The log densities of the posteriors in NumPy and SciPy, from their `model.md`, up to a constant.

Nothing here uses the library under test. `FORMULAS[name](data, values)` takes the parameters in the
coordinates of `model.md`, and is the density with respect to those.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import integrate, linalg, special, stats

Formula = Callable[[Mapping[str, Any], dict[str, Any]], float]


def _normal(x: Any, mean: Any, sd: Any) -> float:
    x, mean, sd = np.broadcast_arrays(x, mean, sd)
    return float(np.sum(-0.5 * ((x - mean) / sd) ** 2 - np.log(sd)))


def _cauchy(x: Any, scale: float) -> float:
    return float(-np.log1p((x / scale) ** 2))


def _student(x: Any, df: float, loc: float, scale: float) -> float:
    return float(stats.t.logpdf(x, df, loc, scale))


def _line(mean: Callable[[Mapping[str, Any], np.ndarray], Any], response: Callable[..., Any]):
    """A regression with flat priors on coefficients and residual sd."""

    def formula(data, v):
        arrays = {k: np.asarray(x, float) for k, x in data.items()}
        return _normal(response(arrays), mean(arrays, v["beta"]), v["sigma"])

    return formula


def _earnings(d):
    return np.log(d["earn"])


def _interaction_z(d, b):
    h = d["height"]
    z = (h - np.mean(h)) / np.sqrt(np.sum((h - np.mean(h)) ** 2) / (len(h) - 1))
    return b[0] + b[1] * z + b[2] * d["male"] + b[3] * z * d["male"]


def _kidscore(centre_hs, centre_iq):
    def mean(d, b):
        hs, iq = d["mom_hs"] - centre_hs(d["mom_hs"]), d["mom_iq"] - centre_iq(d["mom_iq"])
        return b[0] + b[1] * hs + b[2] * iq + b[3] * hs * iq

    return _line(mean, lambda d: d["kid_score"])


def _kidscore_half_cauchy(column):
    def formula(data, v):
        mean = v["beta"][0] + v["beta"][1] * np.asarray(data[column], float)
        score = np.asarray(data["kid_score"], float)
        return _cauchy(v["sigma"], 2.5) + _normal(score, mean, v["sigma"])

    return formula


def _mesquite(d, b):
    parts = (d["diam1"], d["diam2"], d["canopy_height"], d["total_height"], d["density"])
    return b[0] + sum(b[i + 1] * p for i, p in enumerate(parts)) + b[6] * d["group"]


def _logmesquite(d, b):
    parts = (d["diam1"], d["diam2"], d["canopy_height"], d["total_height"], d["density"])
    return b[0] + sum(b[i + 1] * np.log(p) for i, p in enumerate(parts)) + b[6] * d["group"]


def _logva(d, b):
    volume = np.log(d["diam1"] * d["diam2"] * d["canopy_height"])
    area = np.log(d["diam1"] * d["diam2"])
    return b[0] + b[1] * volume + b[2] * area + b[3] * d["group"]


def _logvash(d, b):
    volume = np.log(d["diam1"] * d["diam2"] * d["canopy_height"])
    area, shape = np.log(d["diam1"] * d["diam2"]), np.log(d["diam1"] / d["diam2"])
    first = b[0] + b[1] * volume + b[2] * area + b[3] * shape
    return first + b[4] * np.log(d["total_height"]) + b[5] * d["group"]


def _nes(d, b):
    age = d["age_discrete"]
    mean = b[0] + b[1] * d["real_ideo"] + b[2] * d["race_adj"]
    mean = mean + b[3] * (age == 2) + b[4] * (age == 3) + b[5] * (age == 4)
    return mean + b[6] * d["educ1"] + b[7] * d["gender"] + b[8] * d["income"]


def _log_weight(d):
    return np.log(d["weight"])


def _blr(data, v):
    X, y = np.asarray(data["X"]), np.asarray(data["y"])
    prior = _normal(v["beta"], 0.0, 10.0) - 0.5 * (v["sigma"] / 10.0) ** 2
    return prior + _normal(y, X @ v["beta"], v["sigma"])


def _diamonds(data, v):
    X = np.asarray(data["X"])[:, 1:]
    mean = v["Intercept"] + (X - X.mean(0)) @ v["b"]
    prior = _normal(v["b"], 0.0, 1.0) + _student(v["Intercept"], 3, 8, 10)
    return prior + _student(v["sigma"], 3, 0, 10) + _normal(data["Y"], mean, v["sigma"])


def _eight_schools(data, v):
    prior = _normal(v["mu"], 0.0, 5.0) + _cauchy(v["tau"], 5.0)
    schools = _normal(v["theta"], v["mu"], v["tau"])
    return prior + schools + _normal(data["y"], v["theta"], np.asarray(data["sigma"], float))


def _eight_schools_noncentered(data, v):
    """In theta_trans: d theta = tau^8 d theta_trans."""
    return _eight_schools(data, v) + 8 * float(np.log(v["tau"]))


def _ar(data, v):
    y, K = np.asarray(data["y"]), data["K"]
    total = _normal(v["alpha"], 0.0, 10.0) + _normal(v["beta"], 0.0, 10.0)
    total += _cauchy(v["sigma"], 2.5)
    for t in range(K, len(y)):
        mean = v["alpha"] + sum(v["beta"][k - 1] * y[t - k] for k in range(1, K + 1))
        total += _normal(y[t], mean, v["sigma"])
    return total


def _arma(data, v):
    y, mu, phi, theta = data["y"], v["mu"], v["phi"], v["theta"]
    total = _normal(mu, 0.0, 10.0) + _normal(phi, 0.0, 2.0) + _normal(theta, 0.0, 2.0)
    errors = [y[0] - (mu + phi * mu)]
    for t in range(1, len(y)):
        errors.append(y[t] - (mu + phi * y[t - 1] + theta * errors[-1]))
    return total + _cauchy(v["sigma"], 2.5) + _normal(errors, 0.0, v["sigma"])


def _forward(emission: np.ndarray, v: dict[str, Any]) -> float:
    """The sum over all paths, by products of matrices kept in range."""
    transition = np.stack([v["theta1"], v["theta2"]])
    shift = emission.max(1, keepdims=True)
    weights = np.exp(emission - shift)
    state, total = weights[0], float(shift.sum())
    for t in range(1, len(weights)):
        state = (state @ transition) * weights[t]
        total += float(np.log(state.sum()))
        state = state / state.sum()
    return total


def _hmm_example(data, v):
    y = np.asarray(data["y"])[:, None]
    emission = -0.5 * (y - v["mu"]) ** 2
    return _normal(v["mu"], np.array([3.0, 10.0]), 1.0) + _forward(emission, v)


def _hmm_drive(data, v):
    u, w = np.asarray(data["u"])[:, None], np.asarray(data["v"])[:, None]
    emission = -0.5 * ((u - v["phi"]) / data["tau"]) ** 2
    emission = emission - 0.5 * ((w - v["lambda"]) / data["rho"]) ** 2
    prior = sum(
        float(np.sum((np.asarray(a) - 1) * np.log(v[name])))
        for a, name in zip(data["alpha"], ("theta1", "theta2"), strict=True)
    )
    means = np.array([0.0, 3.0])
    prior += _normal(v["phi"], means, 1.0) + _normal(v["lambda"], means, 1.0)
    return prior + _forward(emission, v)


def _gp(data, v):
    x, y = np.asarray(data["x"], float), np.asarray(data["y"], float)
    K = v["alpha"] ** 2 * np.exp(-((x[:, None] - x[None]) ** 2) / (2 * v["rho"] ** 2))
    L = linalg.cholesky(K + v["sigma"] * np.eye(len(x)), lower=True)
    white = linalg.solve_triangular(L, y, lower=True)
    prior = 24 * np.log(v["rho"]) - 4 * v["rho"] - v["alpha"] ** 2 / 8 - v["sigma"] ** 2 / 2
    return float(prior - np.sum(np.log(np.diag(L))) - 0.5 * white @ white)


def _accel(data, v):
    """In z sqrt(1 + (w / c)^2) for the coefficients w z; c is 2, and 0.3 for the log sd."""

    def part(name: str, c: float) -> tuple[float, np.ndarray]:
        sd, l, z = v[f"sdgp{name}_1"], v[f"lscale{name}_1"], v[f"zgp{name}_1"]  # noqa: E741
        lam = np.asarray(data[f"slambda{name}_1"])[:, 0]
        density = sd**2 * np.sqrt(2 * np.pi) * l * np.exp(-0.5 * (l * lam) ** 2)
        prior = _student(sd, 3, 0, 36) + float(stats.invgamma.logpdf(l, 1.124909, scale=0.0177))
        prior += _normal(z, 0.0, 1.0) - 0.5 * float(np.sum(np.log1p(density / c**2)))
        return prior, np.asarray(data[f"Xgp{name}_1"]) @ (np.sqrt(density) * z)

    prior, mean = part("", 2.0)
    prior_sigma, log_sd = part("_sigma", 0.3)
    prior += prior_sigma + _student(v["Intercept"], 3, -13, 36)
    prior += _student(v["Intercept_sigma"], 3, 0, 10)
    sd = np.exp(v["Intercept_sigma"] + log_sd)
    return prior + _normal(data["Y"], v["Intercept"] + mean, sd)


def _lotka_volterra(data, v):
    a, b, c, d = v["theta"]
    solved = integrate.solve_ivp(
        lambda t, z: [(a - b * z[1]) * z[0], (-c + d * z[0]) * z[1]],
        (0.0, data["ts"][-1]),
        v["z_init"],
        method="DOP853",
        t_eval=data["ts"],
        rtol=1e-12,
        atol=1e-12,
    )
    log_normal = functools.partial(_normal, sd=v["sigma"])
    total = _normal(v["theta"], [1.0, 0.05, 1.0, 0.05], [0.5, 0.05, 0.5, 0.05])
    total += _normal(np.log(v["sigma"]), -1.0, 1.0) - float(np.sum(np.log(v["sigma"])))
    total += _normal(np.log(v["z_init"]), np.log(10.0), 1.0) - float(np.sum(np.log(v["z_init"])))
    total += log_normal(np.log(data["y_init"]), np.log(v["z_init"]))
    return total + log_normal(np.log(data["y"]), np.log(solved.y.T))


def student_reference(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The exact posterior of a flat-prior regression: mean and sd of beta, mean of sigma."""
    n, k = X.shape
    beta, *_ = linalg.lstsq(X, y)
    S, nu = float(np.sum((y - X @ beta) ** 2)), n - k - 1
    sd = np.sqrt(S / (nu - 2) * np.diag(linalg.inv(X.T @ X)))
    half = special.gammaln((nu - 1) / 2) - special.gammaln(nu / 2)
    return beta, sd, float(np.sqrt(S / 2) * np.exp(half))


_SIMPLE = {
    "earnings-earn_height": _line(lambda d, b: b[0] + b[1] * d["height"], lambda d: d["earn"]),
    "earnings-logearn_height": _line(lambda d, b: b[0] + b[1] * d["height"], _earnings),
    "earnings-logearn_interaction_z": _line(_interaction_z, _earnings),
    "earnings-logearn_logheight_male": _line(
        lambda d, b: b[0] + b[1] * np.log(d["height"]) + b[2] * d["male"], _earnings
    ),
    "kidiq_with_mom_work-kidscore_interaction_c": _kidscore(np.mean, np.mean),
    "kidiq_with_mom_work-kidscore_interaction_c2": _kidscore(lambda _: 0.5, lambda _: 100.0),
    "mesquite-logmesquite": _line(_logmesquite, _log_weight),
    "mesquite-logmesquite_logva": _line(_logva, _log_weight),
    "mesquite-logmesquite_logvash": _line(_logvash, _log_weight),
    "mesquite-mesquite": _line(_mesquite, lambda d: d["weight"]),
}
_NES = {
    f"nes{year}-nes": _line(_nes, lambda d: d["partyid7"])
    for year in (1972, 1980, 1984, 1992, 1996)
}

FORMULAS: dict[str, Formula] = {
    **_SIMPLE,
    **_NES,
    "arK-arK": _ar,
    "arma-arma11": _arma,
    "bball_drive_event_1-hmm_drive_1": _hmm_drive,
    "diamonds-diamonds": _diamonds,
    "eight_schools-eight_schools_centered": _eight_schools,
    "eight_schools-eight_schools_noncentered": _eight_schools_noncentered,
    "gp_pois_regr-gp_regr": _gp,
    "hmm_example-hmm_example": _hmm_example,
    "hudson_lynx_hare-lotka_volterra": _lotka_volterra,
    "kidiq-kidscore_momhs": _kidscore_half_cauchy("mom_hs"),
    "kidiq-kidscore_momiq": _kidscore_half_cauchy("mom_iq"),
    "mcycle_gp-accel_gp": _accel,
    "sblri-blr": _blr,
}
