"""Language-model steps: what a model says next is a draw, what a verifier says is a weight."""

from ppl.inference.lm.a_star import a_star
from ppl.inference.lm.annealing import annealed
from ppl.inference.lm.automaton import Automaton
from ppl.inference.lm.backend import LanguageModel
from ppl.inference.lm.beam import beam, dvts, rebase
from ppl.inference.lm.completions import Completion, Request
from ppl.inference.lm.context import Context
from ppl.inference.lm.grammars import grammar
from ppl.inference.lm.http import ServerError
from ppl.inference.lm.judge import Judge, judge
from ppl.inference.lm.llama import Llama
from ppl.inference.lm.next_token import NextToken
from ppl.inference.lm.patterns import regex
from ppl.inference.lm.reasoning import Answer, Reasoning, reasoning
from ppl.inference.lm.rejection import rejection
from ppl.inference.lm.remote import Remote
from ppl.inference.lm.report import Report, report
from ppl.inference.lm.select import best, vote
from ppl.inference.lm.server import OpenAI
from ppl.inference.lm.smollm2 import smollm2
from ppl.inference.lm.speculative import Speculation, speculative
from ppl.inference.lm.steering import steer
from ppl.inference.lm.steps import Step, condition, generate, observe, step, twist
from ppl.inference.lm.table import Table
from ppl.inference.lm.tempering import exchange, replicas, tempering
from ppl.inference.lm.text import Text
from ppl.inference.lm.tree import tree_sampling
from ppl.inference.lm.twists import Twist, learn_twist
from ppl.inference.lm.vocabulary import Vocabulary

__all__ = [
    "Answer",
    "Automaton",
    "Completion",
    "Context",
    "Judge",
    "LanguageModel",
    "Llama",
    "NextToken",
    "OpenAI",
    "Reasoning",
    "Remote",
    "Report",
    "Request",
    "ServerError",
    "Speculation",
    "Step",
    "Table",
    "Text",
    "Twist",
    "Vocabulary",
    "a_star",
    "annealed",
    "beam",
    "best",
    "condition",
    "dvts",
    "exchange",
    "generate",
    "grammar",
    "judge",
    "learn_twist",
    "observe",
    "reasoning",
    "rebase",
    "regex",
    "rejection",
    "replicas",
    "report",
    "smollm2",
    "speculative",
    "steer",
    "step",
    "tempering",
    "tree_sampling",
    "twist",
    "vote",
]
