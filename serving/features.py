"""Packing of feature tensors for the wire; the half of ``serving.wire`` that needs torch.

float32 travels as ``.npy``, which knows no bfloat16; bfloat16 and float16 as ``torch.save`` bytes. A stock vLLM
language server takes both. Nothing here unpickles objects: ``.npy`` headers are matched, not evaluated, and
``torch.load`` runs with ``weights_only=True`` on archives whose entries are stored and no larger than what arrived.
"""

import io
import re
import zipfile

import numpy as np
import torch

from model.data.errors import InputError

_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_ENTRIES = 16
# Magic, version and the header's length; then the one header that numpy writes for such a matrix (format 1.0).
_NPY_PREFIX = 10
_NPY_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype><f[24])', 'fortran_order': False, "
    rb"'shape': \((?P<rows>[0-9]{1,12}), (?P<columns>[0-9]{1,9})\), \} *\n"
)


def pack_features(features: torch.Tensor) -> bytes:
    """Bytes of ``features`` [rows, hidden], whose dtype is kept.

    Raises:
        ValueError: not a two-dimensional float32, bfloat16 or float16 tensor.
    """
    if features.ndim != 2 or features.dtype not in _DTYPES:
        raise ValueError(f"cannot pack a {features.dtype} tensor of shape {tuple(features.shape)}")
    features = features.detach().cpu().contiguous()
    buffer = io.BytesIO()
    if features.dtype == torch.float32:
        np.save(buffer, features.numpy(), allow_pickle=False)
    else:
        # The clone keeps a slice from dragging the storage of its whole batch along.
        torch.save(features.clone(), buffer)
    return buffer.getvalue()


def unpack_features(data: bytes, *, hidden: int, max_rows: int) -> torch.Tensor:
    """The [rows, hidden] tensor packed in ``data``.

    Raises:
        InputError: neither form, a wrong shape or dtype, more than ``max_rows`` rows, or values that are not finite.
    """
    if data.startswith(_NPY):
        features = _from_npy(data, hidden, max_rows)
    elif data.startswith(_ZIP):
        features = _from_torch(data, hidden, max_rows)
    else:
        raise InputError("image_embeds: neither .npy nor torch.save bytes")
    if not bool(torch.isfinite(features).all()):
        raise InputError("image_embeds: holds values that are not finite")
    return features


def _check_shape(shape: tuple[int, ...], hidden: int, max_rows: int) -> None:
    if len(shape) != 2 or shape[1] != hidden:
        raise InputError(f"image_embeds: shape {shape} is not (rows, {hidden})")
    if not 0 < shape[0] <= max_rows:
        raise InputError(f"image_embeds: {shape[0]} rows, allowed are 1 to {max_rows}")


def _from_npy(data: bytes, hidden: int, max_rows: int) -> torch.Tensor:
    found = _NPY_HEADER.match(data, _NPY_PREFIX)
    start = _NPY_PREFIX + int.from_bytes(data[_NPY_PREFIX - 2 : _NPY_PREFIX], "little")
    if not data.startswith(_NPY + b"\x01\x00") or found is None or found.end() != start:
        raise InputError("image_embeds: .npy must hold a row-major matrix of float32 or float16")
    dtype = np.dtype(found["dtype"].decode())
    shape = int(found["rows"]), int(found["columns"])
    _check_shape(shape, hidden, max_rows)
    if len(data) - start != shape[0] * shape[1] * dtype.itemsize:
        raise InputError("image_embeds: .npy data does not fit its header")
    return torch.from_numpy(np.frombuffer(data, dtype=dtype, offset=start).reshape(shape).copy())


def _from_torch(data: bytes, hidden: int, max_rows: int) -> torch.Tensor:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            total = sum(entry.file_size for entry in entries)
        if not stored or len(entries) > _MAX_ENTRIES or total > len(data):
            raise InputError("image_embeds: not an archive that torch.save writes")
        features = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:
        # What the restricted unpickler raises on broken bytes is listed nowhere.
        raise InputError("image_embeds: torch.save bytes that do not load as a tensor") from error
    if type(features) is not torch.Tensor or features.layout != torch.strided or features.dtype not in _DTYPES:
        raise InputError("image_embeds: must be one dense float32, bfloat16 or float16 tensor")
    # Checked before anything copies: a stride of zero makes any number of rows out of one.
    _check_shape(tuple(features.shape), hidden, max_rows)
    return features.contiguous()
