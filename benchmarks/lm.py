"""Particles over a language model's steps: tokens a second, and what resampling costs.

`python -m benchmarks.lm [--particles 1 8 32 128] [--sides ...] [--steps 4] [--tokens 16]` runs
`ppl.smc` over steps of a fixed length by SmolLM2-135M-Instruct, after a prompt of about 200 tokens,
weighed after each step by a number made from its tokens, and resampled after every step. By turns,
in one process:

- ppl;
- again: the same model, reading everything again at every step, as callers of a server do that
  keeps no state between requests (its-hub): all particles in one batch, prompt and text so far,
  then the step. It draws by the same code;
- LLaMPPL with its Hugging Face back end, on the same weights, where it is installed.

Tokens a second are those of all particles together, prompts not counted. What resampling costs is
seen by more rounds against ppl without it. With llama-cpp-python installed, its speed for one text
is printed too.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ppl
from benchmarks.lm_peers import llamppl_sampler
from benchmarks.smc_peers import installed
from benchmarks.timing import alternate, human, table

PROMPT = (
    "The lighthouse keeper wrote in his diary every evening, whatever the weather was. "
    "He noted the ships that had passed, the birds that had rested on the railing, and how much "
    "oil the lamp had used. In winter, when no ship came for weeks, he wrote about the books that "
    "he read and about the letters that he would have liked to send. "
) * 3


def judged(tokens: Any) -> Any:
    """Judge a text by its tokens, as unevenly as a real verifier would."""
    return 0.05 + 0.9 * ((tokens * (1 + np.arange(len(tokens)))).sum() % 97) / 96


def verifier(context: Any) -> Any:
    """Judge what was said."""
    return judged(context.tokens)


def task_of(context: Any, steps: int, tokens: int) -> Any:
    """Steps of a fixed length: nothing stops them, and the end of the text is not allowed."""
    return ppl.lm.reasoning(
        context,
        verifier,
        num_steps=steps,
        stop=None,
        max_tokens=tokens,
        proposal=functools.partial(_endless, context.vocabulary.end),
    )


def _endless(end: int, logits: Any) -> Any:
    return logits.at[end].set(-jnp.inf)


def ours(model: Any, number: int, steps: int, tokens: int, threshold: float) -> Callable[[], Any]:
    """Run particles; texts are forked where they are resampled."""
    context = model.prompt(PROMPT, room=steps * tokens)
    program = ppl.smc(task_of(context, steps, tokens).program, number, ess_threshold=threshold)
    return lambda: ppl.run(program, 0).values.text.tokens


def again(model: Any, number: int, steps: int, tokens: int) -> Callable[[], Any]:
    """Read prompt and text anew at every step, for all particles in one batch."""
    prompt = model.vocabulary.encode(PROMPT)
    first = model.prompt(prompt[:1], room=len(prompt) + steps * tokens)
    size = len(prompt) - 1 + steps * tokens

    @functools.partial(jax.jit, static_argnums=0)
    def step(length: int, model: Any, state: Any, texts: Any, keys: Any) -> Any:
        """One request each: read `length` tokens, then draw."""

        def one(text: Any, key: Any) -> Any:
            _, after = model.score(state, text[:length], jnp.asarray(length))

            def draw(carry: Any, key: Any) -> Any:
                logits = _endless(model.vocabulary.end, model.logits(carry))
                token = ppl.lm.NextToken(logits).sample(key)
                return model.extend(carry, token, jnp.asarray(True)), token

            return jax.lax.scan(draw, after, jax.random.split(key, tokens))[1]

        return jax.vmap(one)(texts, keys)

    def run() -> Any:
        texts = jnp.zeros((number, size), int).at[:, : len(prompt) - 1].set(jnp.array(prompt[1:]))
        key, length = jax.random.key(0), len(prompt) - 1
        for i in range(steps):
            keys = jax.random.split(jax.random.fold_in(key, i), number)
            drawn = step(length, model, first.state, texts, keys)
            texts = texts.at[:, length : length + tokens].set(drawn)
            weights = jax.vmap(judged)(texts)
            chosen = ppl.distributions.SystematicResampling(jnp.log(weights)).sample(keys[0])
            texts, length = texts[chosen], length + tokens
        return texts

    return run


def llama_cpp(path: str, tokens: int) -> float:
    """Give the tokens a second of llama.cpp, one text."""
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

    model = Llama(path, n_ctx=1024, verbose=False)
    model.create_completion(PROMPT, max_tokens=2)
    began = time.perf_counter()
    made = model.create_completion(PROMPT, max_tokens=tokens, temperature=1.0)
    return made["usage"]["completion_tokens"] / (time.perf_counter() - began)


SIDES = "ppl", "again", "LLaMPPL"
HEADERS = "particles", "side", "cold", "warm s", "tokens/s", "ppl over it", "range"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[*SIDES])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=15, help="rounds with and without resampling")
    options = parser.parse_args()
    path = ppl.lm.smollm2()
    model = ppl.lm.Llama.load(path)
    needs = "llamppl transformers torch"
    sides = [s for s in options.sides if s != "LLaMPPL" or installed("llamppl", needs)]
    print(f"{options.steps} steps of {options.tokens} tokens, {options.rounds} rounds by turns")
    for number in options.particles:
        sizes = (number, options.steps, options.tokens)
        first = ours(model, *sizes, threshold=1.0)
        made = {"ppl": first}
        if "again" in sides:
            made["again"] = again(model, *sizes)
        if "LLaMPPL" in sides:
            made["LLaMPPL"] = llamppl_sampler(str(path), PROMPT, number, judged)(*sizes[1:])
        cold = []
        for run in made.values():
            began = time.perf_counter()
            jax.block_until_ready(run())
            cold.append(time.perf_counter() - began)
        if len(made) > 1:
            found = alternate(*made.values(), rounds=options.rounds, seconds=0.0, warmup=0)
            print(table(HEADERS, rows(number, [*made], cold, found, sizes)), flush=True)
        if options.pairs:
            never = ours(model, *sizes, threshold=0.0)
            found = alternate(first, never, rounds=options.pairs, seconds=0.0, warmup=1)
            cost = 100 * (1 - 1 / np.sort(found.ratios(1)))
            low, middle, high = np.quantile(cost, [0.25, 0.5, 0.75])
            print(
                f"{number} particles: {number * sizes[1] * sizes[2] / found.median(0):.0f} "
                f"tokens/s; resampling takes {middle:.1f} % of the time (quartiles of "
                f"{options.pairs} rounds {low:.1f} to {high:.1f}); of the shortest times "
                f"{100 * (1 - 1 / found.best(1)):.1f} %\n",
                flush=True,
            )
    if installed("llama_cpp", "llama-cpp-python"):
        print(f"llama.cpp, one text: {llama_cpp(str(path), 128):.0f} tokens/s")


def rows(
    number: int, sides: Sequence[str], cold: Sequence[float], found: Any, sizes: tuple[int, ...]
) -> list[tuple[str, ...]]:
    """Lay out what came out, a row for each side."""
    drawn, lines = sizes[0] * sizes[1] * sizes[2], []
    for k, side in enumerate(sides):
        line = (f"{number}", side, human(cold[k]), human(found.median(k)))
        line += (f"{drawn / found.median(k):.0f}",)
        if k:
            times = 1 / found.ratios(k)
            line += (f"{np.median(times):.2f}", f"{times.min():.2f} to {times.max():.2f}")
        else:
            line += ("", "")
        lines.append(line)
    return lines


if __name__ == "__main__":
    main()
