"""Models as NumPyro's users write them: this file knows NumPyro only.

They follow the statements of the examples and tutorials of NumPyro's documentation, on small made
data. `CASES` names each with its arguments.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.experimental.ode import odeint
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer.reparam import CircularReparam, LocScaleReparam, TransformReparam

# --- Hierarchies ---------------------------------------------------------------------------------


def eight_schools(J, sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("J", J):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("obs", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentered(J, sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with (
        numpyro.plate("J", J),
        handlers.reparam(config={"theta": TransformReparam()}),
    ):
        theta = numpyro.sample(
            "theta",
            dist.TransformedDistribution(
                dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(mu, tau)
            ),
        )
        numpyro.sample("obs", dist.Normal(theta, sigma), obs=y)


def baseball_partial_pooling(at_bats, hits=None):
    m = numpyro.sample("m", dist.Uniform(0, 1))
    kappa = numpyro.sample("kappa", dist.Pareto(1, 1.5))
    with numpyro.plate("num_players", at_bats.shape[0]):
        phi = numpyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        return numpyro.sample("obs", dist.Binomial(at_bats, probs=phi), obs=hits)


def baseball_logit(at_bats, hits=None):
    loc = numpyro.sample("loc", dist.Normal(-1, 1))
    scale = numpyro.sample("scale", dist.HalfCauchy(1))
    with numpyro.plate("num_players", at_bats.shape[0]):
        alpha = numpyro.sample("alpha", dist.Normal(loc, scale))
        return numpyro.sample("obs", dist.Binomial(at_bats, logits=alpha), obs=hits)


def varying_slopes_lkj(dept, male, applications, admit=None):
    v_mu = numpyro.sample("v_mu", dist.Normal(0, jnp.array([4.0, 1.0])))
    sigma = numpyro.sample("sigma", dist.HalfNormal(jnp.ones(2)))
    L_rho = numpyro.sample("L_Rho", dist.LKJCholesky(2, concentration=2))
    scale_tril = sigma[..., jnp.newaxis] * L_rho
    num_dept = len(np.unique(dept))
    z = numpyro.sample("z", dist.Normal(jnp.zeros((num_dept, 2)), 1))
    v = jnp.dot(scale_tril, z.T).T
    logits = v_mu[0] + v[dept, 0] + (v_mu[1] + v[dept, 1]) * male
    numpyro.sample("admit", dist.Binomial(applications, logits=logits), obs=admit)


# --- Regression ----------------------------------------------------------------------------------


def divorce(marriage=None, age=None, divorce=None):
    a = numpyro.sample("a", dist.Normal(0.0, 0.2))
    m_term, a_term = 0.0, 0.0
    if marriage is not None:
        m_term = numpyro.sample("bM", dist.Normal(0.0, 0.5)) * marriage
    if age is not None:
        a_term = numpyro.sample("bA", dist.Normal(0.0, 0.5)) * age
    sigma = numpyro.sample("sigma", dist.Exponential(1.0))
    mu = numpyro.deterministic("mu", a + m_term + a_term)
    numpyro.sample("obs", dist.Normal(mu, sigma), obs=divorce)


def divorce_measurement_error(age, divorce_sd, divorce=None):
    a = numpyro.sample("a", dist.Normal(0.0, 0.2))
    b = numpyro.sample("bA", dist.Normal(0.0, 0.5))
    sigma = numpyro.sample("sigma", dist.Exponential(1.0))
    true_rate = numpyro.sample("pred_rate", dist.Normal(a + b * age, sigma))
    numpyro.sample("obs", dist.Normal(true_rate, divorce_sd), obs=divorce)


def logistic_regression(data, labels):
    dim = data.shape[1]
    coefs = numpyro.sample("coefs", dist.Normal(jnp.zeros(dim), jnp.ones(dim)))
    logits = jnp.dot(data, coefs)
    return numpyro.sample("obs", dist.Bernoulli(logits=logits), obs=labels)


def proportion_test(design, outcome=None):
    cov = jnp.eye(design.shape[1])
    beta = numpyro.sample("coefficients", dist.MultivariateNormal(0.0, covariance_matrix=cov))
    with numpyro.plate("data", design.shape[0]):
        numpyro.sample("obs", dist.Bernoulli(logits=design.dot(beta)), obs=outcome)


def horseshoe(X, Y):
    d = X.shape[1]
    lambdas = numpyro.sample("lambdas", dist.HalfCauchy(jnp.ones(d)))
    tau = numpyro.sample("tau", dist.HalfCauchy(jnp.ones(1)))
    unscaled = numpyro.sample("unscaled_betas", dist.Normal(0.0, jnp.ones(d)))
    betas = numpyro.deterministic("betas", tau * lambdas * unscaled)
    precision = numpyro.sample("prec_obs", dist.Gamma(3.0, 1.0))
    numpyro.sample("Y", dist.Normal(jnp.dot(X, betas), 1.0 / jnp.sqrt(precision)), obs=Y)


def ordinal_regression(X, Y, num_classes, concentration, anchor=0.0):
    b_X_eta = numpyro.sample("b_X_eta", dist.Normal(0, 5))
    c_y = numpyro.sample(
        "c_y",
        dist.TransformedDistribution(
            dist.Dirichlet(concentration),
            dist.transforms.SimplexToOrderedTransform(anchor),
        ),
    )
    with numpyro.plate("obs", X.shape[0]):
        eta = X * b_X_eta
        numpyro.sample("Y", dist.OrderedLogistic(eta, c_y), obs=Y)


def ordinal_regression_ordered(X, Y, num_classes):
    b_X_eta = numpyro.sample("b_X_eta", dist.Normal(0, 5))
    c_y = numpyro.sample(
        "c_y",
        dist.TransformedDistribution(
            dist.Normal(0, 1).expand([num_classes - 1]), dist.transforms.OrderedTransform()
        ),
    )
    with numpyro.plate("obs", X.shape[0]):
        numpyro.sample("Y", dist.OrderedLogistic(X * b_X_eta, c_y), obs=Y)


def zero_inflated_poisson(X, Y):
    d = X.shape[1]
    b1 = numpyro.sample("b1", dist.Normal(0.0, 1.0).expand([d]).to_event(1))
    b2 = numpyro.sample("b2", dist.Normal(0.0, 1.0).expand([d]).to_event(1))
    gate = jax.scipy.special.expit(jnp.dot(X, b1[:, None])).reshape(-1)
    rate = jnp.exp(jnp.dot(X, b2[:, None]).reshape(-1))
    with numpyro.plate("obs", X.shape[0]):
        numpyro.sample("Y", dist.ZeroInflatedPoisson(gate=gate, rate=rate), obs=Y)


def bayesian_neural_network(X, Y, D_H, D_Y=1):
    _, D_X = X.shape
    w1 = numpyro.sample("w1", dist.Normal(jnp.zeros((D_X, D_H)), jnp.ones((D_X, D_H))))
    z1 = jnp.tanh(jnp.matmul(X, w1))
    w2 = numpyro.sample("w2", dist.Normal(jnp.zeros((D_H, D_H)), jnp.ones((D_H, D_H))))
    z2 = jnp.tanh(jnp.matmul(z1, w2))
    w3 = numpyro.sample("w3", dist.Normal(jnp.zeros((D_H, D_Y)), jnp.ones((D_H, D_Y))))
    z3 = jnp.matmul(z2, w3)
    prec_obs = numpyro.sample("prec_obs", dist.Gamma(3.0, 1.0))
    sigma_obs = 1.0 / jnp.sqrt(prec_obs)
    with numpyro.plate("data", X.shape[0]):
        numpyro.sample("Y", dist.Normal(z3, sigma_obs).to_event(1), obs=Y)


def gaussian_process(X, Y):
    var = numpyro.sample("kernel_var", dist.LogNormal(0.0, 1.0))
    noise = numpyro.sample("kernel_noise", dist.LogNormal(0.0, 1.0))
    length = numpyro.sample("kernel_length", dist.LogNormal(0.0, 1.0))
    k = var * jnp.exp(-0.5 * jnp.power((X[:, None] - X) / length, 2.0))
    k += (noise + 1.0e-6) * jnp.eye(X.shape[0])
    numpyro.sample(
        "Y", dist.MultivariateNormal(loc=jnp.zeros(X.shape[0]), covariance_matrix=k), obs=Y
    )


# --- Time ----------------------------------------------------------------------------------------


def stochastic_volatility(returns):
    step_size = numpyro.sample("sigma", dist.Exponential(50.0))
    s = numpyro.sample(
        "s", dist.GaussianRandomWalk(scale=step_size, num_steps=jnp.shape(returns)[0])
    )
    nu = numpyro.sample("nu", dist.Exponential(0.1))
    return numpyro.sample("r", dist.StudentT(df=nu, loc=0.0, scale=jnp.exp(s)), obs=returns)


def ar2(y):
    alpha_1 = numpyro.sample("alpha_1", dist.Normal(0, 1))
    alpha_2 = numpyro.sample("alpha_2", dist.Normal(0, 1))
    const = numpyro.sample("const", dist.Normal(0, 1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))

    def transition(carry, _):
        y_prev, y_prev_prev = carry
        m_t = const + alpha_1 * y_prev + alpha_2 * y_prev_prev
        y_t = numpyro.sample("y", dist.Normal(m_t, sigma))
        return (y_t, y_prev), None

    with handlers.condition(data={"y": y[2:]}):
        scan(transition, (y[1], y[0]), jnp.arange(y.shape[0] - 2))


def holt_winters(y, n_seasons, future=0):
    T = y.shape[0]
    level_smoothing = numpyro.sample("level_smoothing", dist.Beta(1, 1))
    trend_smoothing = numpyro.sample("trend_smoothing", dist.Beta(1, 1))
    noise = numpyro.sample("noise", dist.HalfNormal(1))
    level_init = numpyro.sample("level_init", dist.Normal(0, 1))
    trend_init = numpyro.sample("trend_init", dist.Normal(0, 1))
    with numpyro.plate("n_seasons", n_seasons):
        season_init = numpyro.sample("seasonality_init", dist.Normal(0, 1))

    def transition_fn(carry, t):
        level, trend, season = carry
        new_level = level_smoothing * (y[t] - season[0]) + (1 - level_smoothing) * (level + trend)
        new_level = jnp.where(t < T, new_level, level)
        new_trend = trend_smoothing * (new_level - level) + (1 - trend_smoothing) * trend
        new_trend = jnp.where(t < T, new_trend, trend)
        step = jnp.where(t < T, 1, t - T + 1)
        pred = numpyro.sample("pred", dist.Normal(level + step * trend + season[0], noise))
        return (new_level, new_trend, jnp.roll(season, -1)), pred

    with handlers.condition(data={"pred": y}):
        _, preds = scan(
            transition_fn, (level_init, trend_init, season_init), jnp.arange(T + future)
        )
    if future > 0:
        numpyro.deterministic("y_forecast", preds[-future:])


def gaussian_hmm(y=None, T=10):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))

    def transition(x_prev, y_curr):
        x_curr = numpyro.sample("x", dist.Normal(x_prev, scale))
        y_curr = numpyro.sample("y", dist.Normal(x_curr, 1), obs=y_curr)
        return x_curr, (x_curr, y_curr)

    x0 = numpyro.sample("x_0", dist.Normal(0, 1))
    _, (x, y) = scan(transition, x0, y, length=T)
    return x, y


def plate_in_scan(y):
    """Many series side by side: the plate stands in the body, as NumPyro asks."""
    drift = numpyro.sample("drift", dist.Normal(0, 1))

    def transition(x_prev, y_curr):
        with numpyro.plate("series", y.shape[1]):
            x = numpyro.sample("x", dist.Normal(x_prev + drift, 1))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y_curr)
            numpyro.deterministic("twice", 2 * x)
        return x, None

    scan(transition, jnp.zeros(y.shape[1]), y)


def random_effects_in_scan(y, config):
    mean = numpyro.sample("phi_mean", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("phi_sigma", dist.Uniform(0.0, 10.0))

    def transition(total, y_t):
        with handlers.reparam(config=config):
            phi = numpyro.sample("phi_logit", dist.Normal(mean, sigma))
        numpyro.sample("y", dist.Normal(phi + 0.1 * total, 1.0), obs=y_t)
        return total + phi, None

    scan(transition, jnp.zeros(()), y)


def scan_backwards(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))

    def transition(x_next, y_t):
        x = numpyro.sample("x", dist.Normal(a * x_next, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        return x, x

    _, xs = scan(transition, jnp.zeros(()), y, reverse=True)
    numpyro.deterministic("last", xs[0])


def capture_recapture(history):
    """Cormack-Jolly-Seber: discrete states in a scan, under a mask that latents would share."""
    n = history.shape[0]
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))
    rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))

    def transition(carry, y):
        seen, z = carry
        with numpyro.plate("animals", n, dim=-1):
            alive = jnp.where(seen, phi * z, 1.0)
            z = numpyro.sample("z", dist.Bernoulli(dist.util.clamp_probs(alive)))
            with handlers.mask(mask=seen):
                numpyro.sample("y", dist.Bernoulli(dist.util.clamp_probs(rho * z)), obs=y)
        return (seen | y.astype(bool), z), None

    init = history[:, 0].astype(bool), jnp.ones(n, dtype=int)
    scan(transition, init, jnp.swapaxes(history[:, 1:], 0, 1))


def semi_supervised_hmm(
    transition_prior, emission_prior, supervised_categories, supervised_words, unsupervised_words
):
    k, v = transition_prior.shape[0], emission_prior.shape[0]
    transition_prob = numpyro.sample(
        "transition_prob", dist.Dirichlet(jnp.broadcast_to(transition_prior, (k, k)))
    )
    emission_prob = numpyro.sample(
        "emission_prob", dist.Dirichlet(jnp.broadcast_to(emission_prior, (k, v)))
    )
    numpyro.sample(
        "supervised_categories",
        dist.Categorical(transition_prob[supervised_categories[:-1]]),
        obs=supervised_categories[1:],
    )
    numpyro.sample(
        "supervised_words",
        dist.Categorical(emission_prob[supervised_categories]),
        obs=supervised_words,
    )
    log_transition, log_emission = jnp.log(transition_prob), jnp.log(emission_prob)

    def forward(log_prob, word):
        log_prob = jnp.expand_dims(log_prob, axis=1) + log_transition + log_emission[:, word]
        return jax.nn.logsumexp(log_prob, axis=0), None

    start = log_emission[:, unsupervised_words[0]]
    log_prob, _ = jax.lax.scan(forward, start, unsupervised_words[1:])
    numpyro.factor("forward_log_prob", jax.nn.logsumexp(log_prob, axis=0, keepdims=True))


def predator_prey(N, y=None):
    def dz_dt(z, t, theta):
        u, v = z
        alpha, beta, gamma, delta = theta
        return jnp.stack([(alpha - beta * v) * u, (-gamma + delta * u) * v])

    z_init = numpyro.sample("z_init", dist.LogNormal(jnp.log(10), 0.3).expand([2]))
    ts = jnp.arange(float(N))
    theta = numpyro.sample(
        "theta",
        dist.TruncatedNormal(
            low=0.0,
            loc=jnp.array([1.0, 0.05, 1.0, 0.05]),
            scale=jnp.array([0.2, 0.01, 0.2, 0.01]),
        ),
    )
    z = odeint(dz_dt, z_init, ts, theta, rtol=1e-6, atol=1e-5, mxstep=1000)
    sigma = numpyro.sample("sigma", dist.LogNormal(-1, 1).expand([2]))
    numpyro.sample("y", dist.LogNormal(jnp.log(z), sigma), obs=y)


# --- Mixtures and discrete latents ---------------------------------------------------------------


def mixture_same_family(data, K):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(K)))
    with numpyro.plate("components", K):
        locs = numpyro.sample("locs", dist.Normal(0.0, 10.0))
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 2.0))
    mixture = dist.MixtureSameFamily(dist.Categorical(probs=weights), dist.Normal(locs, scale))
    with numpyro.plate("data", len(data)):
        numpyro.sample("obs", mixture, obs=data)


def mixture_general(data):
    w = numpyro.sample("w", dist.Beta(2.0, 2.0))
    loc = numpyro.sample("loc", dist.Normal(0.0, 3.0))
    mixing = dist.Categorical(probs=jnp.stack([w, 1.0 - w]))
    components = [dist.Normal(loc, 1.0), dist.StudentT(3.0, 0.0, 2.0)]
    with numpyro.plate("data", len(data)):
        numpyro.sample("obs", dist.MixtureGeneral(mixing, components), obs=data)


def dirichlet_process_mixture(data, T):
    with numpyro.plate("beta_plate", T - 1):
        beta = numpyro.sample("beta", dist.Beta(1, 1.2))
    with numpyro.plate("mu_plate", T):
        mu = numpyro.sample("mu", dist.MultivariateNormal(jnp.zeros(2), 5 * jnp.eye(2)))
    stick = jnp.concatenate([beta, jnp.ones(1)])
    left = jnp.concatenate([jnp.ones(1), jnp.cumprod(1 - beta)])
    with numpyro.plate("data", data.shape[0]):
        z = numpyro.sample("z", dist.Categorical(stick * left))
        numpyro.sample("obs", dist.MultivariateNormal(mu[z], jnp.eye(2)), obs=data)


def latent_dirichlet_allocation(doc_words, num_topics, num_words):
    num_docs, length = doc_words.shape
    with numpyro.plate("topic", num_topics):
        topic_words = numpyro.sample("topic_words", dist.Dirichlet(jnp.ones(num_words)))
    with numpyro.plate("documents", num_docs, dim=-2):
        theta = numpyro.sample("theta", dist.Dirichlet(jnp.ones(num_topics)))
        with numpyro.plate("words", length, dim=-1):
            z = numpyro.sample("z", dist.Categorical(theta))
            numpyro.sample("w", dist.Categorical(topic_words[z]), obs=doc_words)


def dawid_skene(positions, annotations):
    num_annotators = int(np.max(positions)) + 1
    num_classes = int(np.max(annotations)) + 1
    num_items, num_positions = annotations.shape
    with numpyro.plate("annotator", num_annotators, dim=-2), numpyro.plate("class", num_classes):
        beta = numpyro.sample("beta", dist.Dirichlet(jnp.ones(num_classes)))
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(num_classes)))
    with numpyro.plate("item", num_items, dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi))
        with numpyro.plate("position", num_positions):
            numpyro.sample("y", dist.Categorical(beta[positions, c, :]), obs=annotations)


# --- Handlers, plates, factors -------------------------------------------------------------------


def funnel(dim=10):
    y = numpyro.sample("y", dist.Normal(0, 3))
    numpyro.sample("x", dist.Normal(jnp.zeros(dim - 1), jnp.exp(y / 2)))


funnel_reparam = handlers.reparam(funnel, config={"x": LocScaleReparam(0)})
funnel_half_reparam = handlers.reparam(funnel, config={"x": LocScaleReparam(0.5)})


@handlers.reparam(config={k: LocScaleReparam(0) for k in ("alpha_s2", "alpha_age", "pi_drift")})
def mortality(age, space, time, population, deaths=None):
    n_age, n_space, n_time = 3, 4, 3
    age_plate = numpyro.plate("age_groups", n_age, dim=-3)
    space_plate = numpyro.plate("space", n_space, dim=-2)
    year_plate = numpyro.plate("year", n_time - 1, dim=-1)
    sigma_s = numpyro.sample("sigma_s", dist.HalfNormal(1.0))
    sigma_age = numpyro.sample("sigma_age", dist.HalfNormal(1.0))
    sigma_pi = numpyro.sample("sigma_pi", dist.HalfNormal(1.0))
    with space_plate:
        alpha_s2 = numpyro.sample("alpha_s2", dist.Normal(0, sigma_s))
    with age_plate:
        alpha_age = jnp.cumsum(numpyro.sample("alpha_age", dist.Normal(0, sigma_age)), -3)
    with year_plate:
        pi = jnp.pad(jnp.cumsum(numpyro.sample("pi_drift", dist.Normal(0, sigma_pi)), -1), (1, 0))
    rate = alpha_age + alpha_s2 + pi
    with numpyro.plate("N", len(population)):
        mu = numpyro.deterministic("mu", jax.nn.sigmoid(rate[age, space, time]))
        numpyro.sample("deaths", dist.Binomial(population, mu), obs=deaths)


def circular(data):
    with handlers.reparam(config={"angle": CircularReparam()}):
        angle = numpyro.sample("angle", dist.VonMises(0.0, 2.0))
    numpyro.sample("obs", dist.VonMises(angle, 4.0), obs=data)


def scoped_parts(x, y=None):
    def part(x):
        with numpyro.plate("basis", 3):
            beta = numpyro.sample("beta", dist.Normal(0, 1))
        return numpyro.deterministic("f", jnp.cos(x[:, None] * jnp.arange(3)) @ beta)

    f = handlers.scope(part, "trend")(x) + handlers.scope(part, "year")(2 * x)
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    with numpyro.plate("obs", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, sigma), obs=y)


def factors_and_masks(x, keep, y=None):
    a = numpyro.sample("a", dist.Normal(0, 1))
    b = numpyro.sample("b", dist.Gamma(2.0, 2.0))
    numpyro.factor("soft_constraint", -0.5 * (a - b) ** 2)
    numpyro.deterministic("ratio", a / b)
    with numpyro.plate("data", x.shape[0]):
        numpyro.factor("per_member", -0.1 * b * x**2)
        with handlers.mask(mask=keep):
            numpyro.sample("y", dist.Normal(a * x, b), obs=y)
        with handlers.scale(scale=0.25):
            numpyro.sample("y_again", dist.Normal(a * x, 2 * b), obs=y)
        numpyro.sample("kept", dist.Normal(a * x, 3 * b).mask(keep), obs=y)


def switched_off(x, y):
    """A likelihood under mask False weighs nothing, even where it is not defined."""
    a = numpyro.sample("a", dist.Normal(0, 1))
    with handlers.mask(mask=False):
        numpyro.sample("never", dist.Normal(a * x, 1.0), obs=y)
    numpyro.sample("y", dist.Normal(a * x, 1.0), obs=y)


def scaled_latent(y):
    """Power priors: a scale on latents as on observations."""
    with handlers.scale(scale=0.5):
        a = numpyro.sample("a", dist.Normal(0, 1))
        with numpyro.plate("n", y.shape[0]), handlers.scale(scale=3.0):
            b = numpyro.sample("b", dist.Normal(a, 1))
            numpyro.sample("y", dist.Normal(b, 1), obs=y)


def minibatch(x, y, size, indices):
    a = numpyro.sample("a", dist.Normal(0, 1))
    with handlers.substitute(data={"N": indices}), numpyro.plate("N", x.shape[0], size):
        batch_x = numpyro.subsample(x, event_dim=0)
        batch_y = numpyro.subsample(y, event_dim=0)
        z = numpyro.sample("z", dist.Normal(a, 1))
        numpyro.sample("obs", dist.Normal(z * batch_x, 1), obs=batch_y)


def minibatch_drawn(x, y, size):
    a = numpyro.sample("a", dist.Normal(0, 1))
    with numpyro.plate("N", x.shape[0], subsample_size=size) as indices:
        numpyro.sample("obs", dist.Normal(a * x[indices], 1), obs=y[indices])


def branches(y):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    x = cond(
        z > 0,
        lambda m: numpyro.sample("x", dist.Normal(m + 3.0, 1.0)),
        lambda m: numpyro.sample("x", dist.Normal(m - 3.0, 2.0)),
        z,
    )
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def wide_observation(y):
    """NumPyro broadcasts an observation against a scalar distribution."""
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    numpyro.sample("obs", dist.Normal(loc, 1.0), obs=y)


def drawn_shapes():
    """`sample_shape`, event dimensions, matrix variates and bounds that are drawn."""
    low = numpyro.sample("low", dist.Normal(0.0, 1.0))
    high = numpyro.sample("high", dist.Exponential(1.0)) + low
    numpyro.sample("u", dist.Uniform(low, high), sample_shape=(2, 3))
    corr = numpyro.sample("corr", dist.LKJ(3, 2.0))
    numpyro.sample("mvn", dist.MultivariateNormal(jnp.zeros(3), corr).expand([2]).to_event(1))
    numpyro.sample("pos", dist.TruncatedNormal(low, 1.0, low=low, high=high + 1.0))
    numpyro.sample("flat", dist.ImproperUniform(dist.constraints.real, (), ()))


# --- Data ----------------------------------------------------------------------------------------


class Case(NamedTuple):
    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012


_rng = np.random.default_rng(20240229)
_SIGMA = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
_Y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
_AT_BATS = np.full(18, 45)
_HITS = np.array([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])
_X = _rng.normal(size=(12, 3))
_LINE = _X @ np.array([1.0, -1.0, 0.5]) + 0.1 * _rng.normal(size=12)
_BINARY = (_LINE > 0).astype(int)
_COUNTS = _rng.poisson(1.5, size=12) * _rng.integers(0, 2, size=12)
_T = np.arange(15)
_SERIES = np.sin(_T) + 0.1 * _rng.normal(size=15)
_DEPT = np.repeat(np.arange(4), 2)
_WORDS = _rng.integers(0, 5, size=(4, 6))
_ANNOTATIONS = _rng.integers(0, 3, size=(5, 4))
_CELLS = [a.ravel() for a in np.meshgrid(np.arange(3), np.arange(4), np.arange(3), indexing="ij")]

CASES: dict[str, Case] = {
    "eight_schools": Case(eight_schools, (8, _SIGMA), {"y": _Y}),
    "eight_schools_noncentered": Case(eight_schools_noncentered, (8, _SIGMA), {"y": _Y}),
    "eight_schools_prior": Case(eight_schools, (8, _SIGMA)),
    "baseball_partial_pooling": Case(baseball_partial_pooling, (_AT_BATS, _HITS)),
    "baseball_logit": Case(baseball_logit, (_AT_BATS, _HITS)),
    # These two look at the values of their first arguments while they run, so those are fixed.
    "varying_slopes_lkj": Case(
        functools.partial(varying_slopes_lkj, _DEPT),
        (np.tile([1, 0], 4), _rng.integers(20, 50, 8), _rng.integers(0, 20, 8)),
    ),
    "divorce": Case(divorce, (), {"marriage": _X[:, 0], "age": _X[:, 1], "divorce": _LINE}),
    "divorce_age_only": Case(divorce, (), {"age": _X[:, 1], "divorce": _LINE}),
    "divorce_measurement_error": Case(
        divorce_measurement_error, (_X[:, 0], np.full(12, 0.3)), {"divorce": _LINE}
    ),
    "logistic_regression": Case(logistic_regression, (_X, _BINARY)),
    "logistic_regression_bool": Case(logistic_regression, (_X, _BINARY.astype(bool))),
    "proportion_test": Case(proportion_test, (_X, _BINARY)),
    "horseshoe": Case(horseshoe, (_X, _LINE)),
    "ordinal_regression": Case(
        ordinal_regression, (_X[:, 0], _rng.integers(0, 3, 12), 3, np.ones(3) * 10.0)
    ),
    "ordinal_regression_ordered": Case(
        ordinal_regression_ordered, (_X[:, 0], _rng.integers(0, 3, 12), 3)
    ),
    "zero_inflated_poisson": Case(zero_inflated_poisson, (_X, _COUNTS)),
    "bayesian_neural_network": Case(bayesian_neural_network, (_X, _LINE[:, None], 4)),
    "gaussian_process": Case(gaussian_process, (_X[:, 0], _LINE)),
    "stochastic_volatility": Case(stochastic_volatility, (_SERIES,)),
    "ar2": Case(ar2, (_SERIES,)),
    "holt_winters": Case(holt_winters, (_SERIES, 3)),
    "gaussian_hmm": Case(gaussian_hmm, (_SERIES[:10],)),
    "gaussian_hmm_prior": Case(gaussian_hmm, (), {"T": 4}),
    "plate_in_scan": Case(plate_in_scan, (_rng.normal(size=(5, 3)),)),
    "random_effects_in_scan": Case(random_effects_in_scan, (_SERIES[:6], {})),
    "random_effects_in_scan_reparam": Case(
        random_effects_in_scan, (_SERIES[:6], {"phi_logit": LocScaleReparam(0)})
    ),
    "scan_backwards": Case(scan_backwards, (_SERIES[:6],)),
    "capture_recapture": Case(capture_recapture, (_rng.integers(0, 2, size=(6, 5)),)),
    "semi_supervised_hmm": Case(
        semi_supervised_hmm,
        (
            np.ones(3),
            np.full(5, 1.5),
            _rng.integers(0, 3, 10),
            _rng.integers(0, 5, 10),
            _rng.integers(0, 5, 12),
        ),
    ),
    "predator_prey": Case(predator_prey, (4, np.exp(2 + 0.3 * _rng.normal(size=(4, 2))))),
    "mixture_same_family": Case(mixture_same_family, (_LINE, 3)),
    "mixture_general": Case(mixture_general, (_LINE,)),
    "dirichlet_process_mixture": Case(dirichlet_process_mixture, (_X[:, :2], 4)),
    "latent_dirichlet_allocation": Case(latent_dirichlet_allocation, (_WORDS, 3, 5)),
    "dawid_skene": Case(functools.partial(dawid_skene, np.array([0, 0, 1, 2]), _ANNOTATIONS)),
    "funnel": Case(funnel),
    "funnel_reparam": Case(funnel_reparam, (5,)),
    "funnel_half_reparam": Case(funnel_half_reparam, (), {"dim": 4}),
    "mortality": Case(
        mortality, (*_CELLS, _rng.integers(10, 40, 36)), {"deaths": _rng.integers(0, 8, 36)}
    ),
    "circular": Case(circular, (_SERIES,)),
    "scoped_parts": Case(scoped_parts, (_X[:, 0], _LINE)),
    "factors_and_masks": Case(factors_and_masks, (_X[:, 0], _X[:, 1] > 0, _LINE)),
    "switched_off": Case(switched_off, (_X[:, 0], _LINE)),
    "scaled_latent": Case(scaled_latent, (_LINE,)),
    "minibatch": Case(minibatch, (_X[:, 0], _LINE, 4, np.array([7, 1, 3, 11]))),
    "minibatch_drawn": Case(minibatch_drawn, (_X[:, 0], _LINE, 4)),
    "branches": Case(branches, (1.3,)),
    "wide_observation": Case(wide_observation, (_SERIES,)),
    "drawn_shapes": Case(drawn_shapes),
}
