"""The Qwen-VL networks against transformers' own: padded, packed, with images, videos and neither."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import load_balancing_loss_func

from model.families.opening import load_network
from model.training.attention import use_varlen_attention
from model.training.batches import pack, pad
from tests.tiny_qwen import clip, pixels

EXACT = {"rtol": 0, "atol": 1e-5}


def image(rng, width=90, height=60):
    return Image.fromarray(pixels(rng, width, height))


def conversation(qwen, media, question="What?", answer="42"):
    kinds = ["<image>\n" if isinstance(medium, Image.Image) else "<video>\n" for medium in media]
    messages = [{"role": "user", "content": "".join(kinds) + question}, {"role": "assistant", "content": answer}]
    return qwen.processor.conversation(messages, media)


def samples(qwen, seed=0):
    """An image, text alone, two images and a video between them, a video longer than it is wide, one large image."""
    rng = np.random.default_rng(seed)
    return [
        conversation(qwen, [image(rng)]),
        conversation(qwen, [], "Who?", "Nobody at all"),
        conversation(qwen, [image(rng), clip(rng, 4, 60, 60), image(rng, 60, 120)], "Compare."),
        conversation(qwen, [clip(rng, 12, 60, 60, fps=1.0)], "When?", "Then"),
        conversation(qwen, [image(rng, 250, 250)], "Where?"),
    ]


def all_kept(batch):
    """The inputs of a batch, every position kept."""
    return replace(batch.inputs, keep=torch.arange(batch.inputs.ids.numel()))


def alone(sample):
    return all_kept(pad([sample], "token", 0))


def states(network, inputs):
    with torch.no_grad():
        return network.hidden(inputs).states


def stock_logits(stock, sample):
    """What transformers makes of a sample whose positions it is told."""
    inputs = alone(sample)
    ids, media = inputs.ids, {}
    if inputs.media:
        grids, patches = inputs.media["grids"], inputs.media["patches"]
        blocks = patches.split(grids.prod(-1).tolist())
        for kind, names in (("image", ("pixel_values", "image")), ("video", ("pixel_values_videos", "video"))):
            mine = [i for i, is_video in enumerate(video_items(stock, sample)) if is_video == (kind == "video")]
            if mine:
                media[names[0]] = torch.cat([blocks[i] for i in mine])
                media[f"{names[1]}_grid_thw"] = grids[mine]
    with torch.no_grad():
        return stock(input_ids=ids, attention_mask=inputs.mask, position_ids=inputs.positions, **media).logits[0]


def video_items(stock, sample):
    """Which images and videos of a sample are videos, by the ids of their placeholders."""
    ids = np.array(sample.input_ids)
    shown = ids[np.isin(ids, [stock.config.image_token_id, stock.config.video_token_id])]
    borders = np.cumsum([0, *(np.prod(sample.media["grids"], axis=-1) // 4)])[:-1]
    return [bool(shown[border] == stock.config.video_token_id) for border in borders]


def test_logits_are_those_of_transformers(qwen):
    for sample in samples(qwen):
        ours = qwen.network.head(states(qwen.network, alone(sample)))
        torch.testing.assert_close(ours, stock_logits(qwen.stock, sample), **EXACT)


@pytest.mark.parametrize("qwen", ["qwen3_vl", "qwen3_vl_moe"], indirect=True)
def test_logits_of_a_video_are_those_that_transformers_finds_its_own_positions_for(qwen):
    sample = samples(qwen)[3]
    inputs = alone(sample)
    with torch.no_grad():
        stock = qwen.stock(
            input_ids=inputs.ids,
            attention_mask=inputs.mask,
            pixel_values_videos=inputs.media["patches"],
            video_grid_thw=inputs.media["grids"],
            mm_token_type_ids=2 * (inputs.ids == qwen.network.config.video_token_id).int(),
        )
    ours = qwen.network.head(states(qwen.network, inputs))
    torch.testing.assert_close(ours, stock.logits[0], **EXACT)


def test_padding_and_neighbours_change_nothing(qwen):
    batch = pad(samples(qwen), "token", 0)
    padded = states(qwen.network, all_kept(batch)).view(*batch.inputs.ids.shape, -1)
    for i, sample in enumerate(samples(qwen)):
        expected = states(qwen.network, alone(sample))
        torch.testing.assert_close(padded[i, : len(sample.input_ids)], expected, **EXACT)


def test_a_pack_gives_what_its_samples_give_alone(qwen):
    given = samples(qwen)
    with use_varlen_attention(*qwen.network.parts().language):
        packed = states(qwen.network, all_kept(pack(given, "token")))
    for sample, ours in zip(given, packed.split([len(s.input_ids) for s in given]), strict=True):
        torch.testing.assert_close(ours, states(qwen.network, alone(sample)), **EXACT)


def test_kept_positions_are_those_before_the_targets(qwen):
    given = samples(qwen)
    batch = pad(given, "token", 0)
    assert states(qwen.network, batch.inputs).shape == (sum(sum(s.trained) for s in given), 64)


def test_positions_decide_the_answer(qwen):
    inputs = alone(samples(qwen)[3])
    flat = torch.arange(inputs.ids.shape[1]).expand(3, 1, -1)
    assert not torch.allclose(states(qwen.network, inputs), states(qwen.network, replace(inputs, positions=flat)))


def test_a_blank_item_changes_nothing_and_runs_the_whole_tower(qwen):
    text = samples(qwen)[1]
    batch = pad([text], "token", 0, qwen.processor.blank_media())
    assert batch.inputs.blank
    torch.testing.assert_close(states(qwen.network, all_kept(batch)), states(qwen.network, alone(text)), **EXACT)
    qwen.network.zero_grad()
    qwen.network.hidden(batch.inputs).states.sum().backward()
    for parameter in qwen.network.parts().parameters("vision", "projector"):
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_a_blank_item_may_follow_shown_ones(qwen):
    first = samples(qwen)[0]
    inputs = alone(first)
    blank = {name: torch.from_numpy(array) for name, array in qwen.processor.blank_media().items()}
    media = {name: torch.cat([inputs.media[name], blank[name]]) for name in inputs.media}
    with_blank = states(qwen.network, replace(inputs, media=media, blank=True))
    torch.testing.assert_close(with_blank, states(qwen.network, inputs), **EXACT)


def test_gradients_reach_every_part(qwen):
    qwen.network.zero_grad()
    inputs = pad(samples(qwen), "token", 0).inputs
    qwen.network.head(qwen.network.hidden(inputs).states).logsumexp(-1).sum().backward()
    without = [name for name, p in qwen.network.named_parameters() if p.grad is None or not p.grad.any()]
    # Nothing depends on the biases of keys: softmax takes them out.
    assert [name for name in without if not name.endswith("k_proj.bias")] == []


def test_parts_hold_every_parameter_once(qwen):
    parts = qwen.network.parts()
    held = list(parts.parameters("vision", "projector", "language"))
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in qwen.network.parameters()}
    names = {id(p): name for name, p in qwen.network.named_parameters()}
    assert {"merger" in names[id(p)] for p in parts.parameters("projector")} == {True}
    assert {"merger" in names[id(p)] for p in parts.parameters("vision")} == {False}
    assert all(names[id(p)].startswith(("model.language_model.", "lm_head.")) for p in parts.parameters("language"))


def test_rows_that_do_not_fit_the_placeholders_are_a_bug(qwen):
    inputs = alone(samples(qwen)[0])
    with pytest.raises(ValueError, match="0 visual rows for"):
        qwen.network.hidden(replace(inputs, media={}))


def visual_rows(network, patches, grid):
    with torch.no_grad():
        return network.visual_rows(patches, torch.tensor([grid]))


@pytest.mark.parametrize("qwen", ["qwen2_5_vl"], indirect=True)
def test_windows_of_the_tower_do_not_see_each_other(qwen):
    """12 x 12 patches are 6 x 6 rows: windows of 4 x 4 rows, and what is left of them."""
    patches = torch.randn(144, qwen.processor.patching.width, generator=torch.Generator().manual_seed(0))
    poisoned = patches.clone()
    poisoned[-4:] += 3  # the last row: of the window at the lower right
    tower = qwen.network.vision_tower
    full, tower.fullatt_block_indexes = tower.fullatt_block_indexes, []
    try:
        before, after = (visual_rows(qwen.network, p, (1, 12, 12)).view(6, 6, -1) for p in (patches, poisoned))
    finally:
        tower.fullatt_block_indexes = full
    changed = (before - after).abs().amax(-1) > 1e-6
    assert changed[4:, 4:].all()
    assert not changed[:4].any()
    assert not changed[:, :4].any()
    # The blocks of full attention join the windows.
    everywhere = visual_rows(qwen.network, patches, (1, 12, 12)) - visual_rows(qwen.network, poisoned, (1, 12, 12))
    assert (everywhere.abs().amax(-1) > 1e-6).all()


def test_neither_frames_nor_images_see_each_other_in_the_tower(qwen):
    patches = torch.randn(2 * 16 + 24, qwen.processor.patching.width, generator=torch.Generator().manual_seed(0))
    poisoned = patches.clone()
    poisoned[16:32] += 3  # the second temporal patch of the video
    grids = torch.tensor([[2, 4, 4], [1, 4, 6]])
    with torch.no_grad():
        difference = qwen.network.visual_rows(patches, grids) - qwen.network.visual_rows(poisoned, grids)
    changed = difference.abs().amax(-1) > 1e-6
    assert changed.tolist() == [False] * 4 + [True] * 4 + [False] * 6


def test_every_level_of_the_deep_stack_reaches_the_answer(qwen):
    inputs = alone(samples(qwen)[0])
    levels = qwen.network.deep_stack
    assert levels == (2 if qwen.deep else 0)
    with torch.no_grad():
        rows = qwen.network.visual_rows(inputs.media["patches"], inputs.media["grids"])
        assert rows.shape[1] == (1 + levels) * 64

        def run(rows):
            given = qwen.network.language_inputs(inputs.ids, rows)
            return qwen.network.language_model(**given, position_ids=inputs.positions, use_cache=False)[0][0]

        torch.testing.assert_close(run(rows), states(qwen.network, inputs), **EXACT)
        for level in range(1, 1 + levels):
            without = rows.clone()
            without[:, level * 64 : (level + 1) * 64] = 0
            changed = (run(without) - run(rows)).abs().amax(-1) > 1e-4
            first = int((inputs.ids[0] == qwen.network.config.image_token_id).nonzero()[0, 0])
            assert changed[first:].all()
            assert not changed[:first].any()


def test_media_rows_go_through_the_tower_in_bounded_parts(qwen, monkeypatch):
    inputs = all_kept(pad(samples(qwen), "token", 0))
    with torch.no_grad():
        together = qwen.network.media_rows(inputs.media)
        calls = []
        monkeypatch.setattr("model.families.qwen_network.PATCHES_AT_ONCE", 60)
        tower = type(qwen.network).visual_rows
        monkeypatch.setattr(
            type(qwen.network), "visual_rows", lambda self, p, g: calls.append(len(p)) or tower(self, p, g)
        )
        parts = qwen.network.media_rows(inputs.media)
    torch.testing.assert_close(parts, together, **EXACT)
    assert len(calls) > 1
    assert sum(calls) == len(inputs.media["patches"])
    largest = int(inputs.media["grids"].prod(-1).max())
    assert max(calls) <= max(60, largest)


@pytest.mark.parametrize("qwen", ["qwen3_vl_moe"], indirect=True)
def test_experts_are_balanced_while_they_train(qwen):
    given = samples(qwen)[:2]
    batch = pad(given, "token", 0)
    assert qwen.network.hidden(batch.inputs).auxiliary is None
    text = qwen.network.config.text_config
    with torch.no_grad():
        rows = qwen.network.media_rows(batch.inputs.media)
        embedded = qwen.network.language_inputs(batch.inputs.ids, rows)
        given_to_both = {"attention_mask": batch.inputs.mask, "position_ids": batch.inputs.positions}
        stock = qwen.stock.model.language_model(**embedded, **given_to_both, output_router_logits=True)
    oracle = load_balancing_loss_func(stock.router_logits, text.num_experts, 2, batch.inputs.mask)
    qwen.network.train()
    try:
        padded = qwen.network.hidden(batch.inputs).auxiliary
        with use_varlen_attention(*qwen.network.parts().language):
            packed = qwen.network.hidden(pack(given, "token").inputs).auxiliary
    finally:
        qwen.network.eval()
    torch.testing.assert_close(padded, text.router_aux_loss_coef * oracle)
    torch.testing.assert_close(packed, padded)
    qwen.network.zero_grad()
    padded.backward()
    gate = qwen.network.get_parameter("model.language_model.layers.0.mlp.gate.weight")
    assert gate.grad.any()


@pytest.mark.parametrize("qwen", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"], indirect=True)
def test_dense_networks_have_no_auxiliary_loss(qwen):
    network = load_network(qwen.directory).train()
    assert network.hidden(pad(samples(qwen)[:1], "token", 0).inputs).auxiliary is None
