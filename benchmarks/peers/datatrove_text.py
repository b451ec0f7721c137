"""datatrove 0.10 on the recipe of texts that both can run: language, licence, near-duplicates by MinHash.

Its four MinHash stages with two tasks on two workers. The language is told by the same py3langid model (datatrove's own
filter downloads a model), and words are split at white space (its English tokenizer is NLTK's, an extra of its own).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import xxhash
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.logging import logger
from datatrove.utils.word_tokenizers import WordTokenizer

from components.curate.language import judge, said
from components.curate.model_sections import Languages
from components.curate.recipe import NearDuplicateTexts


class _Words(WordTokenizer):
    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return text.splitlines()

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


class _Rows(PipelineStep):
    """Reads our shards: one a task."""

    name = "shards"

    def __init__(self, corpus: Path) -> None:
        super().__init__()
        self.corpus = corpus

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for path in sorted(self.corpus.glob("shard-*.parquet"))[rank::world_size]:
            for batch in pq.ParquetFile(path).iter_batches(256, columns=["id", "license", "messages"]):
                for row in batch.to_pylist():
                    yield Document(said(row["messages"]), row["id"], metadata={"license": row["license"]})


def _hash(shingle: str) -> int:
    return xxhash.xxh64_intdigest(shingle.encode())


def curate(
    corpus: Path, output: Path, workers: int, languages: Languages, licences: tuple[str, ...], near: NearDuplicateTexts
) -> list[str]:
    """Run all stages; returns the ids of the documents that are kept."""
    logger.disable("datatrove")
    config = MinhashConfig(n_grams=near.ngram, num_buckets=near.bands, hashes_per_bucket=near.rows_per_band)
    folder = {name: str(output / name) for name in ("filtered", "signatures", "buckets", "removed", "kept")}
    spread: dict[str, Any] = {"tasks": workers, "workers": workers, "start_method": "fork"}

    def run(pipeline: list[Any], **parallel: Any) -> None:
        # Named, or it makes a folder of logs wherever it is started; with skip_completed off nothing of it is used.
        logs = str(output / "logs")
        LocalPipelineExecutor(pipeline, logging_dir=logs, skip_completed=False, **(spread | parallel)).run()

    filters = [
        LambdaFilter(lambda document: document.metadata["license"] in licences),
        LambdaFilter(lambda document: judge(document.text, languages)[0] is None),
    ]
    plain = {"compression": None, "output_filename": "${rank}.jsonl"}
    signature = MinhashDedupSignature(folder["signatures"], config, _Words())
    signature._hash_func = _hash  # datatrove hands over a str, which xxhash takes before its version 4 only
    run([_Rows(corpus), *filters, JsonlWriter(folder["filtered"], **plain)])
    run([JsonlReader(folder["filtered"]), signature])
    run([MinhashDedupBuckets(folder["signatures"], folder["buckets"], config=config)], tasks=near.bands)
    run([MinhashDedupCluster(folder["buckets"], folder["removed"], config)], tasks=1)
    run([JsonlReader(folder["filtered"]), MinhashDedupFilter(folder["removed"]), JsonlWriter(folder["kept"], **plain)])
    kept = JsonlReader(folder["kept"])
    return sorted(document.id for document in kept.run())
