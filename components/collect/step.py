"""``collect``: the raw dataset, its held-out rows, and the tokenizer."""

import os
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

# Read by Arrow when it is first used: its own allocator keeps what is freed (importers/memory.py).
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

from tokenizers import Tokenizer

from components.collect.config import CollectConfig
from components.collect.digits import FAMILIES, digit_rows, train_counts
from components.collect.embedded.rows import embedded_counts, embedded_rows
from components.collect.existing import open_source, valid_rows
from components.collect.importers.memory import freed_memory_returned
from components.collect.tokenizer import adopt_tokenizer, train_tokenizer, write_tokenizer
from components.context import StepContext, StepResult
from model.data.schema import Reject, Row
from model.data.shards import open_dataset, write_dataset
from model.flash.config import ENGLISH_SYSTEM_PROMPT

if TYPE_CHECKING:
    from components.collect.importers.rows import Importer

# By dataset, in the order of writing: its rows and their number (0 where it is not known before).
Sources = dict[str, tuple[Iterator[Row], int]]
_REPORT_EVERY = 256


def run(config: CollectConfig, *, corpus: Path, heldout: Path, tokenizer: Path, context: StepContext) -> StepResult:
    """Build the embedded corpus, take an existing dataset or import a foreign one, and make its tokenizer.

    Args:
        corpus, heldout: outputs, datasets; every row of the source is in one of them or among its rejects.
        tokenizer: output, a Hugging Face tokenizer directory.

    Raises:
        InputError: the source, the dataset or the tokenizer is missing or damaged, or holds no valid row.
    """
    importer = _importer(config)
    if importer is None:
        return _collect(config, None, {"corpus": corpus, "heldout": heldout}, tokenizer, context)
    with freed_memory_returned():
        result = _collect(config, importer, {"corpus": corpus, "heldout": heldout}, tokenizer, context)
    result.numbers |= {f"source_{name}": count for name, count in importer.counts.items()}
    result.values["source"] = importer.found
    return result


def _collect(
    config: CollectConfig,
    importer: "Importer | None",
    directories: dict[str, Path],
    tokenizer: Path,
    context: StepContext,
) -> StepResult:
    """Write the datasets, then the tokenizer."""
    rejected: dict[str, list[Reject]] = {"corpus": [], "heldout": []}
    sources = _imported(importer, rejected) if importer else _own(config, rejected)
    tasks: Counter[str] = Counter()
    numbers: dict[str, float] = {}
    for name, (rows, total) in sources.items():
        counted = _counted(rows, f"collect {name}", total, tasks if name == "corpus" else Counter(), context)
        shards = config.shards if name == "corpus" else 1
        facts = importer.facts if importer else None
        dataset = write_dataset(directories[name], counted, shards=shards, rejects=rejected[name], extra_manifest=facts)
        numbers[f"{name}_rows"] = len(dataset)
        numbers[f"{name}_rejects"] = len(rejected[name])

    made = adopt_tokenizer(config.tokenizer) if config.tokenizer else _train(directories["corpus"], config.vocabulary)
    write_tokenizer(made, tokenizer)
    numbers["vocabulary"] = made.get_vocab_size()
    return StepResult(numbers=numbers | {f"rows_{task}": count for task, count in sorted(tasks.items())})


def _importer(config: CollectConfig) -> "Importer | None":
    """The reader of a source in a foreign format, if the configuration names one."""
    if config.source is None:
        return None
    from components.collect.importers.rows import open_importer  # it imports a video library, which others do without

    return open_importer(config.source)


def _imported(importer: "Importer", rejected: dict[str, list[Reject]]) -> Sources:
    """Held-out rows first: the first pass over a source finds out how many there are."""
    return {"heldout": (importer.heldout(rejected["heldout"]), 0), "corpus": (importer.train(rejected["corpus"]), 0)}


def _own(config: CollectConfig, rejected: dict[str, list[Reject]]) -> Sources:
    """The embedded corpus, or an existing dataset."""
    if config.digits is not None or config.embedded is not None:
        train_rows, heldout_rows, train_total, heldout_total = _built_in(config)
        return {"corpus": (train_rows, train_total), "heldout": (heldout_rows, heldout_total)}
    assert config.dataset is not None  # the configuration has exactly one source
    train, held = open_source(config.dataset)
    seen: set[str] = set()
    return {
        "corpus": (valid_rows(train, rejected["corpus"], seen), len(train)),
        "heldout": (valid_rows(held, rejected["heldout"], seen), len(held)),
    }


def _built_in(config: CollectConfig) -> tuple[Iterator[Row], Iterator[Row], int, int]:
    """Training rows, held-out rows and their numbers: the digits, and the further families after them."""
    train: Iterator[Row] = iter(())
    heldout: Iterator[Row] = iter(())
    totals = [0, 0]
    if config.digits is not None:
        train, heldout = digit_rows(config.digits)
        totals = [sum(train_counts(config.digits).values()), config.digits.heldout * len(FAMILIES)]
    if config.embedded is not None:
        more, more_heldout = embedded_rows(config.embedded)
        train, heldout = chain(train, more), chain(heldout, more_heldout)
        totals = [
            total + sum(counts.values()) for total, counts in zip(totals, embedded_counts(config.embedded), strict=True)
        ]
    return train, heldout, *totals


def _train(corpus: Path, vocabulary: int) -> Tokenizer:
    texts = (message["content"] for row in open_dataset(corpus).rows() for message in row["messages"])
    return train_tokenizer(texts, vocabulary, ENGLISH_SYSTEM_PROMPT)


def _counted(rows: Iterator[Row], label: str, total: int, tasks: Counter[str], context: StepContext) -> Iterator[Row]:
    """The same rows, counted by task and reported."""
    done = -1
    for done, row in enumerate(rows):
        if done % _REPORT_EVERY == 0:
            context.progress(label, done, total)
        tasks[row["task"]] += 1
        yield row
    context.progress(label, total or done + 1, total or done + 1)
