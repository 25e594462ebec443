"""LLaMPPL's Hugging Face back end, on the same weights and the same steps as `benchmarks.lm`.

Its models are Python classes whose steps await one token after the other; requests that come
together go through the network in one batch, and the keys and values of the prompt are kept. Those
of what particles wrote are not: each token reads its whole text after the prompt.

Needs `python -m pip install llamppl transformers torch`.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np


def llamppl_sampler(
    path: str, prompt: str, number: int, weigh: Callable[[np.ndarray], float]
) -> Callable[[int, int], Callable[[], Any]]:
    """Load the model once; from steps and tokens a step to what runs the particles.

    Args:
        path: of the GGUF file.
        prompt: what all texts begin with.
        number: of particles, and of requests in a batch.
        weigh: from a text's tokens, prompt included, to the weight of its last step.
    """
    import llamppl  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]
    from genlm.backend.llm import AsyncTransformer  # pyright: ignore[reportMissingImports]

    folder, file = os.path.split(path)
    transformers.utils.logging.disable_progress_bar()
    network = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    lm = llamppl.CachedCausalLM(AsyncTransformer(network, tokenizer, batch_size=number))
    lm.cache_kv(tokenizer.encode(prompt))
    context = llamppl.LMContext(lm, prompt)
    seeds = itertools.count()

    class Writer(llamppl.Model):
        def __init__(self, steps: int, tokens: int):
            super().__init__()
            self.context, self.left, self.tokens = context, steps, tokens

        async def step(self) -> None:
            for _ in range(self.tokens):
                await self.sample(self.context.next_token())
            self.score(math.log(weigh(np.asarray(self.context.tokens))))
            self.left -= 1
            if not self.left:
                self.finish()

    def made(steps: int, tokens: int) -> Callable[[], Any]:
        def run() -> Any:
            np.random.seed(next(seeds))
            particles = llamppl.smc_standard(
                Writer(steps, tokens), number, ess_threshold=1.0, resampling_method="systematic"
            )
            return [p.context.tokens for p in asyncio.run(particles)]

        return run

    return made
