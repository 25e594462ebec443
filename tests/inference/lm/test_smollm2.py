"""SmolLM2-135M as it is decoded here, against llama.cpp on the same file."""

import jax
import jax.numpy as jnp
import numpy as np

from ppl.inference.lm.llama import Llama

MOON = "In 1969, the first humans landed on the Moon. The mission, Apollo 11, was"
# From llama.cpp (llama-cpp-python 0.3.36, two threads): after so many tokens of the text, the five
# likeliest tokens and their log-probabilities.
REFERENCE = {
    4: ([41, 40, 39, 38, 34], [-1.214, -1.588, -2.077, -2.685, -2.729]),
    9: ([655, 1603, 1205, 29, 1547], [-2.837, -3.564, -3.678, -3.754, -3.81]),
    13: ([8872, 6783, 3818, 5432, 3925], [-0.611, -1.339, -3.481, -4.219, -4.38]),
    17: ([436, 28, 288, 7569, 15298], [-1.375, -2.522, -2.74, -2.756, -2.967]),
    22: ([28, 365, 30, 284, 506], [-0.057, -4.928, -5.264, -5.286, -5.615]),
    24: ([253, 260, 7876, 2842, 288], [-1.216, -2.01, -2.118, -3.094, -3.367]),
}
# The divergence from llama.cpp, which rounds what it multiplies to eight bits, is at most this on
# average: 0.0041 was measured over 228 positions of seven texts, with a standard error of 0.0005.
DIVERGENCE = 0.01


def test_the_law_is_llama_cpps(smol: Llama) -> None:
    tokens, divergences = smol.vocabulary.encode(MOON), []
    for length, (likely, log_probabilities) in REFERENCE.items():
        law = jax.nn.softmax(smol.logits(smol.start(tokens[:length], 16)))
        # Of six events: one of the five, or another token. It is less than that of all tokens.
        theirs, ours = np.exp(log_probabilities), np.asarray(law, float)[likely]
        theirs, ours = (np.append(p, 1 - p.sum()) for p in (theirs, ours))
        divergences.append((theirs * np.log(theirs / ours)).sum())
    assert np.mean(divergences) < DIVERGENCE


def test_decoding_is_reading(smol: Llama) -> None:
    tokens = smol.vocabulary.encode(MOON)
    smol.reset_count()

    @jax.jit
    def decode(smol: Llama, state: object) -> object:
        def one(state, token):
            return smol.extend(state, token, True), None

        return jax.lax.scan(one, state, jnp.asarray(tokens[20:24]))[0]

    state = decode(smol, smol.start(tokens[:20], 16))
    assert smol.tokens_decoded == 4
    whole = smol.logits(smol.start(tokens, 16))
    # Single precision, thirty layers: 3e-5 was measured on logits of size twenty.
    np.testing.assert_allclose(smol.logits(state), whole, rtol=0, atol=3e-4)
