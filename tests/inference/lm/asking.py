"""What the tests of `OpenAI` share: a client, requests, and what a server of seeds must answer."""

import random

from ppl.inference.lm.completions import Request
from ppl.inference.lm.server import OpenAI
from tests.inference.lm.serving import MODEL, draw

LINE = ("\n",)


def client(server, **settings):
    """A client of it that retries fast."""
    return OpenAI(server.url, **{"model": MODEL, "backoff": 0.002, "timeout": 20.0} | settings)


def requests(count, prompt="x", **fields):
    """As many requests that differ in their seeds: a line of at most five letters."""
    fields = {"max_tokens": 5, "stop": LINE} | fields
    return [Request(prompt, seed, **fields) for seed in range(count)]


def expected(request):
    """What a server that honours seeds draws, stop text included."""
    rng = random.Random(f"{request.seed}|{request.prompt}")
    body = {"max_tokens": request.max_tokens, "stop": request.stop}
    return draw(rng, request.prompt, body | {"temperature": request.temperature})[0]
