"""Generation with the Qwen-VLs: transformers' tokens, alone and in batches, from rows and from features."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from model.data.errors import InputError
from model.data.video import row_media
from model.families.generation import Request, answer_rows, generate
from tests.tiny_qwen import clip, mixed_row, pixels, stock_processor

TOKENS = 10


def rows():
    """Questions about nothing, one image, two images, a video, and a video between images."""
    rng = np.random.default_rng(3)
    kinds = ["", "i", "ii", "v", "ivi"]
    return [mixed_row(f"row-{i}", rng, kind, "42", "What is it? " * (1 + i)) for i, kind in enumerate(kinds)]


def answers(qwen, given, **options):
    return answer_rows(qwen.network, qwen.processor, given, max_new_tokens=TOKENS, **options)


def stock_answer(qwen, row):
    """transformers' own processor, positions and generate."""
    images = row_media(row)
    text = row["messages"][0]["content"].replace("<image>\n", "")
    content = [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]
    processor = stock_processor(qwen.generation)
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    given = processor(text=[prompt], images=images or None, return_tensors="pt")
    ids = qwen.stock.generate(**given, max_new_tokens=TOKENS, do_sample=False)[0, given["input_ids"].shape[1] :]
    return qwen.processor.decode(ids.tolist())


def greedy_without_cache(qwen, sample):
    """Greedy tokens of transformers' network, the whole sequence run anew for each; positions count on from the largest
    of the prompt."""
    ids, positions = list(sample.input_ids), torch.from_numpy(sample.positions)
    grids, patches = torch.from_numpy(sample.media["grids"]), torch.from_numpy(sample.media["patches"])
    media = {"pixel_values_videos": patches, "video_grid_thw": grids}
    for _ in range(TOKENS):
        with torch.no_grad():
            logits = qwen.stock(input_ids=torch.tensor([ids]), position_ids=positions[:, None], **media).logits
        ids.append(int(logits[0, -1].argmax()))
        positions = torch.cat([positions, (positions.max() + 1).expand(3, 1)], dim=1)
    answer = ids[len(sample.input_ids) :]
    eos = qwen.processor.eos_token_id
    return answer[: answer.index(eos)] if eos in answer else answer


def test_answers_about_images_and_text_are_those_of_transformers(qwen):
    given = rows()[:3]
    assert answers(qwen, given) == [stock_answer(qwen, row) for row in given]


def test_answers_about_a_long_video_go_on_behind_its_last_position(qwen):
    """Twelve seconds of 2 x 2 tokens: time reaches further than height, width and the number of tokens say."""
    video = clip(np.random.default_rng(0), 24, 56, 56, fps=1.0)
    messages = [{"role": "user", "content": "<video>\nWhat happens?"}]
    sample = qwen.processor.conversation(messages, [video], generate=True)
    request = Request(messages, qwen.network.encode([video]))
    completion = generate(qwen.network, qwen.processor, [request], TOKENS)[0]
    assert completion.token_ids == greedy_without_cache(qwen, sample)
    assert completion.prompt_tokens == len(sample.input_ids)


def test_neighbours_never_change_an_answer(qwen):
    together = answers(qwen, rows())
    assert together == [answers(qwen, [row])[0] for row in rows()]
    assert together == answers(qwen, rows(), batch_size=2)
    assert len(set(together)) == len(together)


def test_features_give_what_rows_give_and_say_how_they_are_shown(qwen):
    given = rows()
    features = qwen.network.encode_batch([row_media(row, qwen.processor.limits.sampling) for row in given])
    requests = [Request(row["messages"][:-1], found) for row, found in zip(given, features, strict=True)]
    completions = generate(qwen.network, qwen.processor, requests, TOKENS)
    assert [completion.text for completion in completions] == answers(qwen, given)
    video = features[3][0]
    assert video.grid.time == 2
    assert len(video.features) == sum(video.rows_per_tile) == np.prod(video.grid) // 4
    assert len(video.rows_per_tile) == 2
    assert video.deep_stack == (2 if qwen.deep else 0)
    assert video.features.shape[1] == 64 * (1 + video.deep_stack)


def test_equal_images_have_equal_keys(qwen):
    rng = np.random.default_rng(0)
    one, other = (Image.fromarray(pixels(rng, 60, 60)) for _ in range(2))
    first, second, third = qwen.network.encode([one, other, one])
    assert first.key == third.key != second.key
    torch.testing.assert_close(first.features, third.features)
    assert first.weights_version == qwen.network.weights_version != ""


@pytest.mark.parametrize("qwen", ["qwen3_vl", "qwen3_vl_moe"], indirect=True)
def test_the_deep_stack_joins_at_the_prompt(qwen):
    row = rows()[1]
    features = qwen.network.encode(row_media(row))[0]
    flat = features.features.clone()
    flat[:, 64:] = 0
    request = Request(row["messages"][:-1], [replace(features, features=flat)])
    assert generate(qwen.network, qwen.processor, [request], TOKENS)[0].text != answers(qwen, [row])[0]


def test_each_request_has_its_own_limit_and_may_be_cancelled(qwen):
    requests = [Request([{"role": "user", "content": text}]) for text in ("one", "two", "three")]
    free = generate(qwen.network, qwen.processor, requests, TOKENS)
    limited = generate(qwen.network, qwen.processor, requests, [2, TOKENS, TOKENS], lambda i, *_: i != 1)
    assert limited[0].token_ids == free[0].token_ids[:2]
    assert limited[1].finish_reason == "cancelled"
    assert limited[2].token_ids == free[2].token_ids


def test_features_that_do_not_fit_the_placeholders_are_refused(qwen):
    rng = np.random.default_rng(0)
    image, video = qwen.network.encode([Image.fromarray(pixels(rng, 60, 60)), clip(rng, 4, 60, 60)])
    messages = [{"role": "user", "content": "<image>\n<video>\nBoth"}]
    for features in ([image], [image, image], []):
        with pytest.raises(InputError, match="placeholders"):
            generate(qwen.network, qwen.processor, [Request(messages, features)], 2)
    with pytest.raises(InputError, match="order of their placeholders"):
        generate(qwen.network, qwen.processor, [Request(messages, [video, image])], 2)


def test_a_prompt_beyond_the_context_is_refused(qwen):
    request = Request([{"role": "user", "content": "x" * 2048}])
    with pytest.raises(InputError, match="the model's context is 2048"):
        generate(qwen.network, qwen.processor, [request], 2)


def test_a_step_answers_and_scores_rows_of_any_family(qwen, tmp_path):
    from components.answering import load_answerer
    from components.context import no_progress
    from components.scoring_table import score_model_on_sample

    settings = {"precision": "float32", "threads": 1, "batch_size": 2, "max_new_tokens": TOKENS}
    answerer = load_answerer(qwen.directory, **settings, state_dir=tmp_path, progress=no_progress)
    assert answerer.answer(rows(), "evaluate") == answers(qwen, rows())
    table = score_model_on_sample(qwen.network, qwen.processor, rows(), max_new_tokens=2, bootstrap=10)
    assert table["read"].n == len(rows())
