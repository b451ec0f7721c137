"""Reading and writing the tensors of a model directory one at a time: never two copies of a model in memory."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.data.errors import InputError
from model.flash.layouts import from_stored
from model.flash.processor import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLASH_SHARD = "model-flash.safetensors"
"""The router and the second projector: beside the index, because vLLM refuses tensors that it does not know."""
SHARD_BYTES = 4 << 30
"""Most bytes of a shard; a tensor that is larger has one of its own."""


class Lazy(NamedTuple):
    """A tensor that is read when it is needed: its size in bytes, and how."""

    size: int
    read: Callable[[], Tensor]


class _Place(NamedTuple):
    path: Path
    name: str
    third: int | None


class StoredWeights:
    """The tensors of a model directory under our names (model/flash/layouts.py), whichever layout it has.

    Args:
        directory: holds ``model.safetensors``, or the shards of ``model.safetensors.index.json``.
        prefixes: of our names; other tensors, and shards that hold nothing else, are left alone.
        original: the directory has the original layout.
        within: put before every stored name (the original vision tower alone: ``vision_model.``).

    Raises:
        InputError: a shard is missing or broken, or a tensor is of no InternVL.
    """

    def __init__(self, directory: Path, prefixes: tuple[str, ...], *, original: bool = False, within: str = "") -> None:
        self.directory = directory
        self._streams: dict[Path, safe_open] = {}
        self._places: dict[str, _Place] = {}

        def wanted(stored: str) -> list[tuple[str, int | None]]:
            try:
                names = from_stored(within + stored, original=original)
            except InputError as error:
                raise InputError(f"{directory}: {error}") from error
            return [(name, third) for name, third in names if name.startswith(prefixes)]

        for path in self._shards(wanted):
            for stored in self._stream(path).keys():  # noqa: SIM118
                for name, third in wanted(stored):
                    self._places[name] = _Place(path, stored, third)

    def _shards(self, wanted: Callable[[str], list]) -> list[Path]:
        index, extra = self.directory / INDEX, self.directory / FLASH_SHARD
        names = {SINGLE}
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
                raise InputError(f"{index}: no weight_map")
            names = {shard for name, shard in weight_map.items() if wanted(name)}
        paths = [self.directory / Path(name).name for name in sorted(names)]
        return [*paths, extra] if extra.is_file() else paths

    def _stream(self, path: Path) -> safe_open:
        if path not in self._streams:
            if not path.is_file():
                raise InputError(f"{path}: missing; the model directory is incomplete")
            try:
                self._streams[path] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path}: broken safetensors file: {error}") from error
        return self._streams[path]

    @property
    def names(self) -> list[str]:
        """Our names of all tensors, neighbours in a file next to each other."""
        return list(self._places)

    def tensor(self, name: str) -> Tensor:
        """One tensor, in its stored dtype.

        Raises:
            InputError: a fused tensor does not fall into thirds, or the file is broken.
        """
        place = self._places[name]
        try:
            stream = self._stream(place.path)
            if place.third is None:
                return stream.get_tensor(place.name)
            rows = stream.get_slice(place.name)
            count, left = divmod(rows.get_shape()[0], 3)
            if left:
                raise InputError(f"{place.path}: {place.name} does not hold queries, keys and values")
            return rows[place.third * count : (place.third + 1) * count]
        except (SafetensorError, OSError) as error:
            raise InputError(f"{place.path}: broken safetensors file: {error}") from error

    def lazy(self, name: str) -> Lazy:
        """One tensor, to be read later."""
        place = self._places[name]
        rows = self._stream(place.path).get_slice(place.name)
        size = torch.empty(rows.get_shape(), dtype=_DTYPES[rows.get_dtype()], device="meta").nbytes
        return Lazy(size if place.third is None else size // 3, lambda: self.tensor(name))


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def lazy(tensor: Tensor) -> Lazy:
    """A tensor in memory, copied to the host when it is written."""
    return Lazy(tensor.nbytes, lambda: tensor.detach().cpu().contiguous())


def write_shards(directory: Path, stem: str, tensors: Mapping[str, Lazy]) -> dict[str, str]:
    """Write tensors as ``stem.safetensors``, or as ``stem-00001-of-0000N.safetensors`` where one would be too large.

    Returns:
        the file of each tensor.
    """
    groups: list[list[str]] = []
    room = 0
    for name in sorted(tensors):
        if not groups or tensors[name].size > room:
            groups.append([])
            room = SHARD_BYTES
        groups[-1].append(name)
        room -= tensors[name].size
    files = {}
    for number, names in enumerate(groups, start=1):
        file = f"{stem}.safetensors" if len(groups) == 1 else f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: tensors[name].read() for name in names}, directory / file, metadata={"format": "pt"})
        files |= dict.fromkeys(names, file)
    return files
