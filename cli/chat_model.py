"""Chat with a model directory, in this process; the best of several answers by a critic. Imports torch."""

import sys
from pathlib import Path

import torch

from cli.conversation import Conversation, Manner
from model.critic.critic import Critic, best_of, load_critic
from model.data.errors import InputError
from model.data.schema import Row
from model.data.thinking import THINKING_TEMPERATURE, THINKING_TOP_P
from model.families.generation import Prompt, decode
from model.families.opening import load_network, load_processor
from model.training.rollout import NetworkSampler, Query
from model.training.sampling import Sampling


def note(text: str) -> None:
    """Tell the person who asks something that is no part of the answer."""
    print(f"fovea: {text}", file=sys.stderr, flush=True)


def choose(critic: Critic | None, row: Row, answers: list[str]) -> str:
    """The answer that ``critic`` scores best; of one it is that one, and nobody is asked.

    Args:
        critic: needed for several answers.
        row: the question.
        answers: at least one. Those that cannot be judged are not chosen, and it is said why.

    Raises:
        InputError: none of several can be judged.
    """
    if len(answers) == 1:
        return answers[0]
    assert critic is not None
    scores = critic.scores(row, answers)
    for number, score in enumerate(scores, 1):
        if score.reason is not None:
            note(f"answer {number} of {len(answers)} cannot be judged: {score.reason}")
    if all(score.reason is not None for score in scores):
        raise InputError(f"the critic can judge none of {len(answers)} answers")
    best = best_of([score.score if score.reason is None else -1.0 for score in scores])
    steps = len(scores[best].steps)
    note(f"answer {best + 1} of {len(answers)}: {scores[best].score:.3f} (the mean over {steps} steps)")
    return answers[best]


def open_critic(directory: Path | None, candidates: int) -> Critic | None:
    """The critic, where there is anything to choose from.

    Raises:
        InputError: the directory holds no critic.
    """
    if directory is None or candidates == 1:
        return None
    return load_critic(directory, **_placement())


class LocalModel:
    """A model directory of any family, loaded here; on the first GPU where there is one.

    Raises:
        InputError: the model or the critic cannot be opened.
    """

    def __init__(self, directory: Path, critic: Path | None, candidates: int) -> None:
        self._network = load_network(directory, **_placement())
        self._processor = load_processor(directory)
        self._sampler = NetworkSampler(self._network, self._processor)
        self._critic = open_critic(critic, candidates)

    def answer(self, conversation: Conversation, question: str, manner: Manner) -> str:
        """See ``Answerer``. A greedy answer is printed as it is written."""
        row = conversation.row(question, think=manner.think)
        if not manner.sampled:
            return self._greedy(row, manner.max_tokens)
        sampling = Sampling(THINKING_TEMPERATURE, THINKING_TOP_P, max_new_tokens=manner.max_tokens)
        (group,) = self._sampler.sample([Query(row)], manner.candidates, sampling, manner.seed)
        alone = conversation.row(question, alone=True)
        chosen = choose(self._critic, alone, [response.text for response in group])
        print(chosen, end="", flush=True)
        return chosen

    @torch.inference_mode()
    def _greedy(self, row: Row, max_tokens: int) -> str:
        (sample,), visual = self._network.show([self._processor.question(row)])
        prompt = Prompt(sample.input_ids, sample.positions)

        def show(_index: int, _token: int, text: str) -> None:
            print(text, end="", flush=True)

        (completion,) = decode(self._network, self._processor, [prompt], visual, max_tokens, show)
        return completion.text


def _placement() -> dict:
    cuda = torch.cuda.is_available()
    return {"dtype": torch.bfloat16 if cuda else torch.float32, "device": "cuda" if cuda else "cpu"}
