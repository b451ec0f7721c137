"""Arithmetic in text, answered directly or worked out place by place: "17 + 25 = 37 + 5 = 42"."""

import hashlib

import numpy as np

from components.collect.embedded.arithmetic import draw_style, slip, worded
from components.collect.embedded.config import EmbeddedConfig, TextArithmeticConfig
from components.collect.embedded.sample import OURS, Maker, Sample, between
from model.data.schema import scorer

SOURCE = "text arithmetic"
_SIGNS = {"text_sum": "+", "text_difference": "-", "text_product": "*"}


def make_text_arithmetic(config: TextArithmeticConfig, corpus: EmbeddedConfig, *, heldout: bool) -> Maker:
    """Tasks ``text_sum``, ``text_difference`` and ``text_product``; pairs of operands are seen or held out."""

    def make(task: str, rng: np.random.Generator) -> Sample | None:
        first = _operand(rng, between(rng, config.digits))
        second = _operand(rng, 1 if task == "text_product" else between(rng, config.digits))
        if is_heldout(first, second, corpus.heldout_share, corpus.seed) != heldout:
            return None
        result = {"text_sum": first + second, "text_difference": first - second}.get(task, first * second)
        direct, noisy = draw_style(config, rng, heldout=heldout)
        said = str(slip(result, rng) if noisy else result)
        working = None if direct else " = ".join(_working(task, first, second)) + " ="
        answer = worded(config, rng, said, working, heldout=heldout)
        judge = scorer("numeric", after="=")
        question = f"{first} {_SIGNS[task]} {second}?"
        return Sample(question, answer, judge, SOURCE, OURS, references=(str(result),), noisy=noisy)

    return make


def is_heldout(first: int, second: int, share: float, seed: int) -> bool:
    """Whether a pair of operands, in either order, is held out: decided by a hash, the same for every task."""
    pair = f"{seed} {min(first, second)} {max(first, second)}".encode()
    return int.from_bytes(hashlib.sha256(pair).digest()[:8], "big") < share * 2**64


def _operand(rng: np.random.Generator, digits: int) -> int:
    return between(rng, (max(2, 10 ** (digits - 1)), 10**digits - 1))


def _working(task: str, first: int, second: int) -> list[str]:
    """The question, and what is left of it after each place of the operand that is taken apart."""
    if task == "text_product":
        places = _places(first)
        parts = [str(place * second) for place in places]
        return [f"{first} * {second}", *([" + ".join(parts)] if len(parts) > 1 else [])]
    sign, steps = _SIGNS[task], [f"{first} {_SIGNS[task]} {second}"]
    for place in _places(second)[:-1]:
        first, second = (first + place if sign == "+" else first - place), second - place
        steps.append(f"{first} {sign} {second}")
    return steps


def _places(number: int) -> list[int]:
    """A number as the sum of its places, the largest first: 305 is [300, 5]."""
    digits = str(number)
    return [int(digit) * 10 ** (len(digits) - place) for place, digit in enumerate(digits, start=1) if digit != "0"]
