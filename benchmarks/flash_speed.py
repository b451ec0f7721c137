"""Time to first token and tokens/s of a network that routes against the same network at full resolution.

Both sides see the same images of 1, 5 and 10 tiles with the same random weights: as many as InternVL3.5 makes of 448,
896 and 1344 pixels a side. A shape with smaller tiles sees fewer pixels; ``details`` has both numbers. Random weights
route at random, so the number of compressed tiles is fixed, through the budget of tokens: over every three requests two
thirds of the tiles, which leaves half of the visual tokens. Our side pays for its router.

- time to first token: cutting one image into tiles, tower, router, projectors, prefill and the head, for one request;
- tokens/s: new tokens of a batch of requests over the time of the whole batch, from its images to its last token.

Without a GPU: the shapes of the profile ``tiny``, whose tiles have 56 pixels and 16 tokens, in float32; and the same
tower under a language model that spends on a tile as many times the tower's work as that of InternVL3.5-8B does. With
one: the shapes of InternVL3.5-1B and -8B in bfloat16. ``ratio`` is the time to first token at full resolution over
that of the routing network, the geometric mean over the three sizes, of the last shape; ``details`` has all.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models

from benchmarks.harness import Result, arguments, median, report, result
from model.data.schema import IMG_CONTEXT, IMG_END, IMG_START, TURN_END
from model.families.generation import Request, generate
from model.flash.build import build_model
from model.flash.config import LanguageConfig, ModelConfig
from model.flash.decisions import COMPRESSION, Decision
from model.flash.encoding import show_requests
from model.flash.images import tile_image
from model.flash.network import FlashModel
from model.flash.processor import FlashProcessor
from pipelines.profile import load_profile

AIM = 1.0
GRIDS = (1, 2, 3)
"""Tiles a side of a square image; more than one bring a thumbnail."""
PUBLISHED_TILE = 448
"""Pixels a side of a tile of InternVL3.5."""
CYCLE = 3
"""Requests over which two thirds of the tiles are compressed."""
SIDES = ("full", "flash")
_QUESTION = "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16"
_NEW_TOKENS, _BATCH = 16, 6
_VOCABULARY = 151_936


def tiles_of(side: int) -> int:
    """Tiles of a square image of so many tiles a side."""
    return side**2 + (side > 1)


def label(side: int) -> str:
    """What an image is called in the results: by its tiles, the same for every shape."""
    return "1 tile" if side == 1 else f"{tiles_of(side)} tiles"


@dataclass(frozen=True)
class Measured:
    """Values of one shape and image size, one a round, by side.

    Attributes:
        first: seconds to the first token.
        rate: new tokens a second.
        kept: visual tokens of the routing side over those of the other.
        pixels: a side of the image.
    """

    first: dict[str, list[float]]
    rate: dict[str, list[float]]
    kept: float
    pixels: int


def shapes() -> dict[str, ModelConfig]:
    """Shapes to measure on this machine, the one that ``ratio`` is about last."""
    if torch.cuda.is_available():
        return {name: published(name) for name in ("1b", "8b")}
    tiny = load_profile("tiny").pretrain.model.model_copy(update={"max_tiles": 12})
    language = {"hidden_size": 512, "num_hidden_layers": 7, "num_attention_heads": 8, "intermediate_size": 1536}
    wide = LanguageConfig(**(tiny.language.model_dump() | language))
    return {"balanced as 8b": tiny.model_copy(update={"language": wide}), "tiny": tiny}


def published(size: str) -> ModelConfig:
    """The shape of an InternVL3.5, without the weights it starts from, with as many words as Qwen3 has."""
    shape = load_profile(f"internvl3_5_{size}").pretrain.model
    language = shape.language.model_copy(update={"vocab_size": _VOCABULARY})
    return shape.model_copy(update={"language": language, "vision_checkpoint": None, "language_checkpoint": None})


def network_of(shape: ModelConfig) -> tuple[FlashModel, FlashProcessor]:
    """A network with random weights that never ends its answers, and a tokenizer of numbered words."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(512)}, unk_token="w0"))
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (IMG_START, IMG_END, IMG_CONTEXT, TURN_END)])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        network, processor = build_model(shape, tokenizer, seed=0)
    network.add_flash(0)
    with torch.no_grad():
        network.head.weight[processor.eos_token_id] = 0  # never the largest logit of all
    if device.type == "cuda":
        network.to(torch.bfloat16)
    return network.eval(), processor


def decisions(tiles: int, rows: int) -> list[Decision]:
    """A budget for each request of a cycle: together two thirds of their tiles are compressed."""
    saved = rows - rows // COMPRESSION
    return [
        Decision("budget", token_budget=tiles * rows - (2 * tiles + place) // CYCLE * saved) for place in range(CYCLE)
    ]


@torch.inference_mode()
def requests_of(
    network: FlashModel, images: Sequence[Image.Image], chosen: Sequence[Decision | None]
) -> tuple[list[Request], int]:
    """The requests about these images, each routed by its own decision, and their visual tokens."""
    cut = [tile_image(image, network.tiling) for image in images]
    patches_NPD = network.patches(torch.from_numpy(np.concatenate(cut)))
    encoded = show_requests(network, patches_NPD, [[len(tiles)] for tiles in cut], chosen)
    messages = [{"role": "user", "content": f"<image>\n{_QUESTION}"}]
    made = [Request(messages, [features]) for ((features, _),) in encoded]
    return made, sum(sum(rows_N) for ((_, rows_N),) in encoded)


def timed(
    network: FlashModel,
    processor: FlashProcessor,
    images: Sequence[Image.Image],
    chosen: Sequence[Decision | None],
    new_tokens: int,
) -> tuple[float, int, int]:
    """Seconds from images to the last token, new tokens, visual tokens."""
    _wait()
    started = time.perf_counter()
    made, visual = requests_of(network, images, chosen)
    completions = generate(network, processor, made, new_tokens)
    _wait()
    return time.perf_counter() - started, sum(len(each.token_ids) for each in completions), visual


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(network: FlashModel, processor: FlashProcessor, side: int, rounds: int) -> Measured:
    """Both sides of one image size; they take turns, so that whatever else the machine does slows both."""
    rng = np.random.default_rng(side)
    pixels = side * processor.tiling.tile
    images = [Image.fromarray(rng.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)) for _ in range(_BATCH)]
    budgets = decisions(tiles_of(side), network.rows_per_tile)
    chosen: dict[str, list[Decision | None]] = {
        "full": [None] * _BATCH,
        "flash": [budgets[number % CYCLE] for number in range(_BATCH)],
    }
    first: dict[str, list[float]] = {name: [] for name in SIDES}
    rate: dict[str, list[float]] = {name: [] for name in SIDES}
    visual = dict.fromkeys(SIDES, 0)
    for number in range(rounds + 1):
        for name in SIDES if number % 2 else SIDES[::-1]:
            alone = [
                timed(network, processor, images[place : place + 1], chosen[name][place : place + 1], 1)[0]
                for place in range(CYCLE)
            ]
            seconds, tokens, visual[name] = timed(network, processor, images, chosen[name], _NEW_TOKENS)
            if number:  # the first round is not measured: memory is touched, kernels are chosen
                first[name].append(statistics.mean(alone))
                rate[name].append(tokens / seconds)
    return Measured(first, rate, visual["flash"] / visual["full"], pixels)


def ratio(measured: Measured) -> tuple[float, float]:
    """Gain in time to first token and in tokens/s: medians over the rounds of the ratio of both sides."""
    first = [full / flash for full, flash in zip(measured.first["full"], measured.first["flash"], strict=True)]
    rate = [flash / full for full, flash in zip(measured.rate["full"], measured.rate["flash"], strict=True)]
    return median(first), median(rate)


def line_of(measured: Measured, side: int) -> dict[str, float]:
    """What the results say of one image size of one shape."""
    gains = ratio(measured)
    line: dict[str, float] = {"pixels": measured.pixels, "published_pixels": side * PUBLISHED_TILE}
    line |= {f"first_token_ms_{name}": round(1000 * median(measured.first[name]), 3) for name in SIDES}
    line |= {f"tokens_per_s_{name}": round(median(measured.rate[name]), 2) for name in SIDES}
    line |= {"first_token_gain": round(gains[0], 3), "tokens_per_s_gain": round(gains[1], 3)}
    return line | {"visual_tokens_kept": round(measured.kept, 4)}


def run(quick: bool) -> Result:
    """Measure every shape at every size."""
    rounds = 2 if quick else 9
    details: dict[str, dict[str, dict[str, float]]] = {}
    found: dict[int, Measured] = {}
    for name, shape in shapes().items():
        network, processor = network_of(shape)
        details[name] = {}
        for side in GRIDS:
            found[side] = measure(network, processor, side, rounds)
            details[name][label(side)] = line = line_of(found[side], side)
            print(f"{name}, {label(side)}: " + ", ".join(f"{key} {value}" for key, value in line.items()), flush=True)
        del network
    gains = [ratio(measured)[0] for measured in found.values()]
    ours, peer = ([1000 * second for second in found[GRIDS[-1]].first[name]] for name in ("flash", "full"))
    return result(
        "flash_speed",
        f"ms to the first token at {label(GRIDS[-1])}",
        ours,
        peer,
        ratio=prod(gains) ** (1 / len(gains)),
        aim=AIM,
        details={"shapes": details, "new_tokens": _NEW_TOKENS, "batch": _BATCH, "threads": torch.get_num_threads()},
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    options = arguments(__doc__.splitlines()[0], argv)
    report(run(options.quick), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
