"""`OpenAI` refuses by name: what no retry mends, what was given up, settings out of range."""

import math
import sys

import pytest

from ppl.errors import ArgumentError, UnsupportedError
from ppl.inference.lm.completions import Request
from ppl.inference.lm.http import ServerError
from ppl.inference.lm.server import OpenAI
from tests.inference.lm.asking import client, expected, requests
from tests.inference.lm.serving import MODEL, serving


@pytest.fixture(scope="module")
def plain():
    with serving(stop="reported") as server:
        yield server


KEY = "sk-quite-secret-0123456789"


@pytest.mark.parametrize(
    ("settings", "prompt", "says"),
    [
        ({"model": "tables"}, "x", "`tables` does not exist.*client.check"),
        ({}, "x" * 1001, "maximum context length is 1000.*fit the model"),
        ({"api_key": KEY[::-1]}, "x", r"Incorrect API key provided: \*\*\*.*api_key=key"),
        ({"api_key": None}, "x", "status 401"),
    ],
)
def test_what_a_retry_cannot_mend_is_said_at_once(settings, prompt, says):
    with serving(key=KEY) as server, client(server, **{"api_key": KEY} | settings) as c:
        with pytest.raises(ServerError, match=f"(?s){says}") as info:
            c.complete(requests(1, prompt))
        assert "0 of 1 are finished" in str(info.value)
        assert c.spent.requests == 1
        assert KEY[::-1] not in f"{info.value}{c!r}"


def test_a_server_that_knows_no_further_fields(plain):
    with serving(strict=True) as server:
        with client(server) as c, pytest.raises(ServerError, match=r"top_k.*extra=\{\}"):
            c.complete(requests(1))
        with client(server, extra={}) as c:
            assert c.complete(requests(1))
    wrong = OpenAI(plain.root + "/v2", model=MODEL)
    with wrong, pytest.raises(ServerError, match=r"/v2/completions: status 404, 'Not Found'"):
        wrong.complete(requests(1))


def test_giving_up_says_what_is_kept_and_the_same_call_resumes(plain, tmp_path):
    path = tmp_path / "store.jsonl"
    asked = requests(6)
    poison = Request("poison", 0, 5)
    with client(plain, store=path, retries=2, concurrency=1) as c:
        with pytest.raises(ServerError, match=r"in 3 attempts.*'Internal error'.*6 of 8") as info:
            c.complete([*asked, poison, Request("y", 0, 5)])
        assert str(path) in str(info.value)
        assert "client.complete(requests)" in str(info.value)
        spent = c.spent.requests
        with pytest.raises(ServerError):
            c.complete([*asked, poison, Request("y", 0, 5)])
        assert c.spent.requests - spent in (3, 4)  # "y" may have been begun
        assert [one.text for one in c.complete(asked)] == [expected(one) for one in asked]


def test_a_server_that_is_not_there():
    with serving() as server:
        pass
    with client(server, retries=1) as c:
        with pytest.raises(ServerError, match=r"in 2 attempts.*ConnectError"):
            c.complete(requests(2))
        with pytest.raises(ServerError, match="see that the server runs there"):
            c.check()


def test_settings_out_of_range_are_named(monkeypatch):
    def make(url="http://127.0.0.1:1/v1", **settings):
        return OpenAI(url, **{"model": "m"} | settings)

    for settings, says in [
        ({"url": "127.0.0.1:8000"}, "the address '127.0.0.1:8000'"),
        ({"url": "http://me:secret@host/v1"}, "an address without one"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"timeout": math.nan}, "timeout=nan"),
        ({"retries": -1}, "retries=-1"),
        ({"stops": "both"}, 'needs "server" or "client"'),
        ({"api_key": "secret\n"}, "printable ASCII"),
    ]:
        with pytest.raises(ArgumentError, match=says) as info:
            make(**settings)
        assert "secret" not in str(info.value)
    for fields in [{"seed": -1}, {"max_tokens": 0}, {"stop": ("",)}, {"temperature": math.inf}]:
        with pytest.raises(ArgumentError, match=next(iter(fields))):
            Request("x", **fields)
    with pytest.raises(ArgumentError, match=r"needs ppl.lm.Request"):
        make().complete(["x"])
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(UnsupportedError, match=r'pip install "httpx'):
        make()
