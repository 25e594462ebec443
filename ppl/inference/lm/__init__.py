"""Language-model steps: what a model says next is a draw, what a verifier says is a weight."""

from ppl.inference.lm.automaton import Automaton
from ppl.inference.lm.backend import LanguageModel
from ppl.inference.lm.context import Context
from ppl.inference.lm.judge import Judge, judge
from ppl.inference.lm.next_token import NextToken
from ppl.inference.lm.patterns import regex
from ppl.inference.lm.reasoning import Answer, Reasoning, reasoning
from ppl.inference.lm.select import best, vote
from ppl.inference.lm.steps import Step, condition, generate, observe, step, twist
from ppl.inference.lm.table import Table
from ppl.inference.lm.text import Text
from ppl.inference.lm.vocabulary import Vocabulary

__all__ = [
    "Answer",
    "Automaton",
    "Context",
    "Judge",
    "LanguageModel",
    "NextToken",
    "Reasoning",
    "Step",
    "Table",
    "Text",
    "Vocabulary",
    "best",
    "condition",
    "generate",
    "judge",
    "observe",
    "reasoning",
    "regex",
    "step",
    "twist",
    "vote",
]
