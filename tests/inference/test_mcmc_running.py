"""Running chains: more of them later, interruptions, what is kept, other kernels, bad input."""

from __future__ import annotations

import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.errors import (
    AddressError,
    ArgumentError,
    InitializationError,
    ObservationError,
    ResultError,
    UnsupportedError,
)
from ppl.results.diagnostics import ess
from ppl.semantics import blocks, lanes, suspended
from tests.compiling import compilations

Y = np.array([0.3, -0.5, 1.2], np.float32)
#: Three ways to run: chains that are not in step, those that are, and moves from trace to trace.
KERNELS = {
    "flat": ppl.kernels.nuts(max_tree_depth=3),
    "lockstep": ppl.kernels.chees(step_size=0.3, trajectory_length=1.0, inverse_mass=1.0),
    "moves": ppl.kernels.random_walk(0.1, num_steps=2),
}


@ppl.model
def line(y):
    a = ppl.sample("a", dist.Normal(0.0, 1.0))
    with ppl.plate("n", 3):
        b = ppl.sample("b", dist.HalfNormal(1.0))
        ppl.sample("y", dist.Normal(a, b), obs=y)
    ppl.deterministic("twice", 2 * a)


def program(kind, draws=60, y=Y, **options):
    return ppl.mcmc(line(y), KERNELS.get(kind, kind), draws, 10, 2, **options)


def run(kind, draws=60, key=0, y=Y, **options):
    return ppl.run(program(kind, draws, y, **options), key, progress=False)


def groups(kind):
    """Of two chains: where each has a loop of its own, and where they share one."""
    return 2 if kind == "flat" else 1


def same(one, other):
    assert list(one.draws) == list(other.draws)
    for found, expected in ((one.draws, other.draws), (one.stats, other.stats)):
        for name, x in expected.items():
            np.testing.assert_array_equal(found[name], x)


@pytest.fixture(scope="module", params=KERNELS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def whole(kind):
    return run(kind, 150)


# --- More draws ---------------------------------------------------------------------------------


def test_extending_is_running_longer(kind):
    longer = run(kind, 150)
    chains = run(kind, 40)
    more = chains.extend(70)
    assert (chains.num_draws, more.num_draws) == (40, 110)
    same(more.extend(40), longer)
    same(chains.extend(110), longer)  # the old chains are what they were
    same(chains, run(kind, 40))
    one, two = more.kernel, longer.kernel
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_thinning_keeps_every_third_draw(kind, whole):
    thin = run(kind, 40, thin=3)
    for found, expected in ((thin.draws, whole.draws), (thin.stats, whole.stats)):
        for name, x in expected.items():
            np.testing.assert_array_equal(found[name], x[:, 2:120:3])
    same(run(kind, 25, thin=3).extend(15), thin)


def test_progress_changes_no_draw(kind, whole, capsys):
    same(ppl.run(program(kind, 150), 0, progress=True), whole)
    assert capsys.readouterr().err


def test_chains_that_cannot_go_on(kind, whole, tmp_path):
    path = str(tmp_path / "chains.npz")
    whole.save(path)
    with pytest.raises(ResultError, match="extend got chains that do not know"):
        ppl.Chains.load(path).extend(10)
    for number in (0, -1, 1.5, True):
        with pytest.raises(ArgumentError, match="extend got num_samples="):
            whole.extend(number)


# --- Interruption, at any moment ----------------------------------------------------------------


def press_ctrl_c(monkeypatch, name, after):
    """Let the user press Ctrl-C at a call of a function, when so many were made."""
    module = suspended if name == "_same" else blocks
    fun, value, left, running = getattr(module, name), suspended.Underway.value, [after], [0]

    def pressing(*args):
        running[0] += 1
        left[0] -= 1
        try:
            if not left[0]:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                time.sleep(0.1)  # if this is another thread, the main one does not wait for it
            return fun(*args)
        finally:
            running[0] -= 1

    def ended(*args):
        assert not running[0], "a thread is at work while results are made"
        return value(*args)

    monkeypatch.setattr(module, name, pressing)
    monkeypatch.setattr(suspended.Underway, "value", ended)


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals go to the main one"
)
@pytest.mark.parametrize("when", ["_block", "_same"])
@pytest.mark.parametrize("short", [lanes.SHORT, -1])
def test_nothing_is_torn_by_an_interruption(kind, monkeypatch, when, short):
    """In the middle of a block, or when it was made and its rows are not yet noted.

    With every block taken for short, each is begun before the rows of the last are noted.
    """
    whole = run(kind, 150)
    monkeypatch.setattr(lanes, "SHORT", short)
    monkeypatch.setattr(lanes, "SECONDS", 0.0)  # blocks of one step
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, when, 140)
        try:
            part = run(kind, 150)
        except KeyboardInterrupt:  # it would end the tests
            pytest.fail("the draws that were there are lost")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert 0 < part.num_draws < 150
    np.testing.assert_array_equal(part["a"], whole["a"][:, : part.num_draws])
    same(part.extend(150 - part.num_draws), whole)


def test_a_short_block_begins_while_rows_are_put_away(kind, monkeypatch):
    whole, order, block, rows = run(kind), [], blocks._block, lanes.Rows.add
    monkeypatch.setattr(lanes, "SHORT", -1)
    monkeypatch.setattr(lanes, "SECONDS", 0.0)  # blocks of one step, after the first
    monkeypatch.setattr(blocks, "_block", lambda *args: (order.append("begun"), block(*args))[1])
    noted = lambda *args: (order.append("noted"), rows(*args))[1]  # noqa: E731
    monkeypatch.setattr(lanes.Rows, "add", noted)
    same(run(kind), whole)
    # The first blocks, after which the clock says that they are short, and then one more ahead.
    n = groups(kind)
    first = ["begun"] * n + ["noted"] * n + ["begun"] * n
    assert order[: 5 * n] == first + ["begun", "noted"] * n


def test_a_mistake_in_the_next_block_costs_no_rows(kind, monkeypatch):
    whole, begin, calls = run(kind, 150), lanes.Lanes._begin, []

    def failing(self, *args):
        calls.append(args)
        if len(calls) == 120:
            raise KeyboardInterrupt
        return begin(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(lanes, "SHORT", -1)
        patch.setattr(lanes, "SECONDS", 0.0)
        patch.setattr(lanes.Lanes, "_begin", failing)
        part = run(kind, 150)
    n = groups(kind)
    assert part.underway.lanes.steps == [8 + 120 // n - 2] * n  # all blocks but the one ahead
    same(part.extend(150 - part.num_draws), whole)


# --- Random numbers ahead -----------------------------------------------------------------------


def test_blocks_do_not_hang_on_the_number_of_chains():
    """A block's number is in its random numbers, so its length is in every chain's draws."""

    def length(num_chains):
        mcmc = ppl.mcmc(line(Y), KERNELS["lockstep"], 2, 1, num_chains)
        (lanes,) = ppl.run(mcmc, 0, progress=False).underway.lanes.groups
        return lanes.pieces.length

    assert length(2) == length(300)


@pytest.mark.parametrize("name", ["flat", "lockstep"])
def test_random_numbers_of_a_block_are_drawn_once(name, monkeypatch):
    """However short the calls are that make it."""
    made, calls, ahead, block = [], [], blocks._ahead, blocks._block
    count = lambda seen, fun: lambda *args: (seen.append(args[-1]), fun(*args))[1]  # noqa: E731
    monkeypatch.setattr(blocks, "NUMBERS", 16 * 8)  # blocks of 16 steps
    monkeypatch.setattr(lanes, "SECONDS", 0.0)  # calls of one, after the first
    monkeypatch.setattr(blocks, "_ahead", count(made, ahead))
    monkeypatch.setattr(blocks, "_block", count(calls, block))
    run(name)
    assert len(calls) > 50
    times = np.bincount(made)  # at the end one loop may need more blocks than the other
    assert times[0] == groups(name)
    assert np.all((np.diff(times) <= 0) & (times[1:] > 0))
    assert len(made) < groups(name) + len(calls) / 8


def test_rows_of_a_call_take_little_room(kind, whole, monkeypatch):
    """However many steps numbers are drawn ahead for; it changes no draw."""
    monkeypatch.setattr(blocks, "ROOM", 200)  # bytes: a few rows
    part = run(kind, 150)
    assert all(lanes.pieces.room < 32 for lanes in part.underway.lanes.groups)
    same(part, whole)


# --- What is kept -------------------------------------------------------------------------------


def test_keeping_a_subset(tmp_path):
    pytest.importorskip("arviz")
    whole, some = run("moves", 150), run("moves", 150, keep=["twice", "a"])
    assert list(some.draws) == ["a", "twice"]
    np.testing.assert_array_equal(some["twice"], whole["twice"])
    assert list(some.stats) == list(whole.stats)
    assert some.summary().rows == ("a", "twice")
    assert set(some.to_arviz()["posterior"]) == {"a", "twice"}
    with pytest.raises(AddressError, match='"b"'):
        _ = some["b"]
    with pytest.raises(AddressError, match='"b"'):
        some.summary(["b"])
    # Missing latents would be drawn from the prior, and nothing would tell.
    with pytest.raises(ResultError, match="predictive got chains without draws of b"):
        some.predictive(0)
    with pytest.raises(ResultError, match=r"log_likelihood=True\) got chains without draws of b"):
        some.to_arviz(log_likelihood=True)
    some.save(str(tmp_path / "some.npz"))
    again = ppl.Chains.load(str(tmp_path / "some.npz"), line(Y))
    with pytest.raises(ResultError, match="predictive got chains without draws of b"):
        again.predictive(0)


# --- Starting values ----------------------------------------------------------------------------


still = ppl.kernel(lambda trace: trace.with_choices({}))


@ppl.model
def walled(least):
    k = ppl.sample("k", dist.Categorical(jnp.array([0.6, 0.2, 0.15, 0.05])))
    x = ppl.sample("x", dist.Normal(0.0, 1.0))
    ppl.factor("wall", jnp.where((k >= least) & (x > 0), 0.0, -jnp.inf))


def test_starts_are_searched_until_all_sites_are_possible():
    chains = ppl.run(ppl.mcmc(walled(2), still, 1, 0, 64), 0, progress=False)
    assert set(np.unique(np.asarray(chains["k"])).tolist()) == {2, 3}
    assert np.all(np.asarray(chains["x"]) > 0)
    with pytest.raises(InitializationError, match=r'"wall".*100 draws from the program and Unif'):
        ppl.run(ppl.mcmc(walled(4), still, 1, 0, 64), 0)


def test_discrete_starts_are_the_prior_where_it_is_possible(x64):
    @ppl.model
    def three():
        k = ppl.sample("k", dist.Categorical(jnp.array([0.5, 0.3, 0.2])))
        ppl.factor("wall", jnp.where(k == 1, -jnp.inf, jnp.log(k + 1.0)))

    found = ppl.enumerate(ppl.mcmc(three(), still, 1, 0, 1))
    for k, exact in enumerate([5 / 7, 0.0, 2 / 7]):
        mass = float(found.expect(lambda chains, k=k: chains.draws["k"][0, 0] == k))
        assert abs(mass - exact) < 1e-10


def test_starting_values_of_both_shapes():
    each = np.arange(6, dtype=np.float32).reshape(2, 3) + 1
    starts = {"a": np.array([0.5, -0.5]), "b": each}
    chains = run(still, 2, init=starts)
    np.testing.assert_array_equal(chains["a"], [[0.5, 0.5], [-0.5, -0.5]])
    np.testing.assert_array_equal(chains["b"], each[:, None].repeat(2, 1))
    chains = run(still, 2, init={"a": 0.25, "b": each[1]})
    np.testing.assert_array_equal(chains["a"], np.full((2, 2), 0.25))
    np.testing.assert_array_equal(chains["b"][1, 0], each[1])


def test_starting_values_of_some_sites():
    """The others are drawn, until all of them together are possible."""
    chains = run(still, 2, init={"a": np.array([0.5, -0.5])})
    np.testing.assert_array_equal(chains["a"], [[0.5, 0.5], [-0.5, -0.5]])
    b = np.asarray(chains["b"][:, 0])
    assert np.all(b > 0)
    assert np.all(b[0] != b[1])

    @ppl.model
    def walled():
        k = ppl.sample("k", dist.Categorical(jnp.array([0.5, 0.3, 0.2])))
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.factor("wall", jnp.where((k == 1) | (x * k < 0), -jnp.inf, 0.0))

    chains = ppl.run(ppl.mcmc(walled(), still, 1, 0, 32, init={"k": 2}), 0)
    assert np.all(np.asarray(chains["k"]) == 2)
    assert np.all(np.asarray(chains["x"]) >= 0)
    chains = ppl.run(ppl.mcmc(walled(), still, 1, 0, 32, init={"x": -0.3}), 0)
    np.testing.assert_array_equal(chains["x"], np.full((32, 1), -0.3, np.float32))
    assert np.all(np.asarray(chains["k"]) == 0)


def test_some_starts_that_cannot_be(kind):
    with pytest.raises(InitializationError, match='"a"'):
        run(kind, 2, init={"a": np.nan})


def test_starts_that_cannot_be(kind):
    for init, match in (
        ({"a": 0.0, "b": -np.ones(3)}, '"b"'),
        ({"a": np.nan, "b": np.ones(3)}, '"a"'),
    ):
        with pytest.raises(InitializationError, match=match):
            run(kind, 2, init=init)


# --- Compilations -------------------------------------------------------------------------------


def test_running_on_compiles_nothing(kind):
    run(kind, 45, key=1).extend(3)
    with compilations() as again:
        run(kind, 300, key=2, y=Y + 1).extend(50)
    assert again.count == 0


# --- Other kernels, other places ----------------------------------------------------------------


def z_scores(draws, probability):
    draws = np.asarray(draws, np.float64)
    error = np.sqrt(probability * (1 - probability) / np.asarray(ess(draws, "mean")))
    return (draws.mean((0, 1)) - probability) / error


@ppl.model
def alarm(called):
    burglary = ppl.sample("burglary", dist.Bernoulli(0.2))
    kind = ppl.sample("kind", dist.Categorical(jnp.array([0.5, 0.3, 0.2])))
    rate = jnp.array([[0.1, 0.2, 0.3], [0.9, 0.6, 0.8]])[burglary, kind]
    with ppl.plate("call", 2):
        ppl.sample("called", dist.Bernoulli(rate), obs=called)
    return burglary, kind


@ppl.kernel
def redraw(trace):
    """Propose both sites from the prior, uniformly: a user's own Metropolis-Hastings."""
    burglary = ppl.sample("burglary", dist.Bernoulli(0.5))
    kind = ppl.sample("kind", dist.Categorical(jnp.ones(3) / 3))
    new = trace.with_choices({"burglary": burglary, "kind": kind})
    ratio = jnp.exp(jnp.minimum(0.0, new.log_density - trace.log_density))
    return ppl.choose(ppl.sample("accept", dist.Bernoulli(ratio)) == 1, new, trace)


@pytest.mark.parametrize("kernel", [ppl.kernels.single_site(), redraw])
def test_discrete_unknowns(kernel):
    posterior = ppl.enumerate(alarm(np.array([1, 1]))).normalize()
    fit = ppl.mcmc(alarm(np.array([1, 1])), kernel, 2000, 50, 4)
    chains = ppl.run(fit, 3, progress=False)
    cells = 3 * np.asarray(chains["burglary"]) + np.asarray(chains["kind"])
    exact = [float(posterior.expect(lambda v, c=c: 3 * v[0] + v[1] == c)) for c in range(6)]
    # Six numbers, each beyond 5.5 standard errors with probability 4e-8.
    assert np.all(np.abs(z_scores(cells[..., None] == np.arange(6), np.array(exact))) < 5.5)
    assert list(chains.stats)[:1] == ["lp"]
    lp = ppl.log_density(
        alarm(np.array([1, 1])), {"burglary": cells[0, 0] // 3, "kind": cells[0, 0] % 3}
    )
    np.testing.assert_allclose(chains.stats["lp"][0, 0], lp, rtol=1e-6)


def test_inside_another_program_and_under_jit(x64):
    """Two compilations of one computation: equal up to rounding for a few draws."""

    kernel = KERNELS["flat"]

    @ppl.model
    def around(y):
        return ppl.mcmc(line.program(y), kernel, 5, 4, 2)()

    key, y = jax.random.key(4), Y.astype(np.float64)
    outside = ppl.run(ppl.mcmc(line(y), kernel, 5, 4, 2), key)
    inside = jax.jit(lambda y, key: ppl.run(around(y), key))(y, key)
    for name, x in outside.draws.items():
        np.testing.assert_allclose(inside.draws[name], x, rtol=1e-9)
    with pytest.raises(ResultError, match="extend got chains that do not know"):
        inside.extend(1)


# --- Bad input ----------------------------------------------------------------------------------

BAD = {
    "num_samples": (0, -3, 2.5, True, None),
    "num_warmup": (-1, 2.5, None),
    "num_chains": (0, 1.5),
    "thin": (0, -1, 0.5),
}


@pytest.mark.parametrize("name", BAD)
def test_numbers_are_checked(name):
    for value in BAD[name]:
        with pytest.raises(ArgumentError, match=f"mcmc got {name}={value}"):
            ppl.mcmc(line(Y), KERNELS["moves"], **{name: value})


def test_arguments_are_checked():
    kernel = KERNELS["moves"]
    with pytest.raises(ArgumentError, match="mcmc got Model"):
        ppl.mcmc(line, kernel)
    for wrong in (ppl.kernels.nuts, "nuts", lambda trace: trace, None, line):
        with pytest.raises(ArgumentError, match="mcmc got the kernel"):
            ppl.mcmc(line(Y), wrong)
    with pytest.raises(ArgumentError, match="num_sample"):
        ppl.mcmc(line(Y), kernel, num_sample=3)
    with pytest.raises(UnsupportedError, match="no latent site"):
        ppl.mcmc(ppl.condition(line(Y), {"a": 0.0, "b": np.ones(3)}), kernel)
    with pytest.raises(UnsupportedError, match='"burglary"'):
        ppl.mcmc(alarm(np.array([1, 1])), ppl.kernels.nuts())


def test_addresses_and_starting_values_are_checked():
    for keep, match in ((["twise"], '"twice"'), (["y"], '"y"'), ([], "keep"), (["a", "a"], "keep")):
        with pytest.raises(AddressError, match=match):
            program("moves", keep=keep)
    fine = {"a": 0.0, "b": np.ones(3)}
    for init, match in (
        ({**fine, "c": 1.0}, '"c"'),
        ({**fine, "y": Y}, '"y"'),
        ({**fine, "b": np.ones(2)}, '"b"'),
        ({**fine, "b": np.ones((3, 3))}, '"b"'),
        ({**fine, "a": "one"}, '"a"'),
        ([1.0, 2.0], "init"),
    ):
        with pytest.raises((AddressError, ArgumentError, ObservationError), match=match):
            program("moves", init=init)
    with pytest.raises((AddressError, ArgumentError, ObservationError), match='"kind"'):
        ppl.mcmc(alarm(np.array([1, 1])), redraw, init={"burglary": 1, "kind": 1.5})
