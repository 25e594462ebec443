"""The tokenizer of a model file against llama.cpp's, and chats."""

import importlib.util

import hypothesis
import pytest
from hypothesis import strategies

from ppl.errors import ArgumentError, UnsupportedError
from ppl.inference.lm import tokenizer
from ppl.inference.lm.gguf import ModelFile
from ppl.inference.lm.llama import Llama
from ppl.inference.lm.tokenizer import GGUFVocabulary, Markup
from ppl.inference.lm.vocabulary import Vocabulary

# What llama.cpp (llama-cpp-python 0.3.36) makes of texts that are hard to cut.
REFERENCE = [
    ("Hello, world!", [19556, 28, 905, 17]),
    ("  two  spaces \n\n\tand a tab", [216, 827, 216, 5600, 38028, 197, 397, 253, 10147]),
    ("1234567890", [33, 34, 35, 36, 37, 38, 39, 40, 41, 32]),
    (
        "3.14 Ⅷ ½ ٣٤٥",
        [35, 30, 33, 36, 216, 173, 223, 117, 216, 16738, 216, 164, 113, 164, 114, 164, 115],
    ),
    ("don't I'LL we\u2019ve", [12420, 982, 339, 23, 16421, 392, 417, 307]),
    (
        "naïve 日本語 हिन्",
        [3546, 46494, 17097, 241, 115, 40993, 179, 120, 248, 12335, 134, 27011, 30658, 16525],
    ),
    (
        "👩\u200d👩\u200d👧 🎉",
        [10813, 235, 119, 321, 231, 10813, 235, 119, 321, 231, 10813, 235, 117, 15107, 232, 227],
    ),
    ("x=1\r\ny = 22\n", [104, 45, 33, 201, 198, 105, 446, 216, 34, 34, 198]),
    ("\xa0\u3000\u200b\ufeff", [15442, 12109, 218, 321, 229, 186, 136, 140]),
    ("a\u0301 \ufb01 ÿ", [81, 151, 219, 40367, 5549, 140]),
    ("<|im_end|>\n<file_sep>", [44, 108, 306, 79, 486, 108, 46, 198, 44, 2153, 79, 29070, 46]),
    ("def f(self):\n        return 0", [1604, 275, 24, 771, 727, 448, 1003, 216, 32]),
]
MARKED = "<|im_start|>user\nHi 12<|im_end|>\n", [1, 4093, 198, 26843, 216, 33, 34, 2, 198]
ASKED = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(("text", "tokens"), REFERENCE)
def test_tokens_are_llama_cpps(
    smol_vocabulary: GGUFVocabulary, text: str, tokens: list[int]
) -> None:
    assert smol_vocabulary.encode(text) == tokens
    assert smol_vocabulary.decode(tokens) == text


def test_special_tokens_are_recognised_only_where_asked(smol_vocabulary: GGUFVocabulary) -> None:
    text, tokens = MARKED
    assert smol_vocabulary.encode(text, special=True) == tokens
    assert smol_vocabulary.encode(Markup(text)) == tokens
    assert smol_vocabulary.encode(Markup(text[:20]) + text[20:]) == tokens
    assert smol_vocabulary.encode(text) == smol_vocabulary.encode(Markup(text), special=False)
    assert set(smol_vocabulary.encode(text)).isdisjoint(smol_vocabulary.specials.values())
    assert smol_vocabulary.decode(tokens) == "user\nHi 12\n"  # special tokens spell nothing
    assert smol_vocabulary.end == tokens[-2]


@hypothesis.given(text=strategies.text(max_size=40))
def test_decoding_undoes_encoding(smol_vocabulary: GGUFVocabulary, text: str) -> None:
    try:
        tokens = smol_vocabulary.encode(text)
    except ArgumentError:
        tokens = None
    # No token spells these: six control characters, and the planes of Unicode that are not in use.
    strange = {4, 6, 19, 20, 22, 29} | set(range(0x40000, 0xC0000))
    assert (tokens is None) == any(ord(c) in strange for c in text)
    assert tokens is None or smol_vocabulary.decode(tokens) == text


def test_what_no_token_spells_is_refused(smol_vocabulary: GGUFVocabulary) -> None:
    with pytest.raises(ArgumentError, match="its tokens can spell"):
        smol_vocabulary.encode("a\x04b")


def test_a_chat_is_written_as_the_file_says(
    smol_vocabulary: GGUFVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    persona = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    begun = f"<|im_start|>system\n{persona}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert smol_vocabulary.chat(ASKED) == begun + "<|im_start|>assistant\n"
    assert smol_vocabulary.chat(ASKED, add_generation_prompt=False) == begun
    own = [{"role": "system", "content": "Be brief."}, *ASKED]
    text = smol_vocabulary.chat(own)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi")
    assert smol_vocabulary.encode(text)[0] == smol_vocabulary.begin
    pytest.importorskip("jinja2")  # which fills in the template itself
    conversations = [(own, True), (ASKED, False), ([], True)]
    ours = [smol_vocabulary.chat(*c) for c in conversations]
    monkeypatch.setattr(tokenizer, "CHATML", None)
    assert [smol_vocabulary.chat(*c) for c in conversations] == ours


def test_a_chat_that_cannot_be_written_is_refused(
    smol_vocabulary: GGUFVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArgumentError, match="needs a role and a content in each"):
        smol_vocabulary.chat([{"role": "user"}])
    with pytest.raises(UnsupportedError, match="the vocabulary of a model file"):
        Llama.random(Vocabulary(["a", None]), 0).chat(ASKED)
    monkeypatch.setattr(smol_vocabulary, "template", "{{ messages }}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="needs the package `jinja2`"):
        smol_vocabulary.chat(ASKED)
    monkeypatch.setattr(smol_vocabulary, "template", None)
    with pytest.raises(ArgumentError, match="without a chat template"):
        smol_vocabulary.chat(ASKED)


def test_tokenizers_of_another_kind_are_refused(gguf_file: ModelFile) -> None:
    for name, value in (("model", "llama"), ("pre", "deepseek-llm")):
        metadata = gguf_file.metadata | {f"tokenizer.ggml.{name}": value}
        with pytest.raises(UnsupportedError, match=f"got a file with the tokenizer .*{value}"):
            GGUFVocabulary(metadata)
