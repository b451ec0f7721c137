"""What training, scoring and serving need of a model family. Imports no torch.

A family gives a processor (rows to samples) and a network (samples to hidden states). Shape suffixes: B batch,
T tokens, S samples in a pack, M positions that carry loss, D hidden, N visual units.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from model.data.schema import Row


class Size(NamedTuple):
    """What a row takes from a pack: tokens, and visual units (tiles for InternVL, merged patches for the Qwen-VLs)."""

    tokens: int
    units: int


@dataclass
class Sample:
    """One tokenised row, ready to be padded or packed.

    Attributes:
        row_id: id of the row, for messages.
        input_ids: [T] token ids, placeholders expanded.
        trained: [T] True where the token carries loss.
        media: the family's visual arrays by name; those of several samples are concatenated along their first axis.
        units: visual units of the sample.
        positions: int64 [3, T] time, height and width for the M-RoPE families; None counts 0, 1, 2, ...
    """

    row_id: str
    input_ids: list[int]
    trained: list[bool]
    media: dict[str, np.ndarray]
    units: int
    positions: np.ndarray | None = None

    @property
    def size(self) -> Size:
        """What the sample takes from a pack."""
        return Size(len(self.input_ids), self.units)


@dataclass
class Inputs:
    """What a network is given: B padded samples, or one pack of S samples (then B is 1).

    Attributes:
        ids: [B, T] token ids.
        mask: [B, T], 1 for real tokens; padding stands on the right. None for a pack, which has none.
        positions: [B, T], or [3, B, T] for the M-RoPE families, from zero in every sample. None for padded samples of
            a family that counts 0, 1, 2, ...
        cu_seqlens: int32 [S + 1] borders of a pack's samples, from 0 to T; None for padded samples.
        media: the visual arrays of all samples in order.
        blank: the last visual item is one that no token shows. It passes through the vision half with weight zero, so
            that every rank runs the same modules, whatever its rows hold.
        keep: [M] indices into the flattened B x T positions whose hidden states are wanted.
        keys: [U] the positions that a pack's samples see, one sample after the other, where that is more than their
            own: answers that share a prompt (model/training/trees.py). None otherwise.
        key_cu_seqlens: int32 [S + 1] borders of the samples in ``keys``, from 0 to U.
    """

    ids: "Tensor"
    mask: "Tensor | None"
    positions: "Tensor | None"
    cu_seqlens: "Tensor | None"
    media: "dict[str, Tensor]"
    blank: bool
    keep: "Tensor"
    keys: "Tensor | None" = None
    key_cu_seqlens: "Tensor | None" = None


class HiddenStates(NamedTuple):
    """Final hidden states [M, D] at the kept positions, and the auxiliary loss of a mixture of experts (a scalar that
    already carries its coefficient; None for dense models)."""

    states: "Tensor"
    auxiliary: "Tensor | None"


@dataclass(frozen=True)
class Parts:
    """The modules of each part of a network; together they hold every parameter.

    A Flash model's second projector and router are parts of their own: only the stages that are made for them train
    them, and every other leaves them as they are.
    """

    vision: "Sequence[nn.Module]" = field(default_factory=tuple)
    projector: "Sequence[nn.Module]" = field(default_factory=tuple)
    language: "Sequence[nn.Module]" = field(default_factory=tuple)
    compressed: "Sequence[nn.Module]" = field(default_factory=tuple)
    router: "Sequence[nn.Module]" = field(default_factory=tuple)

    def parameters(self, *names: str) -> "Iterable[nn.Parameter]":
        """Parameters of the named parts."""
        return (p for name in names for module in getattr(self, name) for p in module.parameters())


class Processor(Protocol):
    """Tokenizer, media preparation and chat rendering of one model directory. Uses numpy only."""

    tokenizer: "Tokenizer"

    @property
    def eos_token_id(self) -> int:
        """Ends an assistant turn; also pads."""

    def measure(self, row: "Row") -> Size:
        """Size of ``sample(row)``, without decoding a pixel where the row states its media's width and height."""

    def sample(self, row: "Row", *, jpeg_quality: int | None = None) -> Sample:
        """Decode, prepare and tokenise a row.

        Args:
            row: from a dataset; the last message is the answer.
            jpeg_quality: re-encode every image in memory at this quality first (InternVL3.5, section 2.2).

        Raises:
            InputError: names the row whose medium or messages cannot be used.
        """

    def question(self, row: "Row") -> Sample:
        """``sample(row)`` without the answer: an open assistant turn at its end.

        Raises:
            InputError: names the row whose medium or messages cannot be used.
        """

    def prompt(self, messages: "Sequence[dict[str, str]]", features: "Sequence[Any]") -> Sample:
        """Messages whose media the vision half has seen, an open assistant turn at their end; without media.

        Args:
            messages: with ``<image>`` and ``<video>`` placeholders.
            features: what the family's ``encode_batch`` gave for each, in the order of the placeholders.

        Raises:
            InputError: placeholders and features do not fit.
        """

    def blank_media(self) -> dict[str, np.ndarray]:
        """The smallest visual item, of the shapes of ``Sample.media``."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""


class Network(Protocol):
    """A vision-language model of transformers' parts; an ``nn.Module``."""

    config: "PreTrainedConfig"
    language_model: "PreTrainedModel"
    device: "torch.device"

    @property
    def head(self) -> "nn.Module":
        """Hidden states [M, D] to logits [M, V]."""

    def hidden(self, inputs: Inputs) -> HiddenStates:
        """Encode the media, lay the features over their placeholders, and run the language model.

        Samples of a pack never see each other.

        Raises:
            ValueError: features and placeholders differ in number.
        """

    def prepare(self, samples: "Sequence[Sample]") -> "list[Sample]":
        """What the network decides before text is laid out: a Flash model that routes gives compressed tiles fewer
        placeholders. Every sample by itself; the samples as they are for every other network.

        Raises:
            InputError: names the row that cannot be routed as asked.
        """

    def show(self, samples: "Sequence[Sample]") -> "tuple[list[Sample], Tensor | None]":
        """For generation: the samples that ``prepare`` gives, and the ``media_rows`` of all of them; nothing goes
        through the vision half twice.

        Raises:
            InputError: as ``prepare``.
        """

    def media_rows(self, media: "dict[str, Tensor]") -> "Tensor | None":
        """Visual rows [R, ...] of ``Sample.media``, for generation: in parts of bounded size; None of no media."""

    def language_inputs(self, ids_BT: "Tensor", rows: "Tensor | None") -> "dict[str, Any]":
        """What the language model takes: embeddings with the visual rows over their placeholders, in order.

        Raises:
            ValueError: rows and placeholders differ in number.
        """

    def parts(self) -> Parts:
        """Which modules are vision, projector and language."""
