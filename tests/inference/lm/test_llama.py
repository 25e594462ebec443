"""A small Llama with random weights: against NumPy, and every way of batching against one text."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl.errors import ArgumentError
from ppl.inference.lm import attention
from ppl.inference.lm.attention import CHUNK, Cache
from ppl.inference.lm.decoder import forward
from ppl.inference.lm.llama import Llama
from ppl.inference.lm.llama_state import LlamaState, _prefill
from ppl.inference.lm.vocabulary import Vocabulary

VOCABULARY = Vocabulary([*"abcdefghijklmnopqrstuvwxyz", None])
SIZE, ROOM = len(VOCABULARY), 3 * CHUNK
TOKENS = np.random.default_rng(0).integers(0, SIZE, 70).tolist()


@pytest.fixture
def lm(x64: None) -> Llama:
    return Llama.random(VOCABULARY, 1)


def in_numpy(lm: Llama, tokens: list[int]) -> np.ndarray:
    """Give the logits after every token, written as the papers have it: one head at a time."""
    c, w = lm.config, jax.tree.map(np.asarray, lm.weights)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.epsilon) * scale

    def turn(x):  # pairs as complex numbers, times e^(i angle)
        pairs = x[:, : c.size // 2] + 1j * x[:, c.size // 2 :]
        angles = np.arange(len(x))[:, None] * c.theta ** (-np.arange(0, c.size, 2) / c.size)
        pairs = pairs * np.exp(1j * angles)
        return np.concatenate([pairs.real, pairs.imag], -1)

    def softmax(s):
        e = np.exp(s - s.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    x = w.embedding[tokens]
    later = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
    for layer in w.layers:
        parts = norm(x, layer.attention_norm) @ layer.qkv.T
        heads = np.split(parts, parts.shape[1] // c.size, axis=1)
        queries, keys = heads[: c.heads], heads[c.heads : c.heads + c.kv_heads]
        values, serves = heads[c.heads + c.kv_heads :], c.heads // c.kv_heads
        mixed = [
            softmax(turn(q) @ turn(keys[i // serves]).T / c.size**0.5 + later) @ values[i // serves]
            for i, q in enumerate(queries)
        ]
        x = x + np.concatenate(mixed, -1) @ layer.mix.T
        gate, up = np.split(norm(x, layer.forward_norm) @ layer.gate_up.T, 2, axis=1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer.down.T
    return norm(x, w.norm) @ w.embedding.T


def grow(lm: Llama, state: LlamaState, tokens: list[int]) -> LlamaState:
    for token in tokens:
        state = extend(lm, state, token)
    return state


@jax.jit
def extend(lm: Llama, state: LlamaState, token: jax.Array) -> LlamaState:
    return lm.extend(state, token, True)


@jax.jit
def extend_lanes(lm: Llama, state: LlamaState, token: jax.Array, active: jax.Array) -> LlamaState:
    return jax.vmap(lm.extend, (OWN, 0, 0), OWN)(state, token, active)


def lanes(state: LlamaState, number: int) -> LlamaState:
    """Make many texts of one, which share the prompt."""
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (number, *x.shape)), state)
    return LlamaState(state.prompt, many.suffix, many.hidden)


OWN = LlamaState(None, 0, 0)  # the axes of texts that share a prompt
ALL = jnp.ones(3, bool)


def close(a: object, b: object) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-10), a, b)


def same(a: object, b: object) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("prompt", [1, 31, 32, 33, 70])
def test_logits_are_those_of_the_formulas(lm: Llama, prompt: int) -> None:
    truth = in_numpy(lm, TOKENS)
    close(lm.logits(lm.start(TOKENS[:prompt], ROOM)), truth[prompt - 1])


@pytest.mark.parametrize("prompt", [1, 30])
def test_one_token_at_a_time_is_all_at_once(lm: Llama, prompt: int) -> None:
    truth, state = in_numpy(lm, TOKENS), lm.start(TOKENS[:prompt], ROOM)
    for place in range(prompt, prompt + 2 * CHUNK + 2):  # across chunks of the cache
        state = grow(lm, state, TOKENS[place : place + 1])
        close(lm.logits(state), truth[place])


def test_one_token_at_a_time_is_all_at_once_in_single_precision() -> None:
    lm = Llama.random(VOCABULARY, 1, dtype=jnp.float32)
    one = grow(lm, lm.start(TOKENS[:30], ROOM), TOKENS[30:40])
    np.testing.assert_allclose(
        lm.logits(one), lm.logits(lm.start(TOKENS[:40], ROOM)), rtol=0, atol=1e-5
    )


def test_a_long_prompt_is_read_in_parts(lm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = jnp.asarray(TOKENS[:64])[None, None]
    whole = forward(lm.config, lm.weights, tokens)
    monkeypatch.setattr(attention, "BLOCK", 16)
    parts = jax.jit(lambda lm, tokens: forward.__wrapped__(lm.config, lm.weights, tokens))
    close(parts(lm, tokens), whole)


@pytest.mark.parametrize("length", [0, 1, 5, 20])
def test_score_is_extend_and_logits(lm: Llama, length: int) -> None:
    state, tokens = grow(lm, lm.start(TOKENS[:9], ROOM), TOKENS[9:15]), TOKENS[15:35]
    each, after = jax.jit(lambda *a: lm.score(*a))(state, jnp.asarray(tokens), length)
    truth = in_numpy(lm, TOKENS[:35])
    truth = truth - np.logaddexp.reduce(truth, -1, keepdims=True)
    close(each[:length], [truth[14 + i, t] for i, t in enumerate(tokens[:length])])
    same(each[length:], jnp.zeros(20 - length))
    close(after, grow(lm, state, tokens[:length]))
    assert lm.score(state, jnp.asarray([]), 0)[0].shape == (0,)


def test_lanes_are_single_texts(lm: Llama) -> None:
    state = grow(lm, lm.start(TOKENS[:40], ROOM), TOKENS[40:45])
    tokens = [[3, 1, 4], [1, 5, 9], [2, 6, 5]]
    many = lanes(state, 3)
    for column in jnp.asarray(tokens).T:
        many = extend_lanes(lm, many, column, ALL)
    for row, line in enumerate(tokens):
        alone = grow(lm, state, line)
        close(jax.tree.map(lambda x, row=row: x[row], (many.suffix, many.hidden)),
              (alone.suffix, alone.hidden))  # fmt: skip


def test_score_has_lanes(lm: Llama) -> None:
    state, tokens = lanes(lm.start(TOKENS[:40], ROOM), 3), jnp.asarray(TOKENS[40:58]).reshape(3, 6)
    lengths = jnp.asarray([6, 0, 4])
    score = jax.jit(lambda *a: lm.score(*a))
    each, after = jax.vmap(score, (OWN, 0, 0), (0, OWN))(state, tokens, lengths)
    for row in range(3):
        alone = score(lm.start(TOKENS[:40], ROOM), tokens[row], lengths[row])
        close((each[row], after.hidden[row], after.suffix.keys[row]),
              (alone[0], alone[1].hidden, alone[1].suffix.keys))  # fmt: skip


def test_nested_lanes_prompts_and_models(lm: Llama) -> None:
    models = [lm, Llama.random(VOCABULARY, 2)]
    prompts = [TOKENS[:20], TOKENS[20:32]]
    tokens = jnp.arange(12).reshape(2, 2, 3)  # model, prompt, lane

    def stack(trees):
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    starts = stack([stack([m.start(p, CHUNK) for p in prompts]) for m in models])
    both = stack(models)

    def run(lm, state, token):
        state = lm.extend(state, token, True)
        return lm.logits(lm.extend(state, token + 1, True))

    over_lanes = jax.vmap(run, (None, None, 0))
    over_prompts = jax.vmap(over_lanes, (None, 0, 0))
    got = jax.jit(jax.vmap(over_prompts))(both, starts, tokens)
    # One prompt under two axes; and texts that have their own prompt inside, one outside.
    alike = jax.jit(jax.vmap(over_lanes, (None, None, 0)))(
        lm, jax.tree.map(lambda x: x[0, 0], starts), tokens[0]
    )
    inside = jax.jit(jax.vmap(jax.vmap(run, (None, 0, 0)), (None, None, 0)))(
        lm, jax.tree.map(lambda x: x[0], starts), tokens[0].T
    )
    for m, p, i in np.ndindex(2, 2, 3):
        token = int(tokens[m, p, i])
        close(got[m, p, i], in_numpy(models[m], [*prompts[p], token, token + 1])[-1])
    for p, i in np.ndindex(2, 3):
        token = int(tokens[0, p, i])
        close(alike[p, i], in_numpy(lm, [*prompts[0], token, token + 1])[-1])
        close(inside[i, p], got[0, p, i])


def test_a_fork_is_what_reading_again_gives(lm: Llama) -> None:
    many = extend_lanes(lm, lanes(lm.start(TOKENS[:8], ROOM), 3), jnp.arange(3), ALL)
    ancestors = jnp.asarray([2, 2, 0])
    forked = jax.tree.map(lambda x: x[ancestors], (many.suffix, many.hidden))
    forked = LlamaState(many.prompt, *forked)
    many = extend_lanes(lm, forked, jnp.asarray([5, 6, 7]), ALL)
    for row, line in enumerate([[2, 5], [2, 6], [0, 7]]):
        close(lm._logits(many.hidden[row]), in_numpy(lm, [*TOKENS[:8], *line])[-1])


@pytest.mark.parametrize("active", [[True, False, True], [False, False, False]])
def test_inactive_lanes_stay_as_they_are(lm: Llama, active: list[bool]) -> None:
    before = lanes(grow(lm, lm.start(TOKENS[:8], ROOM), [4, 4]), 3)
    mask = jnp.asarray(active)
    after = extend_lanes(lm, before, jnp.asarray([1, 2, 3]), mask)
    for row, moves in enumerate(active):
        if not moves:
            same(*(jax.tree.map(lambda x, row=row: x[row], (s.suffix, s.hidden))
                   for s in (before, after)))  # fmt: skip
    assert after.position.tolist() == [2 + a for a in active]


def test_what_pads_a_cache_is_never_seen(lm: Llama) -> None:
    state = grow(lm, lm.start(TOKENS[:20], ROOM), TOKENS[20:25])

    def soil(cache: Cache) -> Cache:
        padding = (jnp.arange(cache.keys.shape[2]) >= cache.length)[:, None]
        return Cache(*(jnp.where(padding, 1e3, x) for x in cache[:2]), cache.length)

    dirty = LlamaState(soil(state.prompt), soil(state.suffix), state.hidden)
    same(grow(lm, dirty, [7]).hidden, grow(lm, state, [7]).hidden)


def test_a_full_cache_says_so(lm: Llama) -> None:
    state = grow(lm, lm.start(TOKENS[:5], CHUNK), TOKENS[:CHUNK])
    assert np.isfinite(lm.logits(state)).all()
    assert np.isnan(lm.logits(grow(lm, state, [1]))).all()


def test_similar_prompts_share_compiled_code(lm: Llama) -> None:
    lm.start(TOKENS[:33], ROOM)
    compiled = _prefill._cache_size()
    lm.start(TOKENS[:64], ROOM - 1)
    Llama.random(VOCABULARY, 3).start(TOKENS[:40], ROOM)  # of the same structure
    assert _prefill._cache_size() == compiled


@pytest.mark.parametrize("constant", [True, False])
def test_a_scan_writes_in_place(lm: Llama, constant: bool) -> None:
    state = lm.start(TOKENS[:5], ROOM)

    def run(suffix: Cache, hidden: jax.Array, active: jax.Array) -> Cache:
        def one(carry, moves):
            def extend(suffix, hidden, moves):
                now = LlamaState(state.prompt, suffix, hidden)
                after = lm.extend(now, lm.logits(now).argmax(), True if constant else moves)
                return after.suffix, after.hidden

            return jax.vmap(extend)(*carry, moves), None

        return jax.lax.scan(one, (suffix, hidden), active)[0][0]

    many = lanes(state, 3)
    text = jax.jit(run).lower(many.suffix, many.hidden, jnp.ones((6, 3), bool)).compile().as_text()
    inside = text[: text.index("\nENTRY ")]
    shape = re.escape(",".join(map(str, many.suffix.keys.shape)))
    assert re.search(rf"f64\[{shape}\]", inside)
    assert not re.findall(rf"= f64\[{shape}\]\S* copy\(", inside)


def test_tokens_are_counted_where_they_count(lm: Llama) -> None:
    other = Llama.random(VOCABULARY, 2)
    state, active = lanes(lm.start(TOKENS[:5], ROOM), 3), jnp.asarray([True, False, True])
    extend_lanes(lm, state, jnp.arange(3), active)
    compiled = extend_lanes._cache_size()
    extend_lanes(lm, state, jnp.arange(3), active & False)
    extend_lanes(other, state, jnp.arange(3), active | True)
    assert extend_lanes._cache_size() == compiled  # equal modules share compiled code
    assert (lm.tokens_decoded, other.tokens_decoded) == (2, 3)
    lm.score(lm.start(TOKENS[:5], ROOM), jnp.arange(6), 4)
    assert lm.tokens_decoded == 6
    lm.reset_count()
    assert (lm.tokens_decoded, other.tokens_decoded) == (0, 3)


def test_an_empty_prompt_reads_the_beginning(lm: Llama) -> None:
    same(lm.logits(lm.start([], ROOM)), lm.logits(lm.start([VOCABULARY.end], ROOM)))


def test_what_does_not_fit_is_refused(lm: Llama) -> None:
    with pytest.raises(ArgumentError, match="trained to read no more"):
        lm.start(TOKENS, lm.config.context - 69)
    with pytest.raises(ArgumentError, match="heads of an even size"):
        Llama.random(VOCABULARY, 0, width=30)


def test_half_precision_is_near(lm: Llama) -> None:
    half = eqx.tree_at(
        lambda m: m.weights, lm, jax.tree.map(lambda x: x.astype(jnp.bfloat16), lm.weights)
    )
    logits = half.logits(grow(half, half.start(TOKENS[:20], ROOM), TOKENS[20:24]))
    assert logits.dtype == jnp.float32
    # Eight bits of mantissa: an error of a few hundredths, of logits of size one.
    assert np.abs(logits - in_numpy(lm, TOKENS[:24])[-1]).max() < 0.1
