"""Steps by a completion server: the same programs, drawn by another process."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ppl
from ppl.errors import ResultError, UnsupportedError
from tests.inference.lm.serving import MODEL, law, serving

lm = ppl.lm
pytest.importorskip("httpx", reason="python -m pip install httpx")


@pytest.fixture(scope="module")
def client():
    with serving(stop="reported") as server, lm.OpenAI(server.url, model=MODEL) as client:
        yield client


@ppl.model
def line(context):
    return lm.step("line", context, stop="\n", max_tokens=4).text


def asked(client):
    return client.spent.requests


def test_a_step_has_the_servers_law(client):
    """A chi-squared test, wrong once in a million."""
    draws = 1000
    program = line(client.prompt("a", room=4))
    population = ppl.run(ppl.importance(program, draws), 0)
    found = collections.Counter(population.values.decode())
    wanted = collections.Counter()
    for (text, _), p in law("a", 4, ("\n",)).items():
        wanted[text] += p
    assert set(found) <= set(wanted)
    rare = [t for t, p in wanted.items() if p * draws < 10]
    cells = [[t] for t in wanted if t not in rare] + [rare]
    counts = np.array([sum(found[t] for t in cell) for cell in cells])
    means = draws * np.array([sum(wanted[t] for t in cell) for cell in cells])
    assert stats.chi2.sf(np.sum((counts - means) ** 2 / means), len(cells) - 1) > 1e-6


def test_the_end_of_a_text_is_told_from_a_cut(client):
    population = ppl.run(ppl.importance(line(client.prompt("a", room=4)), 64), 1)
    texts, finished = population.values.decode(), np.asarray(population.values.finished)
    wanted = law("a", 4, ("\n",))
    for text, end in zip(texts, finished, strict=True):
        assert end == (len(text) < 4 and not text.endswith("\n"))
        assert (text, "end" if end else "stop" if text.endswith("\n") else "length") in wanted


def test_particles_go_on_each_from_its_own_text_and_what_is_over_asks_nothing(client):
    judge = lm.judge(lambda text: 0.1 + 0.8 * text.count("a") / max(1, len(text)))
    task = lm.reasoning(client.prompt("b", room=12), judge, num_steps=3, max_tokens=4, stop="\n")
    before = asked(client)
    first = ppl.run(ppl.smc(task.program, 8), 0)
    spent = asked(client) - before
    assert 8 <= spent <= 24
    again = ppl.run(ppl.smc(task.program, 8), 0)
    assert asked(client) - before == spent  # nothing is asked twice
    assert first.values.text.decode() == again.values.text.decode()
    over = ppl.run(ppl.importance(finished_line(client.prompt("a", room=8)), 32), 2)
    texts, lengths = over.values
    ended = np.asarray(texts.finished)
    assert ended.any()
    assert (np.asarray(lengths)[ended] == 0).all()
    assert (np.asarray(lengths)[~ended] > 0).all()


@ppl.model
def finished_line(context):
    text, context = lm.step("first", context, stop="\n", max_tokens=4)
    more, _ = lm.step("second", context, max_tokens=4)
    return text, more.length


def test_the_evidence_is_unbiased(client):
    """Forty runs against the sum over all texts, within five standard errors."""

    @ppl.model
    def program(context):
        for i in range(2):
            text, context = lm.step(f"line{i}", context, stop="\n", max_tokens=2)
            a = jnp.sum((text.tokens == ord("a")) & (jnp.arange(16) < text.length))
            ppl.factor(f"score{i}", jnp.log(0.2 + 0.3 * a))

    exact = 0.0
    for (one, how), p in law("b", 2, ("\n",)).items():
        rest = {("", "end"): 1.0} if how == "end" else law("b" + one, 2, ("\n",))
        for (two, _), q in rest.items():
            exact += p * q * (0.2 + 0.3 * one.count("a")) * (0.2 + 0.3 * two.count("a"))
    made = ppl.smc(program(client.prompt("b", room=4)), 8, ess_threshold=1.0)
    runs = np.exp([float(ppl.run(made, k).log_evidence) for k in range(40)])
    error = runs.std(ddof=1) / np.sqrt(len(runs))
    assert abs(runs.mean() - exact) < 5 * error
    assert error < 0.1 * exact


def test_faults_change_no_particle():
    texts = []
    for faults in ({}, {"drop": 0.2, "busy": 0.2, "malformed": 0.1}):
        with (
            serving(stop="reported", **faults) as server,
            lm.OpenAI(server.url, model=MODEL, backoff=0.01, retries=20) as client,
        ):
            population = ppl.run(ppl.importance(line(client.prompt("a", room=4)), 24), 3)
            texts.append(population.values.decode())
            assert (client.spent.retries > 0) == bool(faults)
    assert texts[0] == texts[1]


def test_what_a_server_cannot_do_is_refused(client):
    context = client.prompt("a", room=4)

    @ppl.model
    def masked(context, settings):
        return lm.step("line", context, max_tokens=4, **settings).text

    for settings in ({"mask": "a*"}, {"proposal": lambda logits: logits}):
        with pytest.raises(UnsupportedError, match=r"neither weigh one, nor be masked.*Llama"):
            masked(context, settings)
    # Also a mask of the whole text.
    held = lm.Remote(client=client).prompt("a", room=4, mask="a*")
    with pytest.raises(UnsupportedError, match="nor be masked"):
        line(held)
    with pytest.raises(UnsupportedError, match="neither weigh one"):
        ppl.model(lambda c: lm.observe("seen", c, "ab"))(context)
    program = line(context)
    with pytest.raises(UnsupportedError, match="draws texts, and does not weigh them"):
        ppl.log_density(program, {"line": jnp.zeros(32, int)})
    with pytest.raises(UnsupportedError, match="draws texts"):
        ppl.enumerate(program)


def test_a_completion_that_does_not_fit_is_an_error_and_no_cut():
    class Long:
        def complete(self, requests):
            return [lm.Completion("a" * 99, "length", "length") for _ in requests]

    context = lm.Remote(client=Long()).prompt("a", room=4)
    with pytest.raises(ResultError, match=r"99 symbols for up to 4 tokens.*max_tokens=13"):
        ppl.run(line(context), 0)


def test_a_text_that_may_be_over_does_not_go_on():
    """A server that cuts stops off and tells no stop from an end: it is refused, not guessed."""
    with serving(stop="cut") as server:
        guessing = lm.OpenAI(server.url, model=MODEL)
        with pytest.raises(ResultError, match=r"stops=\"client\""):
            ppl.run(ppl.importance(line(guessing.prompt("a", room=4)), 32), 0)
        knowing = lm.OpenAI(server.url, model=MODEL, stops="client")
        population = ppl.run(ppl.importance(line(knowing.prompt("a", room=4)), 32), 0)
        assert all(t.count("\n") <= 1 for t in population.values.decode())
        with pytest.raises(UnsupportedError, match="cannot continue it"):
            lm.OpenAI(server.url, model=MODEL, chat=True).prompt("a")
