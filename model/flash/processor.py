"""Text and images to model inputs. Imports neither torch nor transformers."""

import json
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from model.data.chat import Segment, Template, detect_template, end_of_turn, render_chat
from model.data.errors import InputError
from model.data.schema import IMAGE_PLACEHOLDER, IMG_CONTEXT, IMG_END, IMG_START, Row, reserved_word
from model.families.interface import Sample, Size
from model.flash.compression import compress_sample
from model.flash.frames import decode_media, expand_videos, media_sizes
from model.flash.images import Tiling, count_tiles, reencode_jpeg, tile_image
from model.flash.original import original_tiling, rows_per_tile

if TYPE_CHECKING:
    from model.data.video import Video

# The defaults of the published checkpoints, which carry no fovea.json.
INTERNVL_SYSTEM_PROMPT = (
    "\u4f60\u662f\u4e66\u751f\u00b7\u4e07\u8c61\uff0c\u82f1\u6587\u540d\u662fInternVL\uff0c"
    "\u662f\u7531\u4e0a\u6d77\u4eba\u5de5\u667a\u80fd\u5b9e\u9a8c\u5ba4\u3001\u6e05\u534e\u5927\u5b66"
    "\u53ca\u591a\u5bb6\u5408\u4f5c\u5355\u4f4d\u8054\u5408\u5f00\u53d1\u7684\u591a\u6a21\u6001"
    "\u5927\u8bed\u8a00\u6a21\u578b\u3002"
)
HARMONY_SYSTEM_PROMPT = (
    "You are InternVL, a large language model trained by Shanghai AI Laboratory.\n"
    "Knowledge cutoff: 2024-06\nCurrent date: 2025-08-06\n\nReasoning: low\n\n"
    "# Valid channels: final. Channel must be included for every message."
)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FlashProcessor:
    """Tokenizer, tiling and chat rendering of one model directory.

    Every special id is looked up in the tokenizer: published checkpoints differ in them.
    """

    tokenizer: Tokenizer
    tiling: Tiling
    rows_per_tile: int
    system_prompt: str

    @property
    def image_token_id(self) -> int:
        return self.special_id(IMG_CONTEXT)

    @property
    def eos_token_id(self) -> int:
        return self.special_id(end_of_turn(self.template))

    @property
    def template(self) -> Template:
        """The chat template whose special tokens the tokenizer has."""
        return detect_template(self.tokenizer)

    def render(self, messages: Sequence[dict[str, str]], *, generate: bool = False) -> list[Segment]:
        """Messages as segments of the model's own chat template.

        Raises:
            InputError: a message holds a word that would forge a turn or an image.
        """
        for message in messages:
            if found := reserved_word(message["content"]):
                raise InputError(f"a message holds the reserved word {found}")
        return render_chat(messages, self.system_prompt, generate=generate, template=self.template)

    def special_id(self, token: str) -> int:
        """Id of a special token.

        Raises:
            InputError: the tokenizer does not have it.
        """
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise InputError(f"tokenizer has no token {token}")
        return found

    def image_text(self, rows: int) -> str:
        """The expansion of one ``<image>`` whose features have ``rows`` rows."""
        return IMG_START + IMG_CONTEXT * rows + IMG_END

    def tokenize(self, segments: Sequence[Segment], rows_per_image: Sequence[int]) -> tuple[list[int], list[bool]]:
        """Expand placeholders and tokenise.

        Raises:
            InputError: the number of ``<image>`` placeholders differs from the number of images.
        """
        placeholders = sum(segment.text.count(IMAGE_PLACEHOLDER) for segment in segments)
        if placeholders != len(rows_per_image):
            raise InputError(f"{placeholders} {IMAGE_PLACEHOLDER} placeholders for {len(rows_per_image)} images")
        rows = iter(rows_per_image)
        input_ids: list[int] = []
        trained: list[bool] = []
        for text, is_trained in segments:
            first, *others = text.split(IMAGE_PLACEHOLDER)
            expanded = first + "".join(self.image_text(next(rows)) + other for other in others)
            ids = self.tokenizer.encode(expanded, add_special_tokens=False).ids
            input_ids += ids
            trained += [is_trained] * len(ids)
        return input_ids, trained

    def conversation(
        self,
        messages: Sequence[dict[str, str]],
        media: "Sequence[Image.Image | Video]",
        *,
        generate: bool = False,
        row_id: str = "",
    ) -> Sample:
        """Render, tile and tokenise one conversation; a video is a line and a tile for every frame.

        Raises:
            InputError: placeholders and media differ in number.
        """
        messages, pictures = expand_videos(messages, media, self.tiling)
        tiles = [tile_image(image, tiling) for image, tiling in pictures]
        side = self.tiling.tile
        together = np.concatenate(tiles) if tiles else np.zeros((0, side, side, 3), np.uint8)
        segments = self.render(messages, generate=generate)
        input_ids, trained = self.tokenize(segments, [len(cut) * self.rows_per_tile for cut in tiles])
        return Sample(row_id, input_ids, trained, {"tiles": together}, len(together))

    def sample(self, row: Row, *, jpeg_quality: int | None = None) -> Sample:
        """Decode, tile and tokenise a row, its images (not its videos) re-encoded as JPEG at ``jpeg_quality`` first.

        Raises:
            InputError: names the row whose medium or messages cannot be used.
        """
        media = decode_media(row)
        if jpeg_quality is not None:
            media = [reencode_jpeg(m, jpeg_quality) if isinstance(m, Image.Image) else m for m in media]
        try:
            return self.conversation(row["messages"], media, row_id=row["id"])
        except InputError as error:
            raise InputError(f"row {row['id']}: {error}") from error

    def question(self, row: Row) -> Sample:
        """A row without its answer, an open assistant turn at its end.

        Raises:
            InputError: names the row whose medium or messages cannot be used.
        """
        media = decode_media(row)
        try:
            return self.conversation(row["messages"][:-1], media, generate=True, row_id=row["id"])
        except InputError as error:
            raise InputError(f"row {row['id']}: {error}") from error

    def compress(self, sample: Sample, compressed: Sequence[bool]) -> Sample:
        """The sample with a quarter of the placeholders for tiles that ``compressed`` (one per tile, in order) names.

        Raises:
            ValueError: it is compressed already, or does not have as many tiles.
        """
        shape = {"image_token_id": self.image_token_id, "rows_per_tile": self.rows_per_tile}
        return compress_sample(sample, compressed, **shape)

    def prompt(self, messages: Sequence[dict[str, str]], features: Sequence[Sized]) -> Sample:
        """Messages whose images the vision half has seen, an open assistant turn at their end; without tiles.

        ``features`` are the rows of each image in order.

        Raises:
            InputError: a message holds a reserved word, or the number of ``<image>`` placeholders differs from the
                number of images.
        """
        segments = self.render(messages, generate=True)
        input_ids, trained = self.tokenize(segments, [len(rows) for rows in features])
        return Sample("", input_ids, trained, {}, 0)

    def measure(self, row: Row) -> Size:
        """Tokens and tiles of ``sample(row)``; no image is decoded, and one frame of a video.

        Raises:
            InputError: names the row whose medium or messages cannot be used.
        """
        sizes = media_sizes(row)
        try:
            messages, pictures = expand_videos(row["messages"], sizes, self.tiling)
            counts = [count_tiles(*size, tiling) for size, tiling in pictures]
            input_ids, _ = self.tokenize(self.render(messages), [n * self.rows_per_tile for n in counts])
        except InputError as error:
            raise InputError(f"row {row['id']}: {error}") from error
        return Size(len(input_ids), sum(counts))

    def blank_media(self) -> dict[str, np.ndarray]:
        """One black tile."""
        side = self.tiling.tile
        return {"tiles": np.zeros((1, side, side, 3), np.uint8)}

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read ``tokenizer.json`` of a directory.

    Raises:
        InputError: missing or broken.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise InputError(f"{path}: not a tokenizer: {error}") from error


def load_processor(directory: Path) -> FlashProcessor:
    """Read the processor of a model directory.

    Raises:
        InputError: a file is missing or broken.
    """
    config = read_json(directory / "config.json")
    tokenizer = load_tokenizer(directory)
    own = directory / "fovea.json"
    published = HARMONY_SYSTEM_PROMPT if detect_template(tokenizer) == "harmony" else INTERNVL_SYSTEM_PROMPT
    try:
        if config.get("model_type") == "internvl_chat":
            tiling, rows = original_tiling(config), rows_per_tile(config)
        else:
            image = _image_settings(directory)
            tiling = Tiling(image["size"]["height"], image["min_patches"], image["max_patches"])
            rows = config["image_seq_length"]
        system_prompt = read_json(own)["system_prompt"] if own.is_file() else published
        return FlashProcessor(tokenizer, tiling, rows, system_prompt)
    except (KeyError, TypeError) as error:
        raise InputError(f"{directory}: configuration has no {error}") from error


def _image_settings(directory: Path) -> dict[str, Any]:
    """Settings of transformers' image processor: in one file with the rest, or in its own (before transformers 5)."""
    alone = directory / "preprocessor_config.json"
    together = directory / "processor_config.json"
    if alone.is_file() and not (together.is_file() and "image_processor" in read_json(together)):
        return read_json(alone)
    return read_json(together)["image_processor"]


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        InputError: missing, or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value
