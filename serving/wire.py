"""What travels between the servers, as seen without torch: the vision predictor's request and reply.

One request carries encoded images as one BYTES tensor ``images`` [N]. The reply carries ``features``, BYTES [N]: the
packed features of each image (``serving.features``), which the gateway forwards unopened; ``rows_per_tile``, INT32
[tiles of all images]; ``tiles``, INT32 [N]; ``keys``, BYTES [N]; and the parameter ``weights_version``.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

VISION_MODEL = "vision"
IMAGES, FEATURES, ROWS, TILES, KEYS = "images", "features", "rows_per_tile", "tiles", "keys"


@dataclass(frozen=True)
class EncodedImage:
    """Features of one image on their way to a language server.

    Attributes:
        packed: ``.npy`` (float32) or ``torch.save`` (bfloat16) bytes of a [rows, hidden] tensor.
        rows_per_tile: visual tokens of each tile, the thumbnail last.
        key: content key, see ``content_key``.
    """

    packed: bytes
    rows_per_tile: tuple[int, ...]
    key: str


def content_key(weights_version: str, image: bytes, settings: Mapping[str, object]) -> str:
    """Hash of everything that features depend on: the weights, the encoded image, how it is cut and routed.

    New weights therefore never meet old features, neither in our cache nor in the language server's.
    """
    digest = hashlib.sha256()
    for part in (weights_version.encode(), json.dumps(settings, sort_keys=True).encode(), image):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def vision_request(images: list[bytes], request_id: str) -> pb.ModelInferRequest:
    """The predictor's request for ``images`` (encoded PNG, JPEG, ...)."""
    tensor = pb.ModelInferRequest.InferInputTensor(name=IMAGES, datatype="BYTES", shape=[len(images)])
    tensor.contents.bytes_contents.extend(images)
    return pb.ModelInferRequest(model_name=VISION_MODEL, id=request_id, inputs=[tensor])


def vision_reply(images: list[EncodedImage], weights_version: str, request_id: str) -> pb.ModelInferResponse:
    """The predictor's reply for ``images``, in order."""
    reply = pb.ModelInferResponse(model_name=VISION_MODEL, id=request_id)
    reply.parameters["weights_version"].string_param = weights_version
    rows = [count for image in images for count in image.rows_per_tile]
    features = reply.outputs.add(name=FEATURES, datatype="BYTES", shape=[len(images)])
    features.contents.bytes_contents.extend(image.packed for image in images)
    reply.outputs.add(name=ROWS, datatype="INT32", shape=[len(rows)]).contents.int_contents.extend(rows)
    tiles = reply.outputs.add(name=TILES, datatype="INT32", shape=[len(images)])
    tiles.contents.int_contents.extend(len(image.rows_per_tile) for image in images)
    keys = reply.outputs.add(name=KEYS, datatype="BYTES", shape=[len(images)])
    keys.contents.bytes_contents.extend(image.key.encode() for image in images)
    return reply


def read_vision_reply(reply: pb.ModelInferResponse, count: int) -> list[EncodedImage]:
    """The ``count`` images of a reply.

    Raises:
        ValueError: the reply does not have the tensors of ``vision_reply`` for ``count`` images.
    """
    outputs = {output.name: output.contents for output in reply.outputs}
    if missing := {FEATURES, ROWS, TILES, KEYS} - outputs.keys():
        raise ValueError(f"the vision predictor's reply lacks {', '.join(sorted(missing))}")
    packed, keys = outputs[FEATURES].bytes_contents, outputs[KEYS].bytes_contents
    tiles, rows = outputs[TILES].int_contents, outputs[ROWS].int_contents
    if not len(packed) == len(keys) == len(tiles) == count or sum(tiles) != len(rows):
        raise ValueError(f"the vision predictor's reply does not fit {count} image(s)")
    images, start = [], 0
    for item, key, number in zip(packed, keys, tiles, strict=True):
        images.append(EncodedImage(item, tuple(rows[start : start + number]), key.decode("ascii")))
        start += number
    return images


def embeds_part(image: EncodedImage) -> dict[str, str]:
    """The chat part that hands ``image`` to a language server (the form vLLM's ``image_embeds`` takes)."""
    return {
        "type": "image_embeds",
        "image_embeds": base64.b64encode(image.packed).decode("ascii"),
        "uuid": image.key,
    }
