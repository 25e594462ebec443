"""Steps of a language model, exactly: their law, and what each setting makes of it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl.errors import AddressError, ArgumentError
from tests.compiling import compilations
from tests.inference.lm.tables import (
    END,
    WORDS,
    enumerated,
    law,
    probabilities,
    restricted,
    same,
    table,
)

pytestmark = pytest.mark.usefixtures("x64")
lm = ppl.lm
A, B, AB, LINE = range(4)


def one_step(model, prompt="", room=4, draft=None, **settings):
    @ppl.model
    def program(model):
        context = model.prompt(prompt, room=room, draft=draft)
        return lm.step("step", context, **settings).text

    return program(model)


# --- The law ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_step_has_the_models_law(order):
    model = table(order, order=order)
    same(enumerated(one_step(model, max_tokens=3)), law(model, 3))


def test_a_step_goes_on_from_the_prompt():
    model = table(3, order=2)
    found = enumerated(one_step(model, "ab", max_tokens=2))  # the longest token that fits
    same(found, law(model, 2, before=(AB,)))
    same(enumerated(one_step(model, [A, B], max_tokens=2)), law(model, 2, before=(A, B)))


def test_temperature():
    model = table(4)
    same(enumerated(one_step(model, max_tokens=2, temperature=0.5)), law(model, 2, temperature=0.5))


@pytest.mark.parametrize("stop", ["\n", "ab", "ba", "aba"])
def test_a_stop_ends_the_step_wherever_tokens_are_cut(stop):
    model = table(5)
    same(enumerated(one_step(model, max_tokens=3, stop=stop)), law(model, 3, stop))


def test_the_first_of_several_stops_counts():
    model = table(6)
    wanted = law(model, 3)
    found = enumerated(one_step(model, max_tokens=3, stop=("\n", "ba")))
    for text in found:
        spelt = WORDS.decode(text)
        earlier = WORDS.decode(text[:-1])
        assert "\n" not in earlier
        assert "ba" not in earlier
        over = "\n" in spelt or "ba" in spelt or text[-1] == END
        assert over or len(text) == 3
    assert sum(found.values()) == pytest.approx(sum(wanted.values()), abs=1e-12)


@ppl.model
def two_steps(model, room=4):
    context = lm.step("first", model.prompt(room=room), stop="\n", max_tokens=2).context
    _, context = lm.step("second", context, max_tokens=2)
    return context.text


def test_steps_follow_one_another_and_a_finished_text_stays():
    model = table(7)
    wanted = {}
    for first, p in law(model, 2, "\n").items():
        rest = {(): 1.0} if first[-1] == END else law(model, 2, before=first)
        for second, q in rest.items():
            wanted[(*first, *second)] = wanted.get((*first, *second), 0.0) + p * q
    same(enumerated(two_steps(model)), wanted)


def test_a_text_is_cut_where_its_room_ends():
    model = table(7)
    found = enumerated(two_steps(model, room=3))
    assert max(map(len, found)) == 3
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-12)
    wanted = {}
    for text, p in enumerated(two_steps(model)).items():
        wanted[text[:3]] = wanted.get(text[:3], 0.0) + p
    same(found, wanted)


def test_context_says_that_it_was_truncated():
    @ppl.model
    def program(model):
        _, context = lm.step("step", model.prompt(room=2), max_tokens=2)
        return context.truncated, context.text.finished, context.length

    for (truncated, finished, length), mass in _points(program(table(8))):
        assert mass > 0
        assert bool(truncated) == (not finished)
        assert length == 2 or finished


def _points(program):
    measure = ppl.enumerate(program)
    return zip(measure.points, measure.masses, strict=True)


def test_a_step_in_every_control_flow_has_the_same_law():
    model = table(9)
    wanted = law(model, 2)

    @ppl.model
    def scanned(model):
        def body(context, _):
            return lm.step("step", context, max_tokens=1).context, None

        return jax.lax.scan(body, model.prompt(room=2), None, length=2)[0].text

    @ppl.model
    def branched(model):
        flag = ppl.sample("flag", ppl.distributions.Bernoulli(0.3))
        context = model.prompt(room=2)

        def short(context):
            context = lm.step("one", context, max_tokens=1).context
            return lm.step("two", context, max_tokens=1).context

        def whole(context):
            return lm.step("both", context, max_tokens=2).context

        return jax.lax.cond(flag == 1, short, whole, context).text

    @ppl.model
    def mapped(model):
        context = model.prompt(room=2)
        step = jax.vmap(lambda _: lm.step("step", context, max_tokens=2).text)
        texts = jax.jit(step)(jnp.arange(2))
        return texts[0]

    for program in (scanned, branched, mapped):
        same(enumerated(program(model)), wanted)


# --- Proposals and masks ------------------------------------------------------------------------


def test_a_proposal_leaves_the_measure_as_it_is():
    model, draft = table(10), table(11)
    wanted = law(model, 2)
    flat = one_step(model, max_tokens=2, proposal=lambda logits: 0.2 * logits)
    same(enumerated(flat), wanted)
    same(enumerated(one_step(model, max_tokens=2, draft=draft, proposal="draft")), wanted)


def test_a_draft_draws_what_is_proposed():
    """With a draft that says nothing but "a", every text is weighed by the model's probability."""
    model = table(10)
    stubborn = lm.Table(WORDS, jnp.where(jnp.arange(5) == A, 0.0, -jnp.inf))
    found = enumerated(one_step(model, max_tokens=2, draft=stubborn, proposal="draft"))
    same(found, {(A, A): law(model, 2)[A, A]})


def test_a_mask_cuts_the_law_down_to_the_texts_that_match():
    model = table(12)

    def matches(text):
        spelt = WORDS.decode(text)
        return len(spelt) > 0 and set(spelt) <= {"a", "b"} and spelt.endswith("b")

    found = enumerated(one_step(model, max_tokens=3, mask="[ab]*b"))
    same(found, restricted(law(model, 3), matches))


def test_a_mask_with_a_stop_matches_the_whole_step():
    model = table(13)
    found = enumerated(one_step(model, max_tokens=3, stop="\n", mask="(a|b){1,2}\n"))
    wanted = restricted(
        law(model, 3, "\n"),
        lambda t: WORDS.decode(t) in {x + "\n" for x in _ab(2)} and END not in t,
    )
    same(found, wanted)


def _ab(most):
    found = [""]
    for _ in range(most):
        found += [x + c for x in found for c in "ab"]
    return {x for x in found if x}


def test_a_step_ends_where_its_mask_lets_nothing_follow():
    model = table(14)
    found = enumerated(one_step(model, max_tokens=4, mask="ab"))
    p = law(model, 2)
    singles = law(model, 1)
    same(found, {(AB,): singles[AB,], (A, B): p[A, B]})


def test_a_locally_normalised_mask_is_another_law():
    model = table(15)
    settings = {"max_tokens": 2, "mask": "[ab]*"}
    found = enumerated(one_step(model, **settings, locally_normalised=True))
    weighed = enumerated(one_step(model, **settings))
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-12)
    share = sum(weighed.values())
    gap = 0.5 * sum(abs(found[t] - weighed[t] / share) for t in found)
    assert gap > 0.01
    allowed = law(model, 1)
    first = {t: sum(m for x, m in found.items() if x[:1] == t) for t in [(A,), (B,), (AB,), (END,)]}
    total = sum(allowed[t] for t in first)
    for t, mass in first.items():
        assert mass == pytest.approx(allowed[t] / total, abs=1e-12)


def test_a_mask_that_nothing_satisfies_loses_the_run_and_no_other():
    """Probability zero for all that may come: the run has no weight, the others keep theirs."""
    never_b = lm.Table(WORDS, jnp.log(jnp.array([0.5, 0.0, 0.2, 0.2, 0.1])))
    found = enumerated(one_step(never_b, max_tokens=2, mask="aa|ab|b"))
    same(found, {(A, A): 0.25, (AB,): 0.2})
    population = ppl.run(ppl.importance(one_step(never_b, max_tokens=1, mask="b"), 3), 0)
    assert population.log_evidence == -jnp.inf


def whole(model, pattern, steps, most=1):
    """A text in several steps, all of which has to match."""

    @ppl.model
    def program(model):
        context = model.prompt(room=steps * most, mask=pattern)

        def one(context, _):
            return lm.step("step", context, max_tokens=most).context, None

        context = jax.lax.scan(one, context, None, length=steps)[0]
        lm.condition("matched", context.matched)
        return context.text

    return program(model)


@pytest.mark.parametrize("pattern", ["[ab]*b", "ab", "(a|b){2}\n?", "a\n*"])
def test_a_mask_of_the_whole_text_holds_over_all_steps(pattern):
    model = table(29)
    program = whole(model, pattern, 3)

    def matches(text):
        return re.fullmatch(pattern, WORDS.decode(text)) is not None

    found = enumerated(program)
    closed = {"ab"}  # where nothing can follow, a text is over without its end
    wanted = {}
    for n in range(1, 4):
        for text, mass in law(model, n).items():
            complete = text[-1] == END or len(text) == 3
            over = WORDS.decode(text) in closed if pattern == "ab" else False
            over = over or (pattern == "(a|b){2}\n?" and WORDS.decode(text).endswith("\n"))
            if matches(text) and (over or complete) and END not in text[:-1]:
                wanted[text] = mass
    if pattern == "ab":
        wanted = {t: m for t, m in wanted.items() if t[-1] != END}
    if pattern == "(a|b){2}\n?":
        wanted = {
            t: m for t, m in wanted.items() if not WORDS.decode(t).endswith("\n") or t[-1] != END
        }
    same(found, wanted)
    report = ppl.check.preserves(lambda p: ppl.smc(p, 2, ess_threshold=1.0), program)
    assert report.passed, report


def test_what_is_appended_or_observed_must_match_the_mask_too():
    model = table(30)

    @ppl.model
    def program(model, first):
        context = model.prompt(room=3, mask="ab*")
        context = context.append(first)
        context = lm.observe("seen", context, "b")
        return lm.step("step", context, max_tokens=1).context.text

    p = probabilities(model, (A,))[B]
    last = {t: m * p for t, m in law(model, 1, before=(A, B)).items() if t in {(B,), (END,)}}
    same(enumerated(program(model, "a")), {(A, B, *t): m for t, m in last.items()})
    assert ppl.enumerate(program(model, "b")).total_mass == 0


def test_an_appended_text_that_cannot_match_is_found_by_the_next_step():
    """Also where the pattern lets nothing follow."""
    model = table(35)

    @ppl.model
    def program(model):
        context = model.prompt(room=4, mask="a").append("b")
        return lm.step("step", context, max_tokens=1).context.text

    assert ppl.enumerate(program(model)).total_mass == 0


def test_a_text_that_fills_its_room_without_a_match_weighs_nothing():
    model = table(36)

    @ppl.model
    def program(model):
        context = model.prompt(room=2, mask="a*\n")
        return lm.step("step", context, max_tokens=2).context.text

    p = law(model, 2)
    same(enumerated(program(model)), {(A, LINE): p[A, LINE], (LINE,): law(model, 1)[LINE,]})


# --- Observing ----------------------------------------------------------------------------------


def test_an_observed_text_weighs_by_its_probability():
    model = table(16, order=2)

    @ppl.model
    def program(model):
        context = lm.step("step", model.prompt(room=3), max_tokens=1).context
        return lm.observe("seen", context, [A, B]).text

    wanted = {}
    for first, p in law(model, 1).items():
        if first != (END,):
            rest = law(model, 2, before=first)
            wanted[*first, A, B] = p * rest[A, B]
    same(enumerated(program(model)), wanted)


def test_an_appended_text_weighs_nothing():
    model = table(17)

    @ppl.model
    def program(model):
        context = model.prompt("a", room=3).append("b")
        return lm.step("step", context, max_tokens=1).context.text

    same(enumerated(program(model)), {(B, *t): p for t, p in law(model, 1, before=(A, B)).items()})


def test_condition_keeps_the_runs_in_which_it_holds():
    model = table(18)

    @ppl.model
    def program(model):
        text, _ = lm.step("step", model.prompt(), max_tokens=2)
        lm.condition("short", text.length < 2)
        return text

    same(enumerated(program(model)), restricted(law(model, 2), lambda t: len(t) < 2))


def test_twists_cancel():
    model = table(19)

    @ppl.model
    def program(model, last):
        context = model.prompt(room=2)
        for i in range(2):
            text, context = lm.step(f"step{i}", context, max_tokens=1)
            guess = jnp.where(text.tokens[0] == A, 0.7, -0.4)
            context = lm.twist(f"twist{i}", context, guess)
        context = lm.twist("end", context, last)
        return context.text

    plain = law(model, 2)
    same(enumerated(program(model, jnp.array(0.0))), plain)
    tilted = enumerated(program(model, jnp.array(0.5)))
    same(tilted, {t: p * np.exp(0.5) for t, p in plain.items()})


# --- Compiling ----------------------------------------------------------------------------------


def test_new_tables_and_prompts_compile_nothing():
    @ppl.model
    def program(model, context):
        return lm.step("step", context, max_tokens=2).text

    def texts(model, prompt, key):
        context = model.prompt(prompt, room=4)
        ppl.run(ppl.smc(program(model, context), 4), key)

    model = table(25)
    texts(model, "a", 0)
    with compilations() as again:
        texts(model, "b", 1)
    assert again.count == 0
    first, second = table(26), table(27)
    ppl.run(one_step_of(first), 0)
    with compilations() as again:
        ppl.run(one_step_of(second), 1)
    assert again.count == 0


@ppl.model
def _one_step(model):
    return lm.step("step", model.prompt(room=2), max_tokens=2).text


def one_step_of(model):
    return _one_step(model)


# --- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_tokens": 9}, r"room for 4.*room=9"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ""}, "none of them empty"),
        ({"proposal": "draft"}, "has no draft"),
        ({"proposal": 3}, "function of logits"),
        ({"mask": "(a"}, "regex got"),
        ({"mask": "zzz"}, "regex got"),
        ({"stopp": "a"}, "stopp"),
        ({"temperature": 0.0}, "a positive number"),
        ({"temperature": -1}, "a positive number"),
        ({"locally_normalised": True}, "and no mask"),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(ArgumentError, match=words):
        one_step(table(), **{"max_tokens": 2, **settings})


def test_other_wrong_arguments_are_refused():
    model = table()
    with pytest.raises(ArgumentError, match=r"needs a Context.*lm\.prompt"):
        ppl.model(lambda: lm.step("s", "hello"))()
    with pytest.raises(ArgumentError, match=r"tokens \[7\]"):
        model.prompt([7])
    with pytest.raises(ArgumentError, match="is left"):
        model.prompt("abc")
    with pytest.raises(ArgumentError, match=r"append got 2 tokens, after 0.*room=2"):
        model.prompt(room=1).append("aa")
    with pytest.raises(ArgumentError, match=r"append got 1 tokens, after 2.*room=3"):
        model.prompt(room=2).append("aa").append("a")
    with pytest.raises(ArgumentError, match="one vocabulary"):
        model.prompt(draft=table(0, lm.Vocabulary(["a", None])))
    with pytest.raises(ArgumentError, match="special token"):
        lm.Vocabulary(["a", "b"])
    with pytest.raises(ArgumentError, match=r"shape \(5,\), \(6, 5\)"):
        lm.Table(WORDS, jnp.zeros((5, 5)))

    @ppl.model
    def twice(model):
        context = lm.step("step", model.prompt(), max_tokens=1).context
        return lm.step("step", context, max_tokens=1).text

    with pytest.raises(AddressError, match="step"):
        twice(model)
    with pytest.raises(ArgumentError, match="room for"):
        lm.reasoning(model.prompt(room=2), len, num_steps=3, max_tokens=1)
    with pytest.raises(ArgumentError, match="aggregate"):
        lm.reasoning(model.prompt(), len, num_steps=1, aggregate="sum")
    with pytest.raises(ArgumentError, match="link"):
        lm.reasoning(model.prompt(), len, num_steps=1, link="exp")
    with pytest.raises(ArgumentError, match="Population"):
        lm.best(one_step(model, max_tokens=1))
