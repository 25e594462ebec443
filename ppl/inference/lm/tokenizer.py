"""Tokenizers of model files: byte pairs, special tokens, and the form of a chat."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from ppl.errors import ArgumentError, UnsupportedError, message
from ppl.inference.lm.gguf import need
from ppl.inference.lm.vocabulary import Vocabulary

# How a text is cut into words before pairs are merged, by what the file calls it. The expressions
# are those of the tokenizers that models were trained with; digits count one by one in SmolLM's.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = {"smollm": (r"\p{N}", GPT2), "gpt-2": (GPT2,), "llama-bpe": (LLAMA3,)}

# ChatML as SmolLM2's file has it: the one template that is filled in without Jinja.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PERSONA = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
NORMAL, USER_DEFINED = 1, 4  # of the kinds of tokens; the others are special


class Markup(str):
    """A text in which the names of special tokens mean these tokens."""

    __slots__ = ()

    def __add__(self, other: str) -> Markup:
        return Markup(str(self) + other)


class GGUFVocabulary(Vocabulary):
    """The tokens of a model file.

    Args:
        metadata: what the file says of itself.

    Raises:
        UnsupportedError: the tokenizer is of another kind than byte pairs, or `tokenizers` is not
            installed.
    """

    def __init__(self, metadata: Mapping[str, Any]):
        kind = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
        if kind[0] != "gpt2" or kind[1] not in WORDS:
            raise UnsupportedError(
                message(
                    f"Llama.load got a file with the tokenizer {kind[0]!r}, words of {kind[1]!r}",
                    needs=f"'gpt2' with one of {', '.join(WORDS)}",
                    why="others cut a text differently",
                    fix="ppl.lm.smollm2() gives the path of a file that has it",
                )
            )
        names = metadata["tokenizer.ggml.tokens"]
        kinds = metadata["tokenizer.ggml.token_type"]
        end = metadata.get("tokenizer.ggml.eos_token_id")
        super().__init__([_spelling(n, k) for n, k in zip(names, kinds, strict=True)], end)
        self.specials = {n: i for i, n in enumerate(names) if self.pieces[i] is None}
        self.begin = int(metadata.get("tokenizer.ggml.bos_token_id", self.end))
        self.adds_begin = bool(metadata.get("tokenizer.ggml.add_bos_token", False))
        self._unspelt = frozenset(range(256)).difference(
            p[0] for p in self.pieces if p and len(p) == 1
        )
        self.template = metadata.get("tokenizer.chat_template")
        always = [n for n, k in zip(names, kinds, strict=True) if k == USER_DEFINED]
        merges = metadata["tokenizer.ggml.merges"]
        self._plain = _tokenizer(names, merges, kind[1], always)
        self._marked = _tokenizer(names, merges, kind[1], [*always, *self.specials])

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """Write a text in tokens, as the model was trained to read it.

        Args:
            text: any text.
            special: whether the names of special tokens, as "<|im_end|>", mean these tokens; if
                None, they do in what `chat` gives.

        Raises:
            ArgumentError: a byte of the text has no token. (llama.cpp leaves it out.)
        """
        unspelt = self._unspelt.intersection(text.encode())
        if unspelt:
            raise ArgumentError(
                message(
                    f"the vocabulary got {text!r}, with the bytes {bytes(sorted(unspelt))!r}",
                    needs="a text that its tokens can spell",
                    why="the model was trained without these characters",
                    fix="leave them out",
                )
            )
        special = isinstance(text, Markup) if special is None else special
        tokenizer = self._marked if special else self._plain
        return tokenizer.encode(str(text), add_special_tokens=False).ids

    def chat(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> Markup:
        """Write a conversation as one text, in the form that the model file prescribes.

        **Meaning.** The text is a prompt whose special tokens `encode` recognises. A message that
        contains the name of one is not told apart from it.

        Args:
            messages: each with a "role" ("system", "user" or "assistant") and "content".
            add_generation_prompt: begin the assistant's answer.

        Raises:
            ArgumentError: the file has no such form, or a message lacks a part.
            UnsupportedError: filling it in takes the package `jinja2`, which is not installed.
        """
        if self.template is None or not all({"role", "content"} <= set(m) for m in messages):
            raise ArgumentError(
                message(
                    f"chat got {list(messages)!r}"
                    + (" for a model without a chat template" if self.template is None else ""),
                    needs="a role and a content in each, and a model that was trained on chats",
                    fix='chat([{"role": "user", "content": "Hello"}])',
                )
            )
        if self.template != CHATML:
            return Markup(self._fill(self.template, messages, add_generation_prompt))
        messages = list(messages)
        if messages and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": PERSONA})
        turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
        return Markup("".join(turns) + "<|im_start|>assistant\n" * bool(add_generation_prompt))

    def _fill(self, template: str, messages: Any, add_generation_prompt: bool) -> str:
        if importlib.util.find_spec("jinja2") is None:
            raise UnsupportedError(
                message(
                    f"chat got a template of {len(template)} characters that is not SmolLM2's",
                    needs="the package `jinja2` to fill it in",
                    fix="python -m pip install jinja2, or write the prompt as a string and encode "
                    "it with special=True",
                )
            )
        sandbox = importlib.import_module("jinja2.sandbox")
        names = {number: name for name, number in self.specials.items()}
        environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(template).render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=names.get(self.begin, ""),
            eos_token=names[self.end],
        )


def _letters() -> dict[str, int]:
    """Give the byte that each letter of a byte pair's name stands for (Radford et al. 2019)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTES = _letters()


def _spelling(name: str, kind: int) -> bytes | None:
    if kind == USER_DEFINED:
        return name.encode()
    return bytes(_BYTES[letter] for letter in name) if kind == NORMAL else None


def _tokenizer(names: list[str], merges: list[str], words: str, added: list[str]) -> Any:
    need("tokenizers")
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    # A word of Llama 3's that is a token is one, whether or not merges lead to it.
    model = models.BPE(
        {n: i for i, n in enumerate(names)}, pairs, ignore_merges=words == "llama-bpe"
    )
    tokenizer = Tokenizer(model)
    cuts = [pre_tokenizers.Split(Regex(w), "isolated") for w in WORDS[words]]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, letters])
    tokenizer.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in added])
    return tokenizer
