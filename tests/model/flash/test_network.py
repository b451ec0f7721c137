"""The network against transformers' own InternVL holding the same weights."""

import json

import numpy as np
import pytest
import torch

from model.data.errors import InputError
from model.families.generation import Request, generate
from model.flash.build import build_model
from model.flash.checkpoint import load_model, load_processor, save_model, weights_version
from model.flash.network import normalise
from model.flash.projectors import pixel_unshuffle
from tests.tiny import picture, random_model, tiny_config

GRIDS = {"1 tile": [(1, 1)], "5 tiles": [(2, 2)], "13 tiles": [(4, 3)], "two images": [(2, 1), (1, 1)], "text only": []}


@pytest.fixture(scope="module")
def stock(tiny_directory):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(tiny_directory, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def stock_processor(tiny_directory):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_directory)


def conversation(processor, grids):
    rng = np.random.default_rng(7)
    images = [picture(rng, *grid) for grid in grids]
    messages = [{"role": "user", "content": "<image>\n" * len(images) + "What is this?"}]
    return messages, images, processor.conversation(messages, images, generate=True)


@pytest.mark.parametrize("case", GRIDS)
def test_logits_equal_those_of_transformers(tiny_model, stock, case):
    model, processor = tiny_model
    _, _, sample = conversation(processor, GRIDS[case])
    ids = torch.tensor([sample.input_ids])
    tiles = torch.from_numpy(sample.media["tiles"])
    pixels = normalise(tiles) if len(tiles) else None
    with torch.inference_mode():
        ours = model(ids, torch.ones_like(ids), tiles)
        theirs = stock(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("case", GRIDS)
def test_saved_directory_gives_the_same_greedy_tokens_in_transformers(tiny_model, stock, stock_processor, case):
    model, processor = tiny_model
    messages, images, _ = conversation(processor, GRIDS[case])
    parts = [{"type": "image"}] * len(images) + [{"type": "text", "text": "What is this?"}]
    text = stock_processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    # transformers gives every image all of max_patches; we share them as the released training code does.
    shared = {"max_patches": processor.tiling.shared_by(len(images)).max_tiles} if images else {}
    inputs = stock_processor(text=[text], images=images or None, return_tensors="pt", **shared)
    request = Request(messages, [f.features for f in model.encode(images)])
    ours = generate(model, processor, [request], 8)[0]
    theirs = stock.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    eos = processor.eos_token_id
    assert len(set(theirs)) > 1, "a constant answer would show nothing"
    assert ours.token_ids == (theirs[: theirs.index(eos)] if eos in theirs else theirs)


@pytest.mark.parametrize("ratio", [0.5, 0.25])
def test_pixel_unshuffle_is_the_row_major_gather(ratio):
    x = torch.arange(2 * 8 * 8 * 3, dtype=torch.float32).reshape(2, 8, 8, 3)
    k = int(1 / ratio)
    out = pixel_unshuffle(x, ratio)
    for row in range(8 // k):
        for column in range(8 // k):
            block = x[:, row * k : (row + 1) * k, column * k : (column + 1) * k].reshape(2, -1)
            assert torch.equal(out[:, row, column], block)


def test_a_quarter_is_not_a_half_twice():
    x = torch.randn(1, 8, 8, 3)
    assert not torch.equal(pixel_unshuffle(x, 0.25), pixel_unshuffle(pixel_unshuffle(x, 0.5), 0.5))


def test_encode_then_generate_is_the_model_in_one_piece(tiny_directory, tiny_model):
    whole, processor = tiny_model
    vision, language = load_model(tiny_directory, "vision"), load_model(tiny_directory, "language")
    assert vision.language_model is None
    assert language.vision_tower is None
    messages, images, sample = conversation(processor, GRIDS["two images"])
    features = vision.encode(images)
    assert [f.rows_per_tile for f in features] == [[16] * 3, [16]]
    halves = generate(language, processor, [Request(messages, [f.features for f in features])], 8)[0]
    ids = sample.input_ids
    with torch.inference_mode():
        for _ in range(8):
            tokens = torch.tensor([ids])
            ids = [
                *ids,
                int(whole(tokens, torch.ones_like(tokens), torch.from_numpy(sample.media["tiles"]))[0, -1].argmax()),
            ]
    answer = ids[len(sample.input_ids) :]
    eos = processor.eos_token_id
    assert halves.token_ids == (answer[: answer.index(eos)] if eos in answer else answer)


def test_a_batch_neighbour_never_changes_an_answer(tiny_model):
    model, processor = tiny_model
    requests = []
    for number, grids in enumerate(GRIDS.values()):
        messages, images, _ = conversation(processor, grids)
        messages = [{"role": "user", "content": messages[0]["content"] + " now" * number}]
        requests.append(Request(messages, [f.features for f in model.encode(images)]))
    together = generate(model, processor, requests, 12)
    alone = [generate(model, processor, [request], 12)[0] for request in requests]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert [c.prompt_tokens for c in together] == [c.prompt_tokens for c in alone]


def test_a_cancelled_request_stops_and_leaves_the_others_alone(tiny_model):
    model, processor = tiny_model
    requests = [Request([{"role": "user", "content": text}]) for text in ("one", "two")]
    expected = generate(model, processor, [requests[1]], 6)[0]
    seen = []

    def on_token(index, token, text):
        seen.append((index, token, text))
        return not (index == 0 and sum(i == 0 for i, _, _ in seen) == 2)

    first, second = generate(model, processor, requests, 6, on_token)
    assert (first.finish_reason, len(first.token_ids)) == ("cancelled", 2)
    assert second.token_ids == expected.token_ids
    assert [t for i, t, _ in seen if i == 1] == second.token_ids


def test_equal_images_have_equal_keys_and_other_weights_another(tiny_directory, tiny_model, tokenizer, tmp_path, rng):
    image = picture(rng)
    model = load_model(tiny_directory, "vision")
    first, second = model.encode([image])[0], model.encode([image.copy()])[0]
    assert first.key == second.key
    assert first.weights_version == weights_version(tiny_directory)
    other, processor = random_model(tokenizer, seed=1)
    save_model(other, processor, tmp_path / "other")
    assert load_model(tmp_path / "other", "vision").encode([image])[0].key != first.key


def test_saving_what_was_loaded_gives_the_same_bytes(tiny_directory, tmp_path):
    from model.data.artifact import payload_sha256

    save_model(load_model(tiny_directory), load_processor(tiny_directory), tmp_path / "again")
    assert payload_sha256(tmp_path / "again") == payload_sha256(tiny_directory)


def test_tied_embeddings_are_stored_once_and_load_in_each_half(tokenizer, tmp_path):
    model, processor = random_model(tokenizer, tie_word_embeddings=True)
    save_model(model, processor, tmp_path / "tied")
    from safetensors import safe_open

    with safe_open(tmp_path / "tied" / "model-language.safetensors", "pt") as stream:
        assert "language_model.lm_head.weight" not in stream.keys()  # noqa: SIM118
    language = load_model(tmp_path / "tied", "language").language_model
    assert language.lm_head.weight is language.model.embed_tokens.weight
    assert torch.equal(language.lm_head.weight, model.language_model.lm_head.weight)


def test_published_sizes_have_the_published_tile_budget():
    from model.flash.config import ModelConfig

    assert ModelConfig().rows_per_tile == 256


@pytest.mark.parametrize(
    "missing",
    [
        "config.json",
        "tokenizer.json",
        "model-vision.safetensors",
        "model-language.safetensors",
        "processor_config.json",
    ],
)
def test_half_written_model_directory_is_refused_naming_the_file(tiny_directory, tmp_path, missing):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_directory, broken)
    (broken / missing).unlink()
    with pytest.raises(InputError, match=missing):
        load_model(broken)


def test_truncated_weights_are_refused_naming_the_file(tiny_directory, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_directory, broken)
    shard = broken / "model-language.safetensors"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(InputError, match="model-language"):
        load_model(broken)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "processor_config.json", "fovea.json"])
@pytest.mark.parametrize("left", ["half", "{}"])
def test_a_truncated_or_empty_configuration_is_refused_in_one_line(tiny_directory, tmp_path, name, left):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_directory, broken)
    whole = (broken / name).read_text()
    (broken / name).write_text(whole[: len(whole) // 2] if left == "half" else left)
    with pytest.raises(InputError, match=str(broken)) as caught:
        load_processor(broken)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        {"hidden_act": "none such"},
        {"hidden_size": "64"},
        {"num_attention_heads": 0},
        {"rope_parameters": {"rope_type": "x"}},
    ],
)
def test_a_configuration_of_no_network_is_refused_in_one_line(tiny_directory, tmp_path, text):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_directory, broken)
    config = json.loads((broken / "config.json").read_text())
    config["text_config"] |= text
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"broken/config\.json: ") as caught:
        load_model(broken)
    assert "\n" not in str(caught.value)


def test_missing_directory_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        load_model(tmp_path / "nowhere")


def test_placeholders_must_match_the_images(tiny_model, rng):
    _, processor = tiny_model
    with pytest.raises(InputError, match="2 <image> placeholders for 1 images"):
        processor.conversation([{"role": "user", "content": "<image> <image>"}], [picture(rng)])


def test_a_missing_pretrained_half_names_the_path_and_the_command(tokenizer, tmp_path):
    config = tiny_config().model_copy(update={"language_checkpoint": tmp_path / "Qwen3-8B"})
    with pytest.raises(InputError, match=r"Qwen3-8B.*hf download"):
        build_model(config, tokenizer, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"attn_implementation": "someone/kernels"},
            "attn_implementation is 'someone/kernels', code that is not run here",
        ),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
    ],
)
def test_a_pretrained_half_that_cannot_be_built_is_refused(tokenizer, tmp_path, change, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"} | change))
    config = tiny_config().model_copy(update={"language_checkpoint": tmp_path})
    with pytest.raises(InputError, match=message):
        build_model(config, tokenizer, seed=0)


def test_pretrained_halves_are_taken_and_new_tokens_start_at_the_mean(tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, Qwen3Config

    shape = tiny_config().language.model_dump(exclude={"extra", "rope_theta", "model_type", "vocab_size", "yarn"})
    small = Qwen3Config(**shape, vocab_size=250, rope_theta=1e6)
    AutoModelForCausalLM.from_config(small).save_pretrained(tmp_path / "language")
    config = tiny_config().model_copy(update={"language_checkpoint": tmp_path / "language"})
    model, _ = build_model(config, tokenizer, seed=0)
    given = AutoModelForCausalLM.from_pretrained(tmp_path / "language", dtype=torch.float32)
    rows = model.language_model.get_input_embeddings().weight
    assert len(rows) == tokenizer.get_vocab_size()
    assert torch.equal(rows[:250], given.get_input_embeddings().weight)
    torch.testing.assert_close(rows[250:], given.get_input_embeddings().weight.mean(0).expand(len(rows) - 250, -1))


def test_requests_encoded_together_have_the_features_they_have_alone(tiny_model, rng):
    model, _ = tiny_model
    requests = [[picture(rng)], [], [picture(rng, 2, 2), picture(rng, 2, 1)]]
    together = model.encode_batch(requests)
    for images, encoded_images in zip(requests, together, strict=True):
        alone = model.encode(images)
        assert [e.rows_per_tile for e in encoded_images] == [e.rows_per_tile for e in alone]
        assert [e.key for e in encoded_images] == [e.key for e in alone]
        for one, other in zip(encoded_images, alone, strict=True):
            torch.testing.assert_close(one.features, other.features, atol=1e-5, rtol=1e-5)


def test_a_batch_never_sends_more_tiles_through_the_tower_than_its_bound(tiny_model, rng, monkeypatch):
    model, _ = tiny_model
    requests = [[picture(rng, 2, 2)], [picture(rng, 2, 1)], [picture(rng)]]
    whole = model.encode_batch(requests)
    sizes = []
    hook = model.vision_tower.register_forward_pre_hook(
        lambda _, __, given: sizes.append(len(given["pixel_values"])), with_kwargs=True
    )
    monkeypatch.setattr("model.flash.encoding.TILES_AT_ONCE", 3)
    try:
        parts = model.encode_batch(requests)
    finally:
        hook.remove()
    assert sizes == [3, 3, 3]
    for (one,), (other,) in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.features, other.features, atol=1e-5, rtol=1e-5)


def test_media_that_are_not_in_the_row_are_refused_by_name(tiny_model):
    from model.flash.images import row_images
    from tests.tiny import question_row

    row = question_row("far", [], "1")
    row["media"] = [{"kind": "image", "bytes": None, "uri": "s3://bucket/a.png"}]
    with pytest.raises(InputError, match=r"row far: media\[0\]: only images whose bytes are in the row"):
        row_images(row)
