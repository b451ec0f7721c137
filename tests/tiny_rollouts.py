"""A world small enough to be answered by chance: the model knows 7, 8, a space and the end of turn."""

from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from components.build_preferences.config import BuildPreferencesConfig
from model.data.schema import Row, scorer
from model.data.shards import write_dataset
from tests.tiny import SPECIAL, picture, question_row, random_model

SMALL = BuildPreferencesConfig(
    rollouts=12, temperature=1.0, top_k=0, max_new_tokens=4, max_tokens=512, threads=1, open_tasks=("caption",)
)


def digit_tokenizer() -> Tokenizer:
    """Of a question nothing remains but sevens, eights and spaces."""
    tokenizer = Tokenizer(models.BPE(vocab={"7": 0, "8": 1, "\u0120": 2}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def save_guesser(directory: Path) -> Path:
    """A model directory; about one answer in ten is right."""
    from model.flash.checkpoint import save_model

    network, processor = random_model(digit_tokenizer())
    save_model(network, processor, directory)
    return directory


def guessing_rows(count: int) -> list[Row]:
    """Numbers about an image, numbers about nothing, captions."""
    rng = np.random.default_rng(2)
    rows = []
    for index in range(count):
        family = ("read", "text", "caption")[index % 3]
        answer = "7 8 7 8" if family == "caption" else "78"[index // 3 % 2]
        images = [] if family == "text" else [picture(rng)]
        row = question_row(f"{family}-{index}", images, answer, "7 or 8?", family)
        rows.append(row | ({"scorer": scorer("numeric")} if family != "caption" else {}))
    return rows


def save_questions(directory: Path, rows: list[Row]) -> Path:
    """A dataset directory of the rows."""
    write_dataset(directory, rows)
    return directory
