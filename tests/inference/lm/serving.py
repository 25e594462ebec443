"""A completion server over a small table, in a process of its own, with faults to order.

`with serving(drop=0.2, stop="cut") as server:` starts one on a free port of loopback;
`server.url` is its address and `server.stats()` tells what it saw. `law` is the exact distribution
of its completions.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import random
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator

MODEL, END = "table", ""
#: What follows a letter, whatever comes before it.
ROWS = {
    "a": {"a": 0.2, "b": 0.5, "\n": 0.2, END: 0.1},
    "b": {"a": 0.6, "b": 0.1, "\n": 0.2, END: 0.1},
    "other": {"a": 0.45, "b": 0.35, "\n": 0.1, END: 0.1},
}
#: Each is a chance that an answer goes wrong so.
FAULTS = (
    "drop",
    "lost",
    "malformed",
    "shapeless",
    "truncated",
    "busy",
    "broken",
    "hang",
    "dribble",
)


# --- The model ----------------------------------------------------------------------------------


def row(text: str, temperature: float) -> dict[str, float]:
    """What follows a text, at a temperature; 0 takes the likeliest."""
    probs = ROWS.get(text[-1:], ROWS["other"])
    if temperature == 0.0:
        return {max(probs, key=lambda letter: probs[letter]): 1.0}
    powers = {letter: p ** (1.0 / temperature) for letter, p in probs.items()}
    return {letter: p / sum(powers.values()) for letter, p in powers.items()}


def stopped(text: str, stop: tuple[str, ...]) -> str | None:
    return next((s for s in stop if text.endswith(s)), None)


def law(
    prompt: str, max_tokens: int, stop: tuple[str, ...] = (), temperature: float = 1.0
) -> dict[tuple[str, str], float]:
    """Give the probability of each completion and of how it ended, by enumeration."""
    done: Counter[tuple[str, str]] = Counter()
    going = {"": 1.0}
    for _ in range(max_tokens):
        longer: Counter[str] = Counter()
        for text, p in going.items():
            for letter, q in row(prompt + text, temperature).items():
                if letter == END:
                    done[text, "end"] += p * q
                elif stopped(text + letter, stop):
                    done[text + letter, "stop"] += p * q
                else:
                    longer[text + letter] += p * q
        going = longer
    for text, p in going.items():
        done[text, "length"] += p
    return dict(done)


def draw(rng: random.Random, prompt: str, body: dict) -> tuple[str, str, str | None, list[float]]:
    """Draw a completion: its text with the stop, finish_reason, the stop, log probabilities."""
    stop = body.get("stop") or ()
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    text, log_probs = "", []
    for _ in range(body.get("max_tokens", 16)):
        probs = row(prompt + text, body.get("temperature", 1.0))
        (letter,) = rng.choices(list(probs), list(probs.values()))
        if letter == END:
            return text, "stop", None, log_probs
        log_probs.append(math.log(row(prompt + text, 1.0)[letter]))
        text += letter
        if stopped(text, stop):
            return text, "stop", stopped(text, stop), log_probs
    return text, "length", None, log_probs


# --- The server ---------------------------------------------------------------------------------


class Server:
    def __init__(self, settings: argparse.Namespace):
        self.settings = settings
        self.faults_rng = random.Random(settings.fault_seed)
        self.script = iter(settings.script.split(",") if settings.script else ())
        self.rng = random.Random(1)
        self.drawn: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.open = self.most_open = 0
        self.times: list[float] = []

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self.exchange(reader, writer):
                pass
        writer.close()

    async def exchange(self, reader, writer) -> bool:
        """Answer one request; say whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split()
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        key = next((line[22:] for line in head if line.lower().startswith("authorization:")), "")
        if path == "/stats":
            return self.answer(writer, 200, self.stats())
        if self.settings.key and key != self.settings.key:
            said = {"error": {"message": f"Incorrect API key provided: {key}"}}
            return self.answer(writer, 401, said)
        if method == "GET" and path == "/v1/models":
            return self.answer(writer, 200, {"data": [{"id": MODEL}]})
        if method != "POST" or path not in ("/v1/completions", "/v1/chat/completions"):
            return self.answer(writer, 404, {"detail": "Not Found"})
        self.times.append(asyncio.get_running_loop().time())
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            return await self.complete(json.loads(content), "chat" in path, writer)
        finally:
            self.open -= 1

    async def complete(self, body: dict, chat: bool, writer) -> bool:
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        refusal = self.refusal(body, prompt)
        if refusal:
            return self.answer(writer, *refusal)
        fault = "broken" if "poison" in prompt else self.fault()
        if fault == "busy":
            retry = {"Retry-After": self.settings.retry_after}
            return self.answer(writer, 429, {"error": {"message": "Slow down"}}, retry)
        await asyncio.sleep(self.settings.delay)
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "broken":
            return self.answer(writer, 500, {"error": "Internal error"})
        if fault == "drop":
            return False
        reply = json.dumps(self.reply(body, prompt, chat)).encode()
        if fault == "dribble":  # always something new to read, and never all
            self.answer(writer, 200, b"", length=3600)
            for _ in range(3600):
                writer.write(b" ")
                await asyncio.gather(writer.drain(), asyncio.sleep(0.05))
        if fault == "lost":  # generated, and never received
            return False
        if fault == "malformed":
            return self.answer(writer, 200, reply[: len(reply) // 2])
        if fault == "shapeless":
            return self.answer(writer, 200, {"object": "text_completion", "choices": []})
        if fault == "truncated":
            self.answer(writer, 200, reply, length=len(reply) + 10)
            await writer.drain()
            return False
        self.sent[f"{body.get('seed')}|{prompt}"] += 1
        return self.answer(writer, 200, reply)

    def refusal(self, body: dict, prompt: str) -> tuple[int, dict] | None:
        if body["model"] != MODEL:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if len(prompt) > 1000:
            return 400, {"message": "This model's maximum context length is 1000 tokens."}
        if self.settings.strict and "top_k" in body:
            return 400, {"error": {"message": "Unrecognized request argument supplied: top_k"}}
        return None

    def fault(self) -> str | None:
        scripted = next(self.script, None)
        if scripted:
            found = None if scripted == "ok" else scripted
        else:
            u = self.faults_rng.random()
            sums = itertools.accumulate(getattr(self.settings, name) for name in FAULTS)
            found = next((name for name, s in zip(FAULTS, sums, strict=True) if u < s), None)
        if found:
            self.faults[found] += 1
        return found

    def reply(self, body: dict, prompt: str, chat: bool) -> dict:
        self.drawn[f"{body.get('seed')}|{prompt}"] += 1
        rng = self.rng if self.settings.ignore_seeds else random.Random(f"{body['seed']}|{prompt}")
        ignored = {"stop": ()} if self.settings.stop == "ignored" else {}
        text, finish, stop, log_probs = draw(rng, prompt, body | ignored)
        tokens = list(text)
        if stop and self.settings.stop != "kept":
            text = text.removesuffix(stop)
        choice: dict = {"index": 0, "finish_reason": finish}
        if body.get("echo") and self.settings.echo:
            text, tokens = prompt + text, [*prompt, *tokens]
            log_probs = [None, *([-1.0] * (len(prompt) - 1)), *log_probs]
        if self.settings.stop == "reported":
            choice["stop_reason"] = stop
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if body.get("logprobs") and self.settings.logprobs == "text":
            choice["logprobs"] = {"tokens": tokens, "token_logprobs": log_probs}
        elif body.get("logprobs") and self.settings.logprobs == "chat":
            pairs = zip(tokens, log_probs, strict=True)
            content = [{"token": t, "bytes": [*t.encode()], "logprob": lp} for t, lp in pairs]
            choice["logprobs"] = {"content": content}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)}
        return {"model": MODEL, "choices": [choice], "usage": usage}

    def answer(self, writer, status: int, content, headers=None, length: int | None = None) -> bool:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        lines = [f"HTTP/1.1 {status} Said", "Content-Type: application/json"]
        lines += [f"Content-Length: {len(content) if length is None else length}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        return True

    def stats(self) -> dict:
        names = ("drawn", "sent", "faults", "most_open", "times")
        return {name: getattr(self, name) for name in names}


async def main(settings: argparse.Namespace) -> None:
    server = await asyncio.start_server(Server(settings).connection, "127.0.0.1", settings.port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# --- For the tests ------------------------------------------------------------------------------


class Running:
    def __init__(self, process: subprocess.Popen[str], port: int):
        self.process, self.port = process, port
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"

    def stats(self) -> dict:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.root}/stats", timeout=10) as reply:
            return json.load(reply)


@contextlib.contextmanager
def serving(**settings: object) -> Iterator[Running]:
    """Run a server in a process: any setting of `main`, or a fault with its chance."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = [sys.executable, "-I", __file__, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Running(process, int(process.stdout.readline()))
        finally:
            process.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default="")
    parser.add_argument("--stop", choices=["cut", "kept", "reported", "ignored"], default="cut")
    parser.add_argument("--logprobs", choices=["none", "text", "chat"], default="text")
    for flag in ("ignore-seeds", "strict", "echo"):
        parser.add_argument(f"--{flag}", type=lambda value: value == "True", default=False)
    for name in ("delay", *FAULTS):
        parser.add_argument(f"--{name}", type=float, default=0.0)
    parser.add_argument("--fault-seed", type=int, default=0)
    parser.add_argument("--script", default="")  # what happens to the first requests, in order
    parser.add_argument("--retry-after", default="0.05")
    asyncio.run(main(parser.parse_args()))
