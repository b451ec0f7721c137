"""Features survive the wire bit for bit, and hostile bytes are refused before they cost anything."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.errors import InputError
from serving.feature_cache import FeatureCache
from serving.features import pack_features, unpack_features
from serving.wire import EncodedImage, content_key, read_vision_reply, vision_reply

HIDDEN = 8


def features(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_arrive_as_they_left(dtype):
    sent = features(dtype)
    got = unpack_features(pack_features(sent), hidden=HIDDEN, max_rows=5)
    assert got.dtype == dtype and torch.equal(got, sent)


def test_the_forms_are_those_that_vllm_reads():
    npy = np.load(io.BytesIO(pack_features(features(torch.float32))), allow_pickle=False)
    assert np.array_equal(npy, features(torch.float32).numpy())
    saved = torch.load(io.BytesIO(pack_features(features(torch.bfloat16))), weights_only=True)
    assert torch.equal(saved, features(torch.bfloat16))


def test_a_slice_does_not_drag_its_batch_along():
    batch = torch.zeros(1000, 5, HIDDEN, dtype=torch.bfloat16)
    assert len(pack_features(batch[3])) < 5000


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def deflated(data: bytes) -> bytes:
    """The same archive, its entries compressed: how a bomb would come."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return buffer.getvalue()


def claims(shape: tuple[int, ...]) -> bytes:
    """An .npy header that promises ``shape`` and brings four bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + b"1234"


class Exploit:
    def __reduce__(self):
        return (print, ("unpickled",))


HOSTILE = {
    "empty": b"",
    "text": b"hello",
    "pickle": pickle.dumps(Exploit()),
    "pickled tensor": saved({"tensor": torch.zeros(2, HIDDEN)}),
    "list": saved([torch.zeros(2, HIDDEN)]),
    "code": saved(Exploit()),
    "stride of zero": saved(torch.zeros(1, HIDDEN).expand(10**9, HIDDEN)),
    "integers": saved(torch.zeros(2, HIDDEN, dtype=torch.int64)),
    "sparse": saved(torch.zeros(2, HIDDEN).to_sparse()),
    "three dimensions": saved(torch.zeros(2, 2, HIDDEN)),
    "compressed": deflated(saved(torch.zeros(1000, HIDDEN))),
    "truncated archive": saved(torch.zeros(2, HIDDEN))[:-30],
    "infinite": saved(torch.full((2, HIDDEN), float("inf"))),
    "npy of terabytes": claims((10**9, HIDDEN)),
    "npy of negative rows": claims((-1, HIDDEN)),
    "npy too short": claims((2, HIDDEN)),
    "npy header only": b"\x93NUMPY",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bytes_are_refused_in_one_line(case, capsys):
    with pytest.raises(InputError) as caught:
        unpack_features(HOSTILE[case], hidden=HIDDEN, max_rows=2000)
    assert "\n" not in str(caught.value)
    assert "unpickled" not in capsys.readouterr().out


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04"]))
def test_no_bytes_crash_the_reader(data, magic):
    with pytest.raises(InputError):
        unpack_features(magic + data, hidden=HIDDEN, max_rows=10)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(deadline=None)
@given(st.integers(0, 2000), st.integers(0, 255))
def test_a_flipped_byte_is_refused_or_gives_a_tensor(position, value):
    for dtype in (torch.float32, torch.bfloat16):
        data = bytearray(pack_features(features(dtype)))
        data[position % len(data)] = value
        try:
            got = unpack_features(bytes(data), hidden=HIDDEN, max_rows=10)
        except InputError:
            continue
        assert got.shape[1:] == (HIDDEN,) and 0 < len(got) <= 10


def image(key: str, size: int) -> EncodedImage:
    return EncodedImage(bytes(size), (16, 4), key)


def test_the_reply_of_the_vision_predictor_reads_back():
    images = [EncodedImage(b"one", (16, 4), "a"), EncodedImage(b"two", (4,), "b")]
    reply = vision_reply(images, "v1", "id")
    assert read_vision_reply(reply, 2) == images
    assert reply.parameters["weights_version"].string_param == "v1"
    with pytest.raises(ValueError, match="3 image"):
        read_vision_reply(reply, 3)


def test_the_content_key_depends_on_weights_image_and_tiling():
    keys = [content_key(*of) for of in (("1", b"a", {"t": 1}), ("2", b"a", {"t": 1}), ("1", b"b", {"t": 1}))]
    assert len({*keys, content_key("1", b"a", {"t": 2})}) == 4
    assert content_key("1", b"a", {"t": 1, "u": 2}) == content_key("1", b"a", {"u": 2, "t": 1})


def test_the_cache_keeps_its_bound_and_forgets_the_oldest():
    cache = FeatureCache(5000)
    for key in "abc":
        cache.put(image(key, 1000))
    assert cache.get("a") is not None
    cache.put(image("d", 1000))
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]
    cache.put(image("huge", 6000))
    assert cache.get("huge") is None and cache.size_bytes <= 5000
