"""What a completion server can do, found out by asking."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ppl.errors import UnsupportedError, suggest
from ppl.inference.lm.completions import Completion, Request, body_of, read
from ppl.inference.lm.http import PassingError, RefusedError, Transport, UnansweredError

_PROMPT = "Once upon a time"


@dataclasses.dataclass(frozen=True)
class Abilities:
    """What a server was found to do.

    Args:
        url: the server's address.
        model: the model that was asked.
        models: the models that it lists.
        log_probs: whether it gives log-probabilities.
        seeds: whether equal seeds give equal completions and others differ; None if too little
            varied to tell.
        scores: whether it gives log-probabilities of a given text.
        stop: what becomes of the stop text: "kept"; "reported", cut off but named; "cut" without a
            word; None if none came up.
    """

    url: str
    model: str
    models: tuple[str, ...]
    log_probs: bool
    seeds: bool | None
    scores: bool
    stop: str | None

    def __str__(self) -> str:
        known = self.model in self.models
        listed = "listed" if known else f"not listed; {suggest(self.model, self.models)}"
        return "\n".join(
            [
                f"{self.url} completes texts with {self.model!r}.",
                f"- Model: {listed}.",
                f"- Log-probabilities: {'given' if self.log_probs else 'not given'}.",
                f"- Seeds: {_SEEDS[self.seeds]}.",
                f"- Scores a given text: {'yes' if self.scores else 'no'}.",
                f"- Stop texts: {_STOPS[self.stop]}.",
            ]
        )


_SEEDS = {
    True: "honoured: equal seeds gave equal completions",
    False: "ignored: equal seeds gave different completions",
    None: "cannot tell: all completions were equal",
}
_STOPS = {
    "kept": "kept in the completion",
    "reported": "cut off, and reported",
    "cut": "cut off without a word: a stop and the end of the text look alike; "
    'OpenAI(..., stops="client") tells them apart',
    None: "cannot tell: none came up",
}


async def probe(
    transport: Transport, model: str, chat: bool, extra: Mapping[str, Any]
) -> Abilities:
    """Find out what a server can do.

    Args:
        transport: to the server.
        model: the model's name.
        chat: whether to use /chat/completions.
        extra: further fields of each request.

    Raises:
        RefusedError: the server refuses a plain completion.
        UnansweredError: it does not answer.
    """
    path = "/chat/completions" if chat else "/completions"

    async def ask(request: Request) -> tuple[Completion, dict[str, Any]]:
        body = body_of(request, model, chat, "server", extra)
        # "client": what this reads is the text as the server sent it.
        return await transport.ask(
            path,
            body,
            lambda r: (read(r, dataclasses.replace(request, stop=()), chat, "client")[0], r),
        )

    drawn = [(await ask(Request(_PROMPT, seed, 16)))[0].text for seed in (1, 1, 1, 2, 3, 4, 5)]
    models = await _models(transport)
    scored = body_of(Request(_PROMPT, 1, 1, logprobs=True), model, False, "server", extra)
    scored["echo"] = True
    return Abilities(
        transport.url,
        model,
        models,
        await _log_probs(ask),
        None if len(set(drawn)) == 1 else len(set(drawn[:3])) == 1,
        not chat and await _scores(transport, scored),
        await _stop(ask, drawn),
    )


async def _models(transport: Transport) -> tuple[str, ...]:
    def listed(reply: Any) -> tuple[str, ...]:
        try:
            return tuple(str(entry["id"]) for entry in reply["data"])
        except (KeyError, TypeError):
            raise PassingError("a list of models that is none") from None

    try:
        return await transport.ask("/models", None, listed)
    except (RefusedError, UnansweredError):  # not every server lists them
        return ()


async def _log_probs(ask: Any) -> bool:
    try:
        completion, _ = await ask(Request(_PROMPT, 1, 4, logprobs=True))
    except (RefusedError, UnsupportedError):
        return False
    return bool(completion.log_probs)


async def _scores(transport: Transport, body: dict[str, Any]) -> bool:
    """Ask for the prompt again, with its probabilities."""
    try:
        reply = await transport.ask("/completions", body, lambda reply: reply)
        (choice,) = reply["choices"]
        # llama.cpp takes the field and gives the new tokens alone.
        count = len(choice["logprobs"]["token_logprobs"])
        return choice["text"].startswith(_PROMPT) and count > 1
    except (RefusedError, UnansweredError, KeyError, TypeError, ValueError):
        return False


async def _stop(ask: Any, drawn: list[str]) -> str | None:
    """Stop at a letter that came up before; with seeds ignored it may take some tries."""
    letters = [text[len(text) // 2] for text in drawn if text]
    for seed, letter in enumerate(letters):
        completion, reply = await ask(Request(_PROMPT, max(1, seed - 1), 16, stop=(letter,)))
        if letter in completion.text:
            return "kept"
        if completion.finish_reason == "stop":
            (choice,) = reply["choices"]
            said = choice.get("stop_reason", choice.get("matched_stop"))
            if said == letter:
                return "reported"
            if said is None and "stop_reason" not in choice:
                return "cut"
    return None
