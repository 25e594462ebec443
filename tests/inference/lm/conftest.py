"""The model file that tests of language models share, read once a process."""

from pathlib import Path

import pytest

from ppl.errors import UnsupportedError
from ppl.inference.lm.gguf import ModelFile, read_gguf
from ppl.inference.lm.llama import Llama
from ppl.inference.lm.smollm2 import smollm2
from ppl.inference.lm.tokenizer import GGUFVocabulary


@pytest.fixture(scope="session")
def model_file() -> Path:
    try:
        return smollm2()
    except UnsupportedError as error:
        pytest.skip(f"no weights: {error}")


@pytest.fixture(scope="session")
def gguf_file(model_file: Path) -> ModelFile:
    pytest.importorskip("gguf")
    return read_gguf(model_file)


@pytest.fixture(scope="session")
def smol_vocabulary(gguf_file: ModelFile) -> GGUFVocabulary:
    pytest.importorskip("tokenizers")
    return GGUFVocabulary(gguf_file.metadata)


@pytest.fixture(scope="session")
def smol(model_file: Path) -> Llama:
    pytest.importorskip("gguf")
    pytest.importorskip("tokenizers")
    return Llama.load(model_file)
