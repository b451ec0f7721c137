"""Which rows are asked, and what cannot be asked about them. Imports no torch."""

import heapq
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import sha256

from components.build_preferences.config import BuildPreferencesConfig
from model.data.errors import InputError
from model.data.schema import PLACEHOLDERS, Row
from model.data.shards import Dataset
from model.families.interface import Processor
from scoring.judge import Judges, Request

_PLACEHOLDER = re.compile(rf"(?:{'|'.join(PLACEHOLDERS.values())})\n?")
_ASKED_TOGETHER = 256


def choose_queries(dataset: Dataset, config: BuildPreferencesConfig) -> set[str]:
    """Ids of the rows to ask: at most ``max_queries`` of each source, those that a hash with the seed puts first."""
    sources: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for row in dataset.rows():
        digest = sha256(f"{config.seed}\0{row['id']}".encode()).digest()
        sources[row["source"]].append((int.from_bytes(digest[:8], "big"), row["id"]))
    return {row_id for ranked in sources.values() for _, row_id in heapq.nsmallest(config.max_queries, ranked)}


def check_references(rows: Iterator[Row], config: BuildPreferencesConfig, judges: Judges) -> dict[str, str]:
    """Ask the scorers about the rows' own references, before any answer is sampled.

    Returns:
        Reasons by id of the rows whose scorer does not accept the reference: no answer to them could be right.

    Raises:
        InputError: names the row whose scorer, parameters or references are unusable.
    """
    reasons: dict[str, str] = {}
    waiting: list[Row] = []

    def ask() -> None:
        verdicts = judges.ask([request(row, row["answers"][0]) for row in waiting])
        for row, verdict in zip(waiting, verdicts, strict=True):
            if verdict.fault:
                raise InputError(f"row {row['id']!r}: {verdict.fault}")
            if verdict.value <= config.correct_above:
                name = row["scorer"]["name"]
                reasons[row["id"]] = f"its scorer {name} rejects its own reference" + (
                    f" ({verdict.failed})" if verdict.failed else ""
                )
        waiting.clear()

    for row in rows:
        if row["task"] not in config.open_tasks:
            waiting.append(row)
        if len(waiting) == _ASKED_TOGETHER:
            ask()
    ask()
    return reasons


def request(row: Row, text: str) -> Request:
    """What a judge needs to score ``text`` as an answer to ``row``."""
    return Request(row["scorer"]["name"], row["scorer"]["parameters"], text, row["answers"])


def why_unasked(row: Row, config: BuildPreferencesConfig, processor: Processor, context: int) -> str | None:
    """Why nothing is sampled for a row: its prompt is too long, or nothing is to be continued. None where it is asked.

    Args:
        row: of the dataset.
        config: the limits.
        processor: of the model.
        context: of the model, in tokens.

    Raises:
        InputError: a medium of the row cannot be used.
    """
    begun, limits = "", f"max_tokens {config.max_tokens}, max_new_tokens {config.max_new_tokens}, context {context}"
    if row["task"] in config.open_tasks:
        if config.dropout_start_ratio is None:
            return "no ground truth, and dropout_start_ratio is not set"
        if not row["media"]:
            return "no ground truth, and no image that could be left out"
        if not (begun := beginning(row["messages"][-1]["content"], config.dropout_start_ratio)):
            return "no ground truth, and an answer of one word"
        # Pairs are learned with the image that the continuation goes without.
        pair = max(
            processor.measure(row).tokens, processor.measure(answered(row, begun)).tokens + config.max_new_tokens
        )
        if pair > min(config.max_tokens, context):
            return f"a pair of it may have {pair} tokens ({limits})"
        row = without_media(row)
    # The end of turn that is measured too stands for the one token that an answer needs.
    tokens = processor.measure(answered(row, begun)).tokens
    if tokens + config.max_new_tokens > config.max_tokens or tokens >= context:
        return f"its prompt of about {tokens} tokens leaves no room for an answer ({limits})"
    return None


def answered(row: Row, answer: str) -> Row:
    """The same conversation with ``answer`` in the place of the row's own."""
    return row | {"messages": [*row["messages"][:-1], {"role": "assistant", "content": answer}]}


def beginning(answer: str, ratio: float) -> str:
    """The first share of an answer's words, spaces between them as they are; "" of an answer of one word."""
    ends = [match.end() for match in re.finditer(r"\S+", answer)]
    kept = int(len(ends) * ratio)
    return answer[: ends[kept - 1]] if kept else ""


def without_media(row: Row) -> Row:
    """The same conversation with no image in it."""
    messages = [{**turn, "content": _PLACEHOLDER.sub("", turn["content"])} for turn in row["messages"]]
    return row | {"media": [], "messages": messages}


def chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Rows in lists of ``size``, the last one shorter."""
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def texts(messages: Sequence[dict[str, str]]) -> str:
    """What a row asks, its instructions included: every turn but the answers."""
    return "\n".join(turn["content"] for turn in messages if turn["role"] != "assistant")
