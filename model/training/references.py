"""What the network that preference learning starts from says of the answers: pi_0, computed once or in every step.

``ReferenceCache`` asks the network itself before its first update, when it still is the reference, and keeps the
answers on disk. ``ReferenceCopy`` is a second network. Both give the same losses.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from model.data.artifact import write_atomic
from model.data.errors import InputError
from model.data.schema import Row
from model.families.interface import Network
from model.objectives.log_probability import segment_sums, token_log_probabilities
from model.training.attention import set_attention, use_varlen_attention
from model.training.config import TrainingConfig
from model.training.engine import Engine
from model.training.pairs import PairReader, Reference, one_ahead
from model.training.trees import TreeBatch

# progress(label, done, total)
Progress = Callable[[str, int, int], None]

_PAIRS_IN_PART = 64
_PARTS = ("chosen", "rejected")


def answer_log_probabilities(network: Network, batch: TreeBatch, chunk: int) -> Tensor:
    """log pi(y | x) of every branch [S] in float32, chunk by chunk from hidden states."""
    states = network.hidden(batch.inputs).states
    log_probabilities_M = token_log_probabilities(states, network.head, batch.targets, chunk, batch.loss_calls)
    return segment_sums(log_probabilities_M, batch.lengths)


class ReferenceCopy:
    """A frozen second network; under ZeRO too, every process holds all of it.

    Args:
        network: what training starts from, not touched yet.
        config: attention, and the positions whose logits exist at the same time.
    """

    def __init__(self, network: Network, config: TrainingConfig) -> None:
        self._network: Network = deepcopy(network).requires_grad_(False).eval()
        set_attention(self._network, config.attention)
        self._chunk = config.loss_chunk

    @torch.no_grad()
    def __call__(self, network: Network, batch: TreeBatch) -> Reference:
        """Of the pairs of a batch, in the precision of ``network``, which learns."""
        weight = next(network.parameters())
        self._network.to(device=batch.inputs.ids.device, dtype=weight.dtype)
        with use_varlen_attention(*self._network.parts().language):
            both = answer_log_probabilities(self._network, batch, self._chunk)
        return Reference(both[0::2], both[1::2])


class ReferenceCache:
    """Reference log-probabilities of a dataset's pairs, in files of a directory that runs may share.

    A file holds those of up to 64 neighbouring rows. Its name is a hash of all that they depend on: the model, the rows
    with their questions, media and answers, settings and code of the forward pass, and the kind of machine. So what a
    run finds here is to the last bit what it would compute itself, and a file is there whole or not at all.

    Args:
        directory: shared by the ranks, and by other runs.
        identity: of the model that training starts from, and of the code that prepares rows and runs it.
        progress: told of every part.
    """

    def __init__(self, directory: Path, identity: str, progress: Progress, in_part: int = _PAIRS_IN_PART) -> None:
        self.directory, self.identity, self.in_part = directory, identity, in_part
        self._progress = progress
        self._known: Reference | None = None

    def look_up(self, indices: Sequence[int]) -> Reference:
        """Of the rows with these indices; ``fill`` comes first."""
        assert self._known is not None
        return Reference(*(values[list(indices)] for values in self._known))

    def fill(self, engine: Engine, source: PairReader) -> None:
        """Compute what is missing; the ranks share the work, and all of them have to call this.

        Raises:
            InputError: a pair cannot be used, or its answers have no finite log-probability.
        """
        parts = self._parts(source)
        names = [self._name(part, source, engine) for part in parts]
        # A part that one rank does not see is missing for all: they have to run the network equally often.
        seen = engine.sum([float(self._read(*given) is not None) for given in zip(names, parts, strict=True)])
        missing = [number for number, count in enumerate(seen) if count < engine.ranks]
        self.directory.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(missing), engine.ranks):
            together = missing[start : start + engine.ranks]
            # Who has no part left computes the last one too, and forgets it.
            own = together[min(engine.rank, len(together) - 1)]
            values = self._compute(parts[own], max(len(parts[number]) for number in together), engine, source)
            if engine.rank < len(together):
                self._write(names[own], values)
            done = len(parts) - len(missing) + start + len(together)
            self._progress("reference", done, len(parts))
        engine.sum([0.0])  # every rank has written
        read = [self._read(*given) for given in zip(names, parts, strict=True)]
        if None in read:
            raise InputError(f"{self.directory / names[read.index(None)]}: this process cannot read what another wrote")
        self._known = Reference(*(torch.cat(values) for values in zip(*read, strict=True)))

    def _parts(self, source: PairReader) -> list[range]:
        """Rows of each file: whole forward passes."""
        size, rows = max(1, self.in_part // source.micro_pairs) * source.micro_pairs, len(source.rows)
        return [range(start, min(start + size, rows)) for start in range(0, rows, size)]

    def _compute(self, part: range, longest: int, engine: Engine, source: PairReader) -> Reference:
        """Of the rows of ``part``, in as many forward passes as ``longest`` rows need."""
        size = source.micro_pairs
        passes = [part[start : start + size] for start in range(0, len(part), size)]
        repeated = passes[-1:] * (-(-longest // size) - len(passes))
        found: list[Tensor] = []
        for batch in one_ahead(source.batch, passes + repeated):
            if engine.ranks > 1:
                batch.loss_calls = int(engine.max([max(1, -(-len(batch.targets) // source.config.loss_chunk))])[0])
            both = engine.evaluate(lambda network, given: self._of(network, given, source.config), batch)
            found.append(both.float().cpu())
        both = torch.cat(found[: len(passes)])
        for row, values in zip(part, both.reshape(-1, 2), strict=True):
            if not values.isfinite().all():
                said = " and ".join(f"{value:g}" for value in values.tolist())
                raise InputError(f"row {source.rows[row]['id']}: the reference gives its answers {said}")
        return Reference(both[0::2], both[1::2])

    @staticmethod
    def _of(network: Network, batch: TreeBatch, config: TrainingConfig) -> Tensor:
        return answer_log_probabilities(network, batch, config.loss_chunk)

    def _name(self, part: range, source: PairReader, engine: Engine) -> str:
        config = source.config
        settings = {
            "identity": self.identity,
            "versions": [torch.__version__, transformers.__version__],
            "machine": _machine(engine.device),
            "pairs": source.micro_pairs,
            "weights": "rounded" if config.zero and config.precision == "bfloat16" else "float32",
            **config.model_dump(mode="json", include={"precision", "loss_chunk", "threads", "attention", "compile"}),
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for index in part:
            digest.update(_row_sha256(source.rows[index]))
        return f"{digest.hexdigest()}.safetensors"

    def _read(self, name: str, part: range) -> Reference | None:
        """What a file holds; None where there is none, or another thing in its place."""
        path = self.directory / name
        try:
            held = load(path.read_bytes())
            values = Reference(*(held[kind] for kind in _PARTS))
        except (OSError, SafetensorError, KeyError):
            return None
        return values if all(x.shape == (len(part),) and x.dtype == torch.float32 for x in values) else None

    def _write(self, name: str, values: Reference) -> None:
        write_atomic(self.directory / name, save({kind: x.contiguous() for kind, x in values._asdict().items()}))


def _machine(device: torch.device) -> str:
    """What decides the last bits of a sum beside the threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def _row_sha256(row: Row) -> bytes:
    """Hash of what a row says to the network, its id and both answers."""
    media = [
        {**medium, "bytes": None if medium["bytes"] is None else hashlib.sha256(medium["bytes"]).hexdigest()}
        for medium in row["media"]
    ]
    said = [row["id"], row["messages"], media, row["chosen"], row["rejected"]]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()
