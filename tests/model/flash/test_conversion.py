"""InternVL's original layout against the Hugging Face one: names, bits, configuration, logits."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.data.artifact import payload_files, payload_sha256
from model.data.errors import InputError
from model.families.opening import load_network, load_processor, save_network
from model.flash.conversion import convert
from model.flash.network import normalise
from model.flash.weights import SINGLE
from tests.tiny import picture
from tests.tiny_flash import FLASH


@pytest.fixture(scope="module")
def original(tiny_directory, tmp_path_factory):
    """The tiny model in the original layout."""
    target = tmp_path_factory.mktemp("original") / "tiny"
    convert(tiny_directory, target, "original")
    return target


@pytest.fixture(scope="module")
def flash(original, tmp_path_factory):
    """The same, as a Flash checkpoint."""
    target = tmp_path_factory.mktemp("flash") / "tiny"
    shutil.copytree(original, target)
    generator = torch.Generator().manual_seed(0)
    extra = {name: torch.randn(shape, generator=generator) for name, shape in FLASH.items()}
    save_file(load_file(target / SINGLE) | extra, target / SINGLE, metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    config |= {"flash_mode": True, "flash_relative_threshold": 0.25, "flash_absolute_threshold": 0.5}
    (target / "config.json").write_text(json.dumps(config))
    return target


def stored(directory):
    """All tensors of a directory by their stored names."""
    files = sorted(directory.glob("*.safetensors"))
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


def same_bits(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def logits(network, processor, grids=((2, 1), (1, 1))):
    rng = np.random.default_rng(3)
    messages = [{"role": "user", "content": "<image>\n" * len(grids) + "What?"}]
    sample = processor.conversation(messages, [picture(rng, *grid) for grid in grids], generate=True)
    ids = torch.tensor([sample.input_ids])
    tiles = torch.from_numpy(sample.media["tiles"])
    with torch.inference_mode():
        if hasattr(network, "hidden"):
            return network(ids, torch.ones_like(ids), tiles)
        return network(input_ids=ids, pixel_values=normalise(tiles)).logits


def stock_model(directory):
    from transformers import AutoModelForImageTextToText

    model, report = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "mismatched_keys")), report
    return model.eval()


def test_the_original_layout_has_the_published_names(tiny_directory, original):
    ours, theirs = stored(tiny_directory), stored(original)
    layer, block = "vision_tower.encoder.layer.1", "vision_model.encoder.layers.1"
    fused = torch.cat([ours[f"{layer}.attention.{letter}_proj.weight"] for letter in "qkv"])
    assert torch.equal(theirs[f"{block}.attn.qkv.weight"], fused)
    pairs = {
        "vision_model.embeddings.class_embedding": "vision_tower.embeddings.cls_token",
        "vision_model.embeddings.position_embedding": "vision_tower.embeddings.position_embeddings",
        "vision_model.embeddings.patch_embedding.weight": "vision_tower.embeddings.patch_embeddings.projection.weight",
        f"{block}.attn.proj.bias": f"{layer}.attention.projection_layer.bias",
        f"{block}.ls1": f"{layer}.lambda_1",
        f"{block}.norm2.weight": f"{layer}.layernorm_after.weight",
        f"{block}.mlp.fc2.weight": f"{layer}.mlp.fc2.weight",
        "mlp1.0.weight": "multi_modal_projector.layer_norm.weight",
        "mlp1.1.weight": "multi_modal_projector.linear_1.weight",
        "mlp1.3.bias": "multi_modal_projector.linear_2.bias",
        "language_model.lm_head.weight": "language_model.lm_head.weight",
    }
    assert all(torch.equal(theirs[name], ours[other]) for name, other in pairs.items())
    assert {name.split(".")[0] for name in theirs} == {"vision_model", "mlp1", "language_model"}


def test_there_and_back_gives_the_same_bytes(tiny_directory, original, tmp_path):
    convert(original, tmp_path / "back", "huggingface")
    assert payload_sha256(tmp_path / "back") == payload_sha256(tiny_directory)


def test_a_stock_model_through_the_original_layout_keeps_its_logits(tiny_directory, tokenizer, tmp_path):
    from transformers import AutoConfig, InternVLForConditionalGeneration

    torch.manual_seed(5)
    stock = InternVLForConditionalGeneration(AutoConfig.from_pretrained(tiny_directory)).eval()
    stock.save_pretrained(tmp_path / "stock")
    for name in ("tokenizer.json", "processor_config.json"):
        shutil.copy(tiny_directory / name, tmp_path / "stock")
    convert(tmp_path / "stock", tmp_path / "original", "original")
    convert(tmp_path / "original", tmp_path / "again", "huggingface")
    processor = load_processor(tmp_path / "stock")
    expected = logits(stock, processor)
    assert expected.std() > 0
    assert torch.equal(logits(stock_model(tmp_path / "again"), processor), expected)
    assert same_bits(stored(tmp_path / "stock"), stored(tmp_path / "again"))
    for directory in ("stock", "original", "again"):
        ours = logits(load_network(tmp_path / directory), processor)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_flash_checkpoint_keeps_every_tensor_and_threshold_both_ways(flash, tmp_path):
    convert(flash, tmp_path / "hf", "huggingface")
    convert(tmp_path / "hf", tmp_path / "original", "original")
    assert same_bits(stored(flash), stored(tmp_path / "original"))
    first, second = (json.loads((path / "config.json").read_text()) for path in (flash, tmp_path / "original"))
    assert first == second
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["flash_mode"], config["flash_relative_threshold"]) == (True, 0.25)


def test_stock_transformers_opens_a_flash_checkpoint_as_any_internvl(flash, tiny_directory, tmp_path):
    convert(flash, tmp_path / "hf", "huggingface")
    processor = load_processor(tiny_directory)
    stock = stock_model(tmp_path / "hf")
    assert torch.equal(logits(stock, processor), logits(stock_model(tiny_directory), processor))
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    # vLLM reads what the index lists, and refuses tensors that it does not know.
    assert all(name.startswith(("vision_tower", "multi_modal", "language_model")) for name in index["weight_map"])
    with safe_open(tmp_path / "hf" / "model-flash.safetensors", "pt") as stream:
        names = set(stream.keys())
    assert len(names) == len(FLASH)
    assert {"router.gating.gate.1.weight", "compressed_projector.linear_3.weight"} <= names


def test_a_loaded_flash_network_saves_its_router_as_it_was(flash, tmp_path):
    save_network(load_network(flash), load_processor(flash), tmp_path / "saved")
    convert(flash, tmp_path / "converted", "huggingface")
    names = ("model-flash.safetensors", "config.json")
    for name in names:
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "converted" / name).read_bytes()


def test_saving_over_a_flash_checkpoint_leaves_what_the_network_has(flash, tiny_directory, tmp_path):
    convert(flash, tmp_path / "hf", "huggingface")
    before = payload_sha256(tmp_path / "hf")
    save_network(load_network(tmp_path / "hf"), load_processor(flash), tmp_path / "hf")
    assert payload_sha256(tmp_path / "hf") == before
    save_network(load_network(tiny_directory), load_processor(tiny_directory), tmp_path / "hf")
    assert payload_sha256(tmp_path / "hf") == payload_sha256(tiny_directory)


@pytest.mark.parametrize("single", [True, False])
def test_the_names_inside_transformers_model_are_read_too(tiny_directory, tmp_path, single):
    variant = tmp_path / "variant"
    shutil.copytree(tiny_directory, variant, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    names = {
        "language_model.lm_head.": "lm_head.",
        "language_model.model.": "model.language_model.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    }
    tensors = {}
    for name, tensor in stored(tiny_directory).items():
        old = next(prefix for prefix in names if name.startswith(prefix))
        tensors[names[old] + name.removeprefix(old)] = tensor
    if single:
        save_file(tensors, variant / SINGLE, metadata={"format": "pt"})
    else:  # neighbours in different shards, queries apart from keys
        shards = [dict(list(tensors.items())[start::3]) for start in range(3)]
        files = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
        for file, shard in zip(files, shards, strict=True):
            save_file(shard, variant / file, metadata={"format": "pt"})
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        (variant / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    convert(variant, tmp_path / "again", "huggingface")
    assert payload_sha256(tmp_path / "again") == payload_sha256(tiny_directory)
    processor = load_processor(variant)
    assert torch.equal(logits(load_network(variant), processor), logits(load_network(tiny_directory), processor))


@pytest.mark.parametrize("layout", ["original", "huggingface"])
def test_no_more_than_a_shard_is_in_memory_and_shards_load_again(tiny_directory, tmp_path, monkeypatch, layout):
    limit = 100_000
    written = []
    monkeypatch.setattr("model.flash.weights.SHARD_BYTES", limit)

    def save(tensors, path, metadata):
        written.append(sum(t.nbytes for t in tensors.values()))
        assert len(tensors) == 1 or written[-1] <= limit
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr("model.flash.weights.save_file", save)
    convert(tiny_directory, tmp_path / "shards", layout)
    assert len(written) > 4
    assert sum(written) == sum(t.nbytes for t in stored(tiny_directory).values())
    processor = load_processor(tiny_directory)
    shards = load_network(tmp_path / "shards")
    assert torch.equal(logits(shards, processor), logits(load_network(tiny_directory), processor))
    if layout == "huggingface":
        assert torch.equal(logits(stock_model(tmp_path / "shards"), processor), logits(shards, processor))


def test_bfloat16_weights_keep_their_type_and_load_in_the_one_asked_for(tiny_directory, tmp_path):
    half = load_network(tiny_directory, dtype=torch.bfloat16)
    # Rotary frequencies are computed in float32, as in stock transformers.
    assert half.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
    save_network(half, load_processor(tiny_directory), tmp_path / "half")
    convert(tmp_path / "half", tmp_path / "original", "original")
    assert {tensor.dtype for tensor in stored(tmp_path / "original").values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    assert (config["torch_dtype"], config["vision_config"]["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert {p.dtype for p in load_network(tmp_path / "original").parameters()} == {torch.float32}


def test_a_published_tower_is_taken_as_the_vision_half(original, tokenizer, tmp_path):
    from model.flash.build import build_model
    from tests.tiny import tiny_config

    prefix = "vision_model."
    tower = {name.removeprefix(prefix): t for name, t in stored(original).items() if name.startswith(prefix)}
    save_file(tower, tmp_path / SINGLE, metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "intern_vit_6b"}))
    config = tiny_config().model_copy(update={"vision_checkpoint": tmp_path})
    built = build_model(config, tokenizer, seed=9)[0].vision_tower.state_dict()
    expected = load_network(original).vision_tower.state_dict()
    assert same_bits(built, expected)
    save_file(dict(list(tower.items())[1:]), tmp_path / SINGLE, metadata={"format": "pt"})
    with pytest.raises(InputError, match="does not have the shape that the profile states: Missing key"):
        build_model(config, tokenizer, seed=9)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tokenizer):
    from model.flash.build import transformers_config
    from tests.tiny import tiny_config

    assert transformers_config(tiny_config(vocab_size=512), tokenizer).text_config.vocab_size == 512
    with pytest.raises(InputError, match=r"model\.language\.vocab_size: 100, but the tokenizer has 263 ids"):
        transformers_config(tiny_config(vocab_size=100), tokenizer)


# --- config.json

# A published original configuration's form: the language model's keys as transformers 4 wrote them.
PUBLISHED = {
    "architectures": ["InternVLChatModel"],
    "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "force_image_size": 448,
    "llm_config": {
        "architectures": ["Qwen3ForCausalLM"],
        "attn_implementation": "flash_attention_2",
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "max_position_embeddings": 40960,
        "model_type": "qwen3",
        "num_attention_heads": 32,
        "num_beams": 1,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "pruned_heads": {},
        "rope_scaling": None,
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 151936,
    },
    "max_dynamic_patch": 12,
    "min_dynamic_patch": 1,
    "model_type": "internvl_chat",
    "ps_version": "v2",
    "select_layer": -1,
    "template": "internvl2_5",
    "use_thumbnail": True,
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 448,
        "initializer_factor": 0.1,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-06,
        "model_type": "intern_vit_6b",
        "norm_type": "layer_norm",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "qk_normalization": False,
        "qkv_bias": True,
        "torch_dtype": "bfloat16",
    },
}


def with_config(original, tmp_path, **changes):
    """A copy of the original directory whose config.json has ``changes``."""
    target = tmp_path / "changed"
    shutil.copytree(original, target)
    config = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_a_published_configuration_reads_as_the_8b_profile(tmp_path):
    from model.flash.directory import load_config
    from model.flash.original import original_tiling, rows_per_tile
    from pipelines.profile import load_profile

    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    config = load_config(tmp_path)
    profile = load_profile("internvl3_5_8b").pretrain.model
    for section, theirs in ((profile.language, config.text_config), (profile.vision, config.vision_config)):
        for name, value in section.model_dump(exclude={"extra", "rope_theta", "yarn", "position_init_std"}).items():
            found = getattr(theirs, name)
            assert (found[0] if name in ("image_size", "patch_size") else found) == value, name
    assert config.text_config.rope_parameters == {"rope_theta": 1000000, "rope_type": "default"}
    assert not config.tie_word_embeddings
    assert rows_per_tile(PUBLISHED) == config.image_seq_length == 256
    tiling = original_tiling(PUBLISHED)
    assert (tiling.tile, tiling.min_tiles, tiling.max_tiles, tiling.use_thumbnail) == (448, 1, 12, True)
    # Neither transformers' many general keys nor another machine's attention are carried along.
    assert not {"num_beams", "pruned_heads", "attn_implementation"} & set(config.to_dict()["text_config"])


def test_a_written_original_configuration_uses_the_names_of_transformers_4(tiny_directory, original):
    config = json.loads((original / "config.json").read_text())
    assert set(PUBLISHED) - {"auto_map"} <= set(config)
    assert set(PUBLISHED["vision_config"]) <= set(config["vision_config"])
    assert (config["llm_config"]["rope_theta"], config["llm_config"]["rope_scaling"]) == (1e6, None)
    assert "rope_parameters" not in config["llm_config"]
    assert (config["template"], config["llm_config"]["architectures"]) == ("internvl2_5", ["Qwen3ForCausalLM"])


def test_a_published_processor_of_transformers_4_is_read(tiny_directory, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(tiny_directory, old)
    settings = json.loads((old / "processor_config.json").read_text())
    (old / "preprocessor_config.json").write_text(json.dumps(settings.pop("image_processor")))
    (old / "processor_config.json").write_text(json.dumps({"processor_class": "InternVLProcessor"}))
    assert load_processor(old).tiling == load_processor(tiny_directory).tiling


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"select_layer": -4}, "select_layer is -4"),
        ({"ps_version": "v1"}, "ps_version is 'v1'"),
        ({"llm_config": None}, "not an InternVL configuration"),
        ({"llm_config": {"model_type": "internlm2"}}, "internlm2"),
        ({"vision_config": {"hidden_size": 64}}, "configuration has no 'patch_size'"),
    ],
)
def test_an_original_configuration_that_is_not_ours_is_refused_in_one_line(original, tmp_path, changes, words):
    with pytest.raises(InputError, match=words) as caught:
        convert(with_config(original, tmp_path, **changes), tmp_path / "out", "huggingface")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["original", "huggingface"])
def test_a_tensor_of_no_internvl_is_refused_by_name(tiny_directory, original, tmp_path, layout):
    source = tmp_path / "odd"
    shutil.copytree(original if layout == "original" else tiny_directory, source)
    shard = source / (SINGLE if layout == "original" else "model-vision.safetensors")
    save_file(load_file(shard) | {"audio_tower.weight": torch.zeros(1)}, shard, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"odd: tensor audio_tower\.weight belongs to no InternVL"):
        convert(source, tmp_path / "out", "huggingface")
    assert not list(tmp_path.glob("*out*")), "a half-written directory was left"


@pytest.mark.parametrize("layout", ["original", "huggingface"])
@pytest.mark.parametrize("spoil", [lambda t, name: t.pop(name), lambda t, name: t.update({name + "2": t[name]})])
def test_weights_that_are_not_the_networks_are_not_converted(tiny_directory, original, tmp_path, layout, spoil):
    """Without its keys, a layer's queries and values would make a fused tensor of their own."""
    source = tmp_path / "odd"
    shutil.copytree(original if layout == "original" else tiny_directory, source)
    shard = source / (SINGLE if layout == "original" else "model-vision.safetensors")
    tensors = load_file(shard)
    spoil(tensors, next(name for name in sorted(tensors) if "k_proj.weight" in name or "mlp1.1.weight" in name))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, shard, metadata={"format": "pt"})
    with pytest.raises(InputError, match="odd: weights do not fit the configuration: 1 names differ"):
        convert(source, tmp_path / "out", "huggingface" if layout == "original" else "original")
    assert not list(tmp_path.glob("*out*"))


def test_weights_that_contradict_tied_embeddings_are_refused(tiny_directory, tmp_path):
    tied = tmp_path / "tied"
    shutil.copytree(tiny_directory, tied)
    config = json.loads((tied / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (tied / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="ties the output head to the embedding, but they differ"):
        load_network(tied)


def test_a_target_that_holds_something_is_left_alone(tiny_directory, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already and is not empty"):
        convert(tiny_directory, tmp_path, "original")
    assert [path.name for path in payload_files(tmp_path)] == ["kept.txt"]
