"""Qwen images and videos: sizes, token counts and patches, against transformers' processors."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from model.data.errors import InputError
from model.families.qwen_images import Patching, PixelRange, VideoBudget, resize_clip, smart_resize, to_patches
from tests.tiny_qwen import pixels

HALF = (0.5, 0.5, 0.5)
PATCHINGS = [Patching(), Patching(patch=16, mean=HALF, std=HALF)]
SIDES = st.integers(1, 5000)


def tokens(width, height, factor, most):
    new_height, new_width = smart_resize(height, width, factor, PixelRange(4 * factor**2, most * factor**2))
    return new_height * new_width // factor**2


@pytest.mark.parametrize(
    ("width", "height", "published"),
    [
        (640, 360, (299, 299, 220)),
        (1280, 720, (1196, 1196, 880)),
        (1920, 1080, (2691, 1222, 2040)),
        (3840, 2160, (10549, 1222, 8160)),
        (2339, 1654, (4956, 1260, 3796)),
    ],
)
def test_common_images_have_the_published_token_counts(width, height, published):
    assert (tokens(width, height, 28, 16384), tokens(width, height, 28, 1280), tokens(width, height, 32, 16384)) == (
        published
    )


def test_the_published_sizes():
    hd = PixelRange(3136, 16384 * 28**2)
    assert smart_resize(360, 640, 28, hd) == (364, 644)
    assert smart_resize(1080, 1920, 28, hd) == (1092, 1932)
    assert smart_resize(1080, 1920, 28, PixelRange(3136, 1280 * 28**2)) == (728, 1316)
    assert smart_resize(1080, 1920, 32, PixelRange(4096, 16384 * 32**2)) == (1088, 1920)


def test_half_a_token_rounds_to_even():
    wide = PixelRange(1, 10**9)
    assert smart_resize(70, 98, 28, wide) == (56, 112)  # 2.5 and 3.5 tokens


@settings(max_examples=300, deadline=None)
@given(SIDES, SIDES, st.sampled_from([28, 32]), st.integers(1, 300), st.integers(0, 3000))
def test_images_are_resized_as_transformers_resizes_them(height, width, factor, least, more):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as oracle

    assume(max(height, width) <= 200 * min(height, width))
    bounds = PixelRange(least * factor**2, (least + more) * factor**2)
    assert smart_resize(height, width, factor, bounds) == oracle(height, width, factor, *bounds)


@settings(max_examples=300, deadline=None)
@given(st.integers(2, 800), SIDES, SIDES, st.integers(1, 300), st.integers(0, 30000))
def test_clips_are_resized_as_transformers_resizes_them(frames, height, width, least, more):
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as oracle

    assume(max(height, width) <= 100 * min(height, width))
    bounds = PixelRange(least * 32**2, (least + more) * 32**2)
    ours = resize_clip(frames, height, width, PATCHINGS[1], bounds)
    assert ours == oracle(frames, height, width, 2, 32, *bounds)


@given(SIDES, SIDES, st.sampled_from([28, 32]))
def test_a_rotated_image_has_as_many_tokens(height, width, factor):
    assume(max(height, width) <= 200 * min(height, width))
    bounds = PixelRange(4 * factor**2, 1280 * factor**2)
    assert smart_resize(height, width, factor, bounds) == smart_resize(width, height, factor, bounds)[::-1]


def test_strips_are_refused_in_one_line():
    bounds = PixelRange(3136, 10**6)
    assert smart_resize(10, 2000, 28, bounds)
    with pytest.raises(InputError, match=r"2001 x 10 pixels: the aspect ratio 200 is above 200"):
        smart_resize(10, 2001, 28, bounds)
    with pytest.raises(InputError, match="aspect ratio"):
        resize_clip(4, 3000, 10, PATCHINGS[1], bounds)


@pytest.mark.parametrize("cap", [False, True])
@pytest.mark.parametrize("together", [False, True], ids=["a frame's budget", "a clip's budget"])
def test_video_frames_have_transformers_budget(together, cap):
    import torch
    from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
    from transformers.image_utils import SizeDict

    patching = PATCHINGS[together]
    bounds = PixelRange(4 * patching.factor**2, (400 if together else 60) * patching.factor**2)
    oracle = (Qwen3VLVideoProcessor if together else Qwen2VLVideoProcessor)(max_video_tokens=20 if together else 300)
    budget = VideoBudget(bounds, together, oracle.max_video_tokens if cap else None)
    for frames in (2, 5, 31):
        for height, width in ((200, 280), (90, 60), (40, 390)):
            resized = oracle.resize(
                torch.zeros(1, frames, 3, height, width, dtype=torch.uint8),
                size=SizeDict(shortest_edge=bounds.least, longest_edge=bounds.most),
                resample=oracle.resample,
                factor=patching.factor,
                temporal_factor=patching.temporal,
                cap_pixels_per_frame=cap,
            )
            assert budget.size(frames, height, width, patching) == tuple(resized.shape[-2:])


@pytest.mark.parametrize("patching", PATCHINGS, ids=["patch14", "patch16"])
@pytest.mark.parametrize(("width", "height"), [(300, 201), (90, 333), (28, 30), (1000, 700)])
def test_image_patches_are_those_of_transformers(rng, patching, width, height):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    bounds = PixelRange(4 * patching.factor**2, 200 * patching.factor**2)
    image = Image.fromarray(pixels(rng, width, height))
    oracle = Qwen2VLImageProcessorPil(
        size={"shortest_edge": bounds.least, "longest_edge": bounds.most},
        patch_size=patching.patch,
        image_mean=patching.mean,
        image_std=patching.std,
    )(image, return_tensors="np")
    size = smart_resize(height, width, patching.factor, bounds)
    patches = to_patches([image], *size, patching)
    assert [list(patching.grid(1, *size))] == oracle["image_grid_thw"].tolist()
    assert patches.dtype == np.float32
    # Both resize with Pillow to whole pixel values: only the last bit of the normalisation differs.
    np.testing.assert_allclose(patches, oracle["pixel_values"], rtol=0, atol=1e-6)


def stock_video(frames, patching, together, bounds):
    from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    kind = Qwen3VLVideoProcessor if together else Qwen2VLVideoProcessor
    return kind(
        size={"shortest_edge": bounds.least, "longest_edge": bounds.most},
        patch_size=patching.patch,
        image_mean=list(patching.mean),
        image_std=list(patching.std),
        do_sample_frames=False,
        cap_pixels_per_frame=False,
    )(np.stack(frames).transpose(0, 3, 1, 2), return_tensors="np")


@pytest.mark.parametrize("together", [False, True], ids=["a frame's budget", "a clip's budget"])
@pytest.mark.parametrize("frames", [4, 5])
@pytest.mark.parametrize("resized", [False, True])
def test_video_patches_are_those_of_transformers(rng, together, frames, resized):
    patching = PATCHINGS[together]
    height, width = (301, 199) if resized else (4 * patching.factor, 6 * patching.factor)
    shots = [pixels(rng, width, height) for _ in range(frames)]
    area = patching.factor**2
    bounds = PixelRange(8 * area, (300 if together else 60) * area)
    oracle = stock_video(shots, patching, together, bounds)
    size = VideoBudget(bounds, together).size(frames, height, width, patching)
    patches = to_patches([Image.fromarray(shot) for shot in shots], *size, patching)
    assert [list(patching.grid(frames, *size))] == oracle["video_grid_thw"].tolist()
    # torchvision's bicubic rounds some values of noise to the neighbouring pixel value; without resizing none.
    level = 1 / 255 / min(patching.std)
    np.testing.assert_allclose(patches, oracle["pixel_values_videos"], rtol=0, atol=1.01 * level if resized else 2e-6)


def test_a_video_of_one_frame_is_an_image_twice(rng):
    patching = PATCHINGS[0]
    patches = to_patches([Image.fromarray(pixels(rng, 56, 28))], 28, 56, patching)
    assert patches.shape == (8, 1176)
    by_frame = patches.reshape(8, 3, 2, 14, 14)
    np.testing.assert_array_equal(by_frame[:, :, 0], by_frame[:, :, 1])
    assert patching.grid(1, 28, 56) == (1, 2, 4)
    assert patching.tokens(patching.grid(1, 28, 56)) == 2
