"""`OpenAI` against a real server process: the law of its completions, faults, what servers do."""

import collections
import email.utils
import json
import math
import threading
import time

import numpy as np
import pytest
import scipy.stats

from ppl.errors import UnsupportedError
from ppl.inference.lm.completions import Completion, Request
from ppl.inference.lm.http import ServerError, _seconds
from tests.inference.lm.asking import LINE, client, expected, requests
from tests.inference.lm.serving import END, ROWS, law, serving


@pytest.fixture(scope="module")
def plain():
    with serving(stop="reported") as server:
        yield server


# --- The law ------------------------------------------------------------------------------------


def tail(counts, probs):
    """The p-value of Pearson's test, cells of fewer than five expected draws pooled."""
    total = sum(counts.values())
    assert set(counts) <= set(probs)
    cells = [(counts[outcome], p * total) for outcome, p in probs.items()]
    rare = [cell for cell in cells if cell[1] < 5.0]
    cells = [cell for cell in cells if cell[1] >= 5.0]
    if rare:
        cells.append(tuple(map(sum, zip(*rare, strict=True))))
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    return scipy.stats.chi2.sf(statistic, len(cells) - 1)


@pytest.mark.parametrize(("stops", "temperature"), [("server", 1.0), ("client", 0.6)])
def test_completions_have_the_law_of_the_table(plain, stops, temperature):
    # False alarm: about 1e-6 each. The law at another temperature must fail the same test.
    asked = requests(400, max_tokens=4, temperature=temperature)
    with client(plain, stops=stops) as c:
        got = c.complete(asked)
    counts = collections.Counter((one.text, one.ended) for one in got)
    assert tail(counts, law("x", 4, LINE, temperature)) > 1e-6
    assert tail(counts, law("x", 4, LINE, 1.6 - temperature)) < 1e-6


@pytest.mark.parametrize("form", ["text", "chat"])
def test_log_probabilities_are_the_models_own_in_nats(form):
    with serving(stop="reported", logprobs=form) as server, client(server) as c:
        got = c.complete(requests(20, logprobs=True, temperature=0.7))
        cut = client(server, stops="client").complete(requests(20, logprobs=True))
    assert {one.ended for one in got} == {"stop", "end", "length"}
    for one in got + cut:
        letters = [token if isinstance(token, str) else token.decode() for token in one.tokens]
        assert "".join(letters) == one.text
        assert one.tokens_spell_text
        rows = [ROWS.get(before, ROWS["other"]) for before in ["x", *letters[:-1]]]
        table = [math.log(row[letter]) for row, letter in zip(rows, letters, strict=False)]
        np.testing.assert_allclose(one.log_probs, table, rtol=1e-12)
        assert one.num_tokens >= len(letters)


# --- Faults -------------------------------------------------------------------------------------


def test_under_faults_every_request_has_its_one_completion(tmp_path):
    faults = dict.fromkeys(["drop", "lost", "malformed", "shapeless", "truncated", "broken"], 0.05)
    asked, store = requests(300), tmp_path / "store.jsonl"
    # A request fails 17 times in a row with probability 0.38**17; one of 300: 2e-5.
    settings = {"retries": 16, "timeout": 1.0, "store": store}
    with (
        serving(stop="reported", busy=0.05, hang=0.01, retry_after=0.02, **faults) as server,
        client(server, **settings) as c,
    ):
        got = c.complete(asked)
        stats, spent = server.stats(), c.spent
    assert [one.text for one in got] == [expected(request) for request in asked]
    assert set(stats["faults"]) == {*faults, "busy", "hang"}
    # A whole answer can come too late on a busy machine; then it is asked once more.
    assert set(stats["sent"]) == {f"{seed}|x" for seed in range(300)}
    assert spent.requests == 300 + spent.retries >= len(stats["times"])
    assert spent.retries >= sum(stats["faults"].values())
    assert spent.completion_tokens == sum(one.num_tokens for one in got)
    assert spent.prompt_tokens == 300
    lines = [json.loads(line) for line in store.read_text().splitlines()]
    assert len({line["id"] for line in lines[1:]}) == len(lines) - 1 == 300


def test_a_slow_or_dribbling_server_is_given_up_in_time():
    with serving(script="hang,dribble,ok") as server, client(server, timeout=0.4) as c:
        began = time.monotonic()
        assert len(c.complete(requests(1))) == 1
        assert 0.8 <= time.monotonic() - began < 10.0
        assert c.spent.retries == 2
    slow = pytest.raises(ServerError, match=r"in 2 attempts.*no answer within 0.1 s")
    began = time.monotonic()
    with serving(delay=20.0) as server, client(server, timeout=0.1, retries=1) as c, slow:
        c.complete(requests(1))
    assert time.monotonic() - began < 5.0


def test_retry_after_holds_all_requests_back():
    # Four are open; the first is told to wait at once, the others have their answers after a while.
    with serving(script="busy", retry_after=0.6, delay=0.2) as server:
        with client(server, concurrency=4) as c:
            c.complete(requests(8))
        times = server.stats()["times"]
    assert len(times) == 9
    assert times[4] - times[0] >= 0.6
    tomorrow = pytest.raises(ServerError, match=r"Slow down \(asks to wait 86400 s\)")
    with serving(script="busy", retry_after=86400) as server, client(server) as c, tomorrow:
        c.complete(requests(1))


def test_retry_after_is_seconds_or_a_date():
    assert _seconds("2.5") == 2.5
    assert _seconds(None) == _seconds("soon") == _seconds("nan") == _seconds("-3") == 0.0
    assert 58.0 < _seconds(email.utils.formatdate(time.time() + 60.0, usegmt=True)) <= 60.0
    assert _seconds(email.utils.formatdate(time.time() - 60.0, usegmt=True)) == 0.0


def test_so_many_requests_are_open_and_no_more():
    with serving(delay=0.03) as server, client(server, concurrency=3) as c:
        c.complete(requests(15))
        assert server.stats()["most_open"] == 3
    # Waiting for a turn counts for no timeout: these take 2.4 s one after another.
    with serving(delay=0.3) as server, client(server, concurrency=1, timeout=1.5) as c:
        c.complete(requests(8))
        assert c.spent.retries == 0


# --- The same request ---------------------------------------------------------------------------


def test_equal_requests_are_asked_once_and_seeds_make_them_differ():
    with serving(ignore_seeds=True, delay=0.2) as server, client(server) as c:
        asked = requests(40, max_tokens=12, stop=())
        results = []
        other = threading.Thread(target=lambda: results.append(c.complete(asked + asked)))
        other.start()
        results.append(c.complete(asked[::-1]))
        other.join()
        again = c.complete(asked)
        assert again[::-1] in results
        assert again + again in results
        drawn = server.stats()["drawn"]
    assert drawn == {f"{seed}|x": 1 for seed in range(40)}
    assert len({one.text for one in again}) > 20
    assert (c.spent.requests, c.spent.cached) == (40, 120)


def test_numpy_fields_are_the_same_request(plain):
    one = Request("x", np.uint32(3), np.int64(5), ["\n"], np.float32(1.0), np.True_)
    assert one == Request("x", 3, 5, "\n", 1, True)
    with client(plain) as c:
        c.complete([one, Request("x", 3, 5, LINE, logprobs=True)])
        assert c.spent.requests == 1


# --- What servers differ in ---------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["cut", "kept", "reported", "ignored"])
def test_a_completion_includes_its_stop(stop):
    with serving(stop=stop) as server, client(server) as c:
        for request, one in zip(requests(60), c.complete(requests(60)), strict=True):
            text = expected(request)
            ended = "stop" if text.endswith("\n") else "length" if len(text) == 5 else "end"
            # Where the server is silent, what ends with the text looks as what ends at a stop.
            if ended == "end" and stop != "reported":
                text, ended = text + "\n", "stop or end"
            elif ended == "stop" and stop == "cut":
                ended = "stop or end"
            if stop == "ignored" and one.finish_reason == "length" and ended == "stop":
                assert one.num_tokens == 5
            assert (one.text, one.ended) == (text, ended)


@pytest.mark.parametrize("stop", ["cut", "kept", "reported"])
def test_several_stops_need_a_server_that_says_which_or_the_client(stop):
    several = requests(60, stop=("bb", "\n"))
    texts = [expected(request) for request in several]
    with serving(stop=stop) as server, client(server) as c:
        if stop == "reported":
            assert [one.text for one in c.complete(several)] == texts
        else:
            with pytest.raises(UnsupportedError, match=r'single stop text.*stops="client"'):
                c.complete(several)
        alone = client(server, stops="client").complete(several)
        assert [one.text for one in alone] == texts
        assert {one.ended for one in alone} == {"stop", "end", "length"}


def test_log_probabilities_that_a_server_does_not_give_are_refused():
    with serving(logprobs="none") as server, client(server) as c:
        with pytest.raises(UnsupportedError, match="got none; needs a server that gives them"):
            c.complete(requests(1, logprobs=True))
        assert c.spent.requests == 1
        assert c.complete(requests(1))[0].log_probs is None


def test_check_says_what_a_server_can_do(plain):
    with client(plain) as c:
        found = c.check()
    assert (found.log_probs, found.seeds, found.scores, found.stop) == (
        True,
        True,
        False,
        "reported",
    )
    assert "Model: listed." in str(found)
    with serving(logprobs="none", ignore_seeds=True) as server, client(server) as c:
        found = c.check()
    assert (found.log_probs, found.seeds, found.scores, found.stop) == (False, False, False, "cut")
    assert 'stops="client"' in str(found)
    with serving(echo=True, stop="kept", key="key") as server:
        with client(server, api_key="key") as c:
            found = c.check()
        with client(server) as c, pytest.raises(ServerError, match="status 401"):
            c.check()
    assert (found.log_probs, found.scores, found.stop) == (True, True, "kept")


def test_chat_completions(plain):
    with client(plain, chat=True) as c:
        got = c.complete(requests(20, logprobs=True))
        assert [one.text for one in got] == [expected(request) for request in requests(20)]
        assert not c.check().scores


def test_the_end_of_a_text_is_no_letter():
    assert Completion("", "stop", "end").tokens_spell_text is False
    assert law("x", 1)[END, "end"] == 0.1
    assert math.isclose(sum(law("x", 4, LINE).values()), 1.0)
