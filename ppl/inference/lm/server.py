"""`OpenAI`: completions from any server with the OpenAI interface, as vLLM's and llama.cpp's."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import os
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ppl.errors import ArgumentError, PPLError, UnsupportedError, message
from ppl.inference.lm.completions import (
    UNTRUNCATED,
    Completion,
    Request,
    body_of,
    identity_of,
    read,
)
from ppl.inference.lm.context import Context
from ppl.inference.lm.http import RefusedError, ServerError, Transport, UnansweredError
from ppl.inference.lm.probing import Abilities, probe
from ppl.inference.lm.remote import Remote
from ppl.inference.lm.store import Store

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Spent:
    """What a client has spent since it was made.

    Args:
        requests: HTTP requests sent, retries included.
        retries: how many of them repeated one that had failed.
        prompt_tokens: tokens of prompts of finished completions, where the server tells.
        completion_tokens: tokens of finished completions, where it tells.
        cached: completions that were had without a request of their own.
    """

    requests: int
    retries: int
    prompt_tokens: int
    completion_tokens: int
    cached: int


@dataclasses.dataclass
class _Pending:
    """A request that is being asked, and how many calls wait for it."""

    task: asyncio.Task[None]
    waiting: int = 0


class OpenAI:
    """Ask a completion server for completions.

    **Meaning.** A completion is a draw from what the server's model says after the prompt, at the
    temperature asked for, up to a stop text, the end or `max_tokens`. Each request has exactly one
    completion, however often it is asked, retried or resumed; a different seed is a different
    request. A prompt is text: the server divides it into tokens anew, so continuing a completion
    need not have the probabilities of drawing on from its tokens. A chat server answers a prompt
    and cannot continue a text.

    What a retry repeats may have been generated, and paid for, before the connection broke.

    Args:
        url: the address that /completions is appended to, as "http://127.0.0.1:8000/v1".
        model: the model's name there.
        api_key: sent as a bearer token; shown nowhere.
        concurrency: how many requests are open at once.
        timeout: seconds that one attempt may take in all.
        retries: attempts after the first, on dropped connections, timeouts, unreadable answers and
            the statuses 408, 409, 425, 429 and 500 up. Retry-After is honoured.
        backoff: seconds before the second attempt, doubled each time up to 30, with jitter.
        store: a file that finished completions are appended to and found in again; None keeps them
            in memory.
        chat: whether to use /chat/completions, with the prompt as the user's message.
        stops: "server" sends the stop texts. "client" does not, and cuts the completion itself: it
            generates up to `max_tokens` each time, but always knows how a completion ended.
        extra: further fields of each request; by default those that turn off truncation of the
            distribution. A server that refuses them wants `extra={}`.

    Raises:
        ArgumentError: a setting is not usable.
        UnsupportedError: httpx is not installed.
        ResultError: the store is something else, or cannot be written.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        api_key: str | None = None,
        concurrency: int = 16,
        timeout: float = 60.0,
        retries: int = 6,
        backoff: float = 0.5,
        store: str | os.PathLike[str] | None = None,
        chat: bool = False,
        stops: str = "server",
        extra: Mapping[str, Any] | None = None,
    ):
        if stops not in ("server", "client"):
            raise ArgumentError(message(f"OpenAI got {stops=}", needs='"server" or "client"'))
        self.model, self.chat, self.stops = model, bool(chat), stops
        self.extra = dict(UNTRUNCATED if extra is None else extra)
        self._transport = Transport(url, api_key, concurrency, timeout, retries, backoff)
        self._store = Store(store)
        self._pending: dict[str, _Pending] = {}
        self._prompt_tokens = self._completion_tokens = self._cached = 0

    def __repr__(self) -> str:
        return f"OpenAI({self._transport.url!r}, model={self.model!r})"

    def prompt(self, text: str = "", *, room: int = 256) -> Context:
        """Begin a text that the server goes on with: `ppl.lm.step` asks for completions.

        Args:
            text: the prompt.
            room: how many tokens the text may grow by, over all steps.

        Raises:
            UnsupportedError: the server is a chat, which answers texts and cannot continue them.
        """
        if self.chat:
            raise UnsupportedError(
                message(
                    f"{self!r} was asked to go on with a text",
                    needs="a completion server",
                    why="a chat answers a text, and cannot continue it",
                    fix="OpenAI(url, model=name) without chat=True",
                )
            )
        return Remote(client=self).prompt(text, room=room)

    def complete(self, requests: Iterable[Request]) -> list[Completion]:
        """Ask for completions, many at once.

        Any thread may call it, also one that runs an event loop. An interrupt leaves at once and
        drops what is being asked; what is finished is kept.

        Args:
            requests: what to ask. Equal ones are asked once, also if another call is asking.

        Returns:
            The completions, in the order of the requests.

        Raises:
            ServerError: a request was refused, or had no usable answer in any attempt.
            UnsupportedError: the server cannot do what was asked.
            ResultError: the store cannot be written.
        """
        requests = list(requests)
        for request in requests:
            if not isinstance(request, Request):
                what = f"OpenAI.complete got {request!r}"
                raise ArgumentError(message(what, needs="ppl.lm.Request(prompt, seed=0)"))
        return self._wait(self._complete(requests))

    def check(self) -> Abilities:
        """Ask the server what it can do, with a few short completions.

        They are not kept, and change no completion that is asked for later.

        Returns:
            What was found; it prints as words.

        Raises:
            ServerError: the server refuses, or does not answer.
        """
        return self._wait(self._check())

    @property
    def spent(self) -> Spent:
        """What was spent since the client was made."""
        return Spent(
            self._transport.requests,
            self._transport.retried,
            self._prompt_tokens,
            self._completion_tokens,
            self._cached,
        )

    def close(self) -> None:
        """Drop what is being asked and close the connections. Asking again opens new ones."""
        self._wait(self._close())

    def __enter__(self) -> OpenAI:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- In the background loop -----------------------------------------------------------------

    async def _complete(self, requests: Sequence[Request]) -> list[Completion]:
        wanted = {self._identity(request): request for request in requests}
        waited: dict[str, _Pending] = {}
        asked = 0
        for identity, request in wanted.items():
            if identity in self._store:
                continue
            if identity not in self._pending:
                task = asyncio.create_task(self._ask(identity, request))
                self._pending[identity] = _Pending(task)
                asked += 1
            waited[identity] = self._pending[identity]
            waited[identity].waiting += 1
        self._cached += len(requests) - asked
        try:
            if waited:
                tasks = [pending.task for pending in waited.values()]
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
        except (RefusedError, UnansweredError) as error:
            finished = sum(self._identity(request) in self._store for request in requests)
            raise self._failure(error, finished, len(requests)) from None
        finally:
            for identity, pending in waited.items():
                self._leave(identity, pending)
        return [self._store[self._identity(request)] for request in requests]

    async def _ask(self, identity: str, request: Request) -> None:
        completion, prompt_tokens = await self._transport.ask(
            self._path, self._body(request), lambda r: read(r, request, self.chat, self.stops)
        )
        self._store.put(identity, completion)
        self._prompt_tokens += prompt_tokens
        self._completion_tokens += completion.num_tokens

    def _leave(self, identity: str, pending: _Pending) -> None:
        pending.waiting -= 1
        if pending.waiting and not pending.task.done():
            return
        pending.task.cancel()
        if pending.task.done() and not pending.task.cancelled():
            pending.task.exception()  # seen: another of this call was raised
        if self._pending.get(identity) is pending:
            del self._pending[identity]

    async def _check(self) -> Abilities:
        try:
            return await probe(self._transport, self.model, self.chat, self.extra)
        except (RefusedError, UnansweredError) as error:
            raise self._failure(error, 0, 0) from None

    async def _close(self) -> None:
        for pending in self._pending.values():
            pending.task.cancel()
        await self._transport.close()

    # --- Small parts ----------------------------------------------------------------------------

    @property
    def _path(self) -> str:
        return "/chat/completions" if self.chat else "/completions"

    def _body(self, request: Request) -> dict[str, Any]:
        return body_of(request, self.model, self.chat, self.stops, self.extra)

    def _identity(self, request: Request) -> str:
        return identity_of(request, self._body(request), self.chat, self.stops)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._transport.loop)
        try:
            while True:  # in short waits, for some systems deliver no interrupt in a long one
                done, _ = concurrent.futures.wait([future], timeout=0.2)
                if done:
                    return future.result()
        except concurrent.futures.CancelledError:
            raise ServerError(
                message(
                    f"{self!r} was closed while it was asking",
                    needs="to stay open",
                    fix="client.complete(requests) asks for what is not finished",
                )
            ) from None
        except BaseException:
            future.cancel()
            raise

    def _failure(
        self, error: RefusedError | UnansweredError, finished: int, total: int
    ) -> PPLError:
        place = self._transport.url + self._path
        kept = ""
        if total:
            where = "in memory" if self._store.path is None else f"in {str(self._store.path)!r}"
            kept = f". {finished} of {total} are finished and kept {where}"
        again = "client.complete(requests) asks only for the others"
        if isinstance(error, UnansweredError):
            return ServerError(
                message(
                    f"OpenAI got no usable answer from {place} in {error.attempts} attempts",
                    needs="a server that answers",
                    why=f"the last one failed with {error}{kept}",
                    fix=again if total else "see that the server runs there",
                )
            )
        fix = {
            401: "OpenAI(..., api_key=key)",
            403: "OpenAI(..., api_key=key)",
            404: "client.check() lists the models; the address ends where /completions begins",
            400: "a prompt and max_tokens that fit the model; OpenAI(..., extra={}) if the "
            f"server knows no {', '.join(self.extra) or 'such field'}",
        }.get(error.status, "mend what the server complains of")
        return ServerError(
            message(
                f"OpenAI was refused by {place}: {error}",
                needs="a request that it takes",
                why=f"repeating it would change nothing{kept}",
                fix=f"{fix}; then {again}" if total else fix,
            )
        )
