"""Speculative steps: the target's law exactly, and how often the draft is accepted."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl.errors import ArgumentError
from ppl.inference.lm.speculative import residual, speculative
from tests.inference.lm.tables import WORDS, enumerated, law, probabilities, same, table

# The package has a function of that name.
module = importlib.import_module("ppl.inference.lm.speculative")

pytestmark = pytest.mark.usefixtures("x64")


def program(target, draft, room=4, prompt="", **settings):
    @ppl.model
    def written(target, draft):
        context = target.prompt(prompt, room=room, draft=draft)
        return speculative("step", context, **settings)

    return written(target, draft)


def text(target, draft, **settings):
    full = program(target, draft, **settings)

    @ppl.model
    def said(full):
        return full().text

    return said(full)


@pytest.mark.parametrize("block", [1, 2, 4])
def test_the_law_is_the_targets(block):
    target, draft = table(0), table(1)
    same(enumerated(text(target, draft, block=block, max_tokens=3)), law(target, 3))


@pytest.mark.parametrize("stop", ["\n", "ba", ("\n", "ab")])
def test_stops(stop):
    target, draft = table(2, order=2), table(3)
    found = enumerated(text(target, draft, block=2, max_tokens=3, stop=stop))

    @ppl.model
    def plain(target):
        return ppl.lm.step("s", target.prompt(room=4), stop=stop, max_tokens=3).text

    same(found, enumerated(plain(target)))


def test_temperature_and_prompt():
    target, draft = table(4), table(5)
    found = enumerated(text(target, draft, prompt="b", max_tokens=2, temperature=0.6))
    same(found, law(target, 2, before=(1,), temperature=0.6))


def test_drafts_that_exclude_tokens_or_say_others():
    target = table(6)
    never = ppl.lm.Table(WORDS, jnp.where(jnp.arange(5) == 2, -jnp.inf, table(7).table))
    same(enumerated(text(target, never, block=2, max_tokens=3)), law(target, 3))
    same(enumerated(text(never, target, block=2, max_tokens=2)), law(never, 2))
    apart = [ppl.lm.Table(WORDS, jnp.where(jnp.arange(5) % 2 == i, 0.0, -jnp.inf)) for i in (0, 1)]
    same(enumerated(text(*apart, max_tokens=2)), law(apart[0], 2))


def test_a_step_after_a_step_goes_on_where_the_first_ended():
    target, draft = table(8, order=2), table(9, order=2)

    @ppl.model
    def twice(target, draft):
        first = speculative("one", target.prompt(room=3, draft=draft), stop="\n", max_tokens=2)
        second = speculative("two", first.context, block=1, max_tokens=1)
        return second.context.text

    @ppl.model
    def plain(target):
        first = ppl.lm.step("one", target.prompt(room=3), stop="\n", max_tokens=2)
        return ppl.lm.step("two", first.context, max_tokens=1).context.text

    same(enumerated(twice(target, draft)), enumerated(plain(target)))


@pytest.mark.parametrize("seed", range(4))
def test_acceptance_is_one_less_the_total_variation(seed):
    target, draft = table(seed), table(seed + 10)
    p, q = probabilities(target, ()), probabilities(draft, ())
    found = ppl.enumerate(program(target, draft, max_tokens=1))
    assert found.expect(lambda s: s.accepted) == pytest.approx(
        1 - 0.5 * np.abs(p - q).sum(), abs=1e-12
    )
    assert found.expect(lambda s: s.proposed) == pytest.approx(1, abs=1e-12)


def test_counts():
    same_model = table(0)
    # The draft is the target: all is accepted, and every third token is the target's own.
    endless = ppl.lm.Table(WORDS, same_model.table.at[..., WORDS.end].set(-jnp.inf))
    found = ppl.run(program(endless, endless, room=12, block=2, max_tokens=12), 0)
    counts = tuple(int(x) for x in (found.accepted, found.proposed, found.rounds))
    assert counts == (8, 8, 4)
    apart = [ppl.lm.Table(WORDS, jnp.where(jnp.arange(5) == i, 0.0, -jnp.inf)) for i in (0, 1)]
    found = ppl.run(program(*apart, room=5, block=2, max_tokens=5), 0)
    assert (int(found.accepted), int(found.proposed), int(found.rounds)) == (0, 5, 5)
    assert found.text.decode() == "aaaaa"


def test_counts_of_tokens_per_round():
    """Tokens a round, where acceptance is a everywhere: (1 - a^(block + 1)) / (1 - a)."""
    p, q, block = np.array([0.5, 0.3, 0.2, 0.0, 0.0]), np.array([0.3, 0.3, 0.4, 0.0, 0.0]), 3
    with np.errstate(divide="ignore"):
        target, draft = (ppl.lm.Table(WORDS, jnp.log(jnp.asarray(x))) for x in (p, q))
    a = 1 - 0.5 * np.abs(p - q).sum()
    full = program(target, draft, room=400, block=block, max_tokens=400)
    runs = jax.jit(jax.vmap(lambda k: ppl.run(full, k).rounds))(
        jax.random.split(jax.random.key(0), 64)
    )
    tokens = 400 / np.asarray(runs)
    wanted = (1 - a ** (block + 1)) / (1 - a)
    # The last round is cut: less than one round of about 150. |z| < 5: false alarm 6e-7.
    error = tokens.std() / 8
    assert abs(tokens.mean() - wanted) < 5 * error + wanted / runs.min()


def test_nothing_is_weighed():
    target, draft = table(2), table(3)
    assert ppl.enumerate(program(target, draft, max_tokens=2)).total_mass == pytest.approx(1)


def test_residual():
    p, q = jnp.log(jnp.array([0.5, 0.5, 0.0])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
    np.testing.assert_allclose(np.exp(residual(p, q)), [0.3, 0, 0], rtol=1e-12)
    np.testing.assert_array_equal(residual(p, p), p)
    small = jnp.log(jnp.array([1e-20, 1.0]))
    np.testing.assert_allclose(
        residual(small, jnp.log(jnp.array([1e-22, 1.0])))[0], np.log(0.99e-20)
    )


def test_a_wrong_residual_is_found(monkeypatch):
    """As in an implementation that redraws a rejected token from the target itself."""
    target, draft = table(0), table(1)
    monkeypatch.setattr(module, "residual", lambda p, q: p)
    found = enumerated(text(target, draft, block=2, max_tokens=1))
    assert max(abs(found.get(t, 0.0) - m) for t, m in law(target, 1).items()) > 0.01


def test_masks_are_refused():
    @ppl.model
    def masked(target, draft):
        return speculative("s", target.prompt(room=2, draft=draft, mask="a*"), max_tokens=2).text

    with pytest.raises(ArgumentError, match="mask"):
        masked(table(0), table(1))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"draft": None}, "without a draft"),
        ({"block": 0}, "block"),
        ({"max_tokens": 5}, "room"),
        ({"stop": ""}, "empty"),
    ],
)
def test_refusals(settings, said):
    draft = settings.pop("draft", table(1))
    with pytest.raises(ArgumentError, match=said):
        program(table(0), draft, **{"max_tokens": 2, **settings})
