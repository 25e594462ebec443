"""Requests and completions, and how the OpenAI interface writes them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from ppl.errors import ArgumentError, UnsupportedError, message
from ppl.inference.lm.http import PassingError

#: Servers truncate the distribution unless told not to: llama.cpp's keeps 40 tokens by default,
#: vLLM takes what the model's authors suggest.
UNTRUNCATED: Mapping[str, Any] = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}


@dataclasses.dataclass(frozen=True)
class Request:
    """Ask for one completion.

    Two requests that agree in every field are the same request: they have one completion. Give
    particles with the same prompt different seeds, also on a server that ignores them.

    Args:
        prompt: the text to continue; for a chat model, what the user says.
        seed: which of the completions. llama.cpp's server takes it modulo 2**32, and draws a seed
            itself for 2**32 - 1.
        max_tokens: the most tokens.
        stop: texts that end a completion; a completion includes the one that ended it.
        temperature: divides the logits; 0 takes the likeliest token.
        logprobs: whether to ask for the log probability of each token.

    Raises:
        ArgumentError: a field is out of range.
    """

    prompt: str
    seed: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    temperature: float = 1.0
    logprobs: bool = False

    def __post_init__(self):
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        # Plain Python values: NumPy's would be another request, or none that JSON can write.
        for name, value in (
            ("seed", int(self.seed)),
            ("max_tokens", int(self.max_tokens)),
            ("stop", stop),
            ("temperature", float(self.temperature)),
            ("logprobs", bool(self.logprobs)),
        ):
            object.__setattr__(self, name, value)
        for name, fine, needs in (
            ("prompt", isinstance(self.prompt, str), "a text"),
            ("seed", 0 <= self.seed < 2**63, "a number from 0 below 2**63"),
            ("max_tokens", self.max_tokens >= 1, "at least one"),
            ("stop", all(isinstance(s, str) and s for s in stop), "texts that are not empty"),
            ("temperature", 0.0 <= self.temperature < math.inf, "a finite number from 0"),
        ):
            if not fine:
                got = f"Request got {name}={getattr(self, name)!r}"
                raise ArgumentError(message(got, needs=needs))


@dataclasses.dataclass(frozen=True)
class Completion:
    """One completion.

    Args:
        text: what was drawn, with the stop text that ended it.
        finish_reason: the server's word.
        ended: "stop" at a stop text, "end" at the end of the text, "length" at `max_tokens`,
            or "stop or end" where the server cuts the stop text off and does not say which it was:
            the stop text is then appended on trust.
        tokens: what each token spells, as bytes if the server gives them; None if not asked for.
        log_probs: log probability of each token, in nats. vLLM, llama.cpp and OpenAI give the
            model's own, before temperature: they are no densities of the draw unless the
            temperature is 1.
        num_tokens: how many tokens the server generated; 0 if it does not say.
    """

    text: str
    finish_reason: str
    ended: str
    tokens: tuple[bytes | str, ...] | None = None
    log_probs: tuple[float, ...] | None = None
    num_tokens: int = 0

    @property
    def tokens_spell_text(self) -> bool:
        """Whether the tokens spell the text exactly, so that their probabilities are its own.

        A server may leave out the tokens of the stop text, or include that of the end.
        """
        return self.tokens is not None and _spelt(self.tokens) == _bytes(self.text)


def body_of(
    request: Request, model: str, chat: bool, stops: str, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a request as the interface wants it.

    Args:
        request: the request.
        model: the model's name.
        chat: whether for /chat/completions.
        stops: "server" sends the stop texts.
        extra: further fields.
    """
    if chat:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": request.prompt}]}
    else:
        body = {"prompt": request.prompt}
    body |= {
        "model": model,
        "seed": request.seed,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
    }
    if request.stop and stops == "server":
        body["stop"] = list(request.stop)
    if request.logprobs:
        body["logprobs"] = True if chat else 1  # llama.cpp takes 0 for no
    return body | dict(extra)


def identity_of(request: Request, body: Mapping[str, Any], chat: bool, stops: str) -> str:
    """Name a request: the same whenever the same is asked of the same model.

    The server's address is no part of it; a server that comes back elsewhere is the same.

    Args:
        request: the request.
        body: as `body_of` writes it.
        chat: whether for /chat/completions.
        stops: who looks for the stop texts.
    """
    whole = json.dumps([body, chat, stops, request.stop], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:40]


def read(reply: Any, request: Request, chat: bool, stops: str) -> tuple[Completion, int]:
    """Read a completion, and how many tokens its prompt had.

    Args:
        reply: the decoded JSON.
        request: what was asked.
        chat: whether of /chat/completions.
        stops: "server" or "client": who looked for the stop texts.

    Raises:
        PassingError: it is no completion.
        UnsupportedError: the server cannot do what was asked.
    """
    try:
        (choice,) = reply["choices"]
        text = choice["message"]["content"] or "" if chat else choice["text"]
        finish = choice["finish_reason"]
        usage = reply.get("usage") or {}
        counts = [int(usage.get(f"{what}_tokens") or 0) for what in ("completion", "prompt")]
        if not isinstance(text, str) or not isinstance(finish, str):
            raise TypeError
        tokens, log_probs = _log_probs(choice) if request.logprobs else (None, None)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise PassingError(f"JSON that is no completion: {str(reply)[:200]!r}") from None
    if request.logprobs and log_probs is None:
        raise UnsupportedError(
            message(
                "OpenAI.complete asked for log-probabilities and got none",
                needs="a server that gives them",
                fix="Request(..., logprobs=False), or start the server with them enabled",
            )
        )
    kept, ended = _ending(text, finish, choice, request, stops)
    if tokens is not None and log_probs is not None and len(kept) < len(text):
        tokens, log_probs = _trimmed(tokens, log_probs, kept)
    num_tokens = counts[0] or len(tokens or ())
    return Completion(kept, finish, ended, tokens, log_probs, num_tokens), counts[1]


def _ending(
    text: str, finish: str, choice: Mapping[str, Any], request: Request, stops: str
) -> tuple[str, str]:
    """Find how a completion ended, and give the text up to there, stop text included."""
    ends = [text.find(stop) + len(stop) for stop in request.stop if stop in text]
    if ends:  # the server keeps it, or ran on past it
        return text[: min(ends)], "stop"
    if finish == "length":
        return text, "length"
    if finish == "content_filter":
        raise UnsupportedError(
            message(
                "OpenAI.complete got a completion that the server's content filter cut",
                needs="a server that returns what its model draws",
                why="what is left is no draw from the model",
            )
        )
    if finish != "stop":
        raise PassingError(f"finish_reason {finish!r}")
    if not request.stop or stops == "client":
        return text, "end"
    # vLLM says which it was: None at the end of the text. SGLang does under another name.
    said = choice.get("stop_reason", choice.get("matched_stop"))
    if said in request.stop:
        return text + said, "stop"
    if said is not None or "stop_reason" in choice:
        return text, "end"
    if len(request.stop) != 1:
        raise UnsupportedError(
            message(
                f"OpenAI.complete got a completion that ended at one of {request.stop!r}",
                needs="a server that says at which, or a single stop text",
                why="this one cuts the stop text off, and which it was is lost",
                fix='ppl.lm.OpenAI(..., stops="client") finds them itself',
            )
        )
    return text + request.stop[0], "stop or end"


def _log_probs(
    choice: Mapping[str, Any],
) -> tuple[tuple[bytes | str, ...] | None, tuple[float, ...] | None]:
    """Read tokens and log probabilities, in the form of either endpoint."""
    given = choice.get("logprobs")
    if not given:
        return None, None
    if given.get("content") is not None:  # llama.cpp uses the chat form for both
        entries = given["content"]
        values = [entry["logprob"] for entry in entries]
        if all(entry.get("bytes") is not None for entry in entries):
            tokens: list[bytes | str] = [bytes(entry["bytes"]) for entry in entries]
        else:
            tokens = [entry["token"] for entry in entries]
    else:
        tokens, values = list(given["tokens"]), given["token_logprobs"]
    log_probs = tuple(float(value) for value in values)
    if len(tokens) != len(log_probs) or any(math.isnan(value) for value in log_probs):
        raise ValueError
    return tuple(tokens), log_probs


def _trimmed(
    tokens: tuple[bytes | str, ...], log_probs: tuple[float, ...], kept: str
) -> tuple[tuple[bytes | str, ...], tuple[float, ...]]:
    """Drop the tokens after a text. The last one left may spell more than the text has."""
    wanted, spelt = _bytes(kept), b""
    for count, token in enumerate(tokens):
        if len(spelt) >= len(wanted):
            return tokens[:count], log_probs[:count]
        spelt += _bytes(token)
    if spelt.startswith(wanted):
        return tokens, log_probs
    raise UnsupportedError(
        message(
            f"OpenAI.complete got tokens that do not spell {kept!r}",
            needs="a server whose tokens spell its text",
            why="which log-probabilities belong to the text before the stop cannot be told",
            fix="Request(..., logprobs=False)",
        )
    )


def _bytes(piece: bytes | str) -> bytes:
    return piece if isinstance(piece, bytes) else piece.encode("utf-8", "surrogatepass")


def _spelt(tokens: tuple[bytes | str, ...]) -> bytes:
    return b"".join(map(_bytes, tokens))
