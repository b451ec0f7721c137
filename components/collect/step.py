"""``collect``: the raw dataset, its held-out rows, and the tokenizer."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from components.collect.config import CollectConfig
from components.collect.digits import FAMILIES, digit_rows, train_counts
from components.collect.existing import open_source, valid_rows
from components.collect.tokenizer import adopt_tokenizer, train_tokenizer, write_tokenizer
from components.context import StepContext, StepResult
from model.data.schema import Reject, Row
from model.data.shards import open_dataset, write_dataset
from model.flash.config import ENGLISH_SYSTEM_PROMPT

_REPORT_EVERY = 256


def run(config: CollectConfig, *, corpus: Path, heldout: Path, tokenizer: Path, context: StepContext) -> StepResult:
    """Build the embedded corpus or take an existing dataset, and make its tokenizer.

    Args:
        corpus, heldout: outputs, datasets; every row of the source is in one of them or among its rejects.
        tokenizer: output, a Hugging Face tokenizer directory.

    Raises:
        InputError: the existing dataset or tokenizer is missing or damaged, or holds no valid row.
    """
    rejected: dict[str, list[Reject]] = {"corpus": [], "heldout": []}
    if config.digits is not None:
        train_rows, heldout_rows = digit_rows(config.digits)
        train_total, heldout_total = sum(train_counts(config.digits).values()), config.digits.heldout * len(FAMILIES)
    else:
        assert config.dataset is not None  # the configuration has exactly one source
        train, held = open_source(config.dataset)
        seen: set[str] = set()
        train_rows = valid_rows(train, rejected["corpus"], seen)
        heldout_rows = valid_rows(held, rejected["heldout"], seen)
        train_total, heldout_total = len(train), len(held)

    tasks: Counter[str] = Counter()
    numbers: dict[str, float] = {}
    for name, directory, rows, total in (
        ("corpus", corpus, train_rows, train_total),
        ("heldout", heldout, heldout_rows, heldout_total),
    ):
        counted = _counted(rows, f"collect {name}", total, tasks if name == "corpus" else Counter(), context)
        shards = config.shards if name == "corpus" else 1
        dataset = write_dataset(directory, counted, shards=shards, rejects=rejected[name])
        numbers[f"{name}_rows"] = len(dataset)
        numbers[f"{name}_rejects"] = len(rejected[name])

    made = adopt_tokenizer(config.tokenizer) if config.tokenizer else _train(corpus, config.vocabulary)
    write_tokenizer(made, tokenizer)
    numbers["vocabulary"] = made.get_vocab_size()
    return StepResult(numbers=numbers | {f"rows_{task}": count for task, count in sorted(tasks.items())})


def _train(corpus: Path, vocabulary: int) -> Tokenizer:
    texts = (message["content"] for row in open_dataset(corpus).rows() for message in row["messages"])
    return train_tokenizer(texts, vocabulary, ENGLISH_SYSTEM_PROMPT)


def _counted(rows: Iterator[Row], label: str, total: int, tasks: Counter[str], context: StepContext) -> Iterator[Row]:
    """The same rows, counted by task and reported."""
    for done, row in enumerate(rows):
        if done % _REPORT_EVERY == 0:
            context.progress(label, done, total)
        tasks[row["task"]] += 1
        yield row
    context.progress(label, total, total)
