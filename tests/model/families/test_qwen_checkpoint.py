"""Directories of the Qwen-VLs: every published layout is read, and what we write opens in transformers."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.data.errors import InputError
from model.families.opening import load_network, load_processor, save_network
from tests.model.families.conftest import open_qwen
from tests.model.families.test_qwen_network import alone, samples, states, stock_logits


def equal_weights(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def hashes(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


@pytest.fixture
def saved(qwen, tmp_path):
    save_network(qwen.network, qwen.processor, tmp_path / "saved")
    return tmp_path / "saved"


def edit(directory, change):
    """Change the tensors of a directory."""
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_a_round_trip_is_bit_equal_and_writes_the_same_bytes(qwen, saved, tmp_path):
    network, processor = load_network(saved), load_processor(saved)
    assert equal_weights(network, qwen.network)
    assert network.weights_version == qwen.network.weights_version
    save_network(network, processor, tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(saved)


def test_what_is_saved_opens_in_transformers_with_equal_logits(qwen, saved):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    stock = AutoModelForImageTextToText.from_pretrained(saved, local_files_only=True).eval()
    assert type(stock) is type(qwen.stock)
    for sample in samples(qwen)[:3]:
        assert torch.equal(stock_logits(stock, sample), stock_logits(qwen.stock, sample))
    assert type(AutoProcessor.from_pretrained(saved)).__name__.startswith("Qwen")
    assert stock.generation_config.eos_token_id == qwen.processor.eos_token_id


def test_names_are_those_of_the_published_checkpoints(qwen, saved):
    names = load_file(saved / "model.safetensors").keys()
    inner = ("model.visual.", "model.language_model.") if qwen.deep else ("visual.", "model.layers.")
    for prefix in inner:
        assert any(name.startswith(prefix) for name in names)
    assert any(name.startswith("model.visual.") for name in names) == qwen.deep


def test_both_layouts_of_names_are_read(qwen, saved):
    def other_layout(tensors):
        if qwen.deep:
            return {n.replace("model.visual.", "visual.").replace("language_model.", ""): t for n, t in tensors.items()}
        tower = {n: t for n, t in tensors.items() if n.startswith("visual.")}
        text = {n: t for n, t in tensors.items() if n.startswith("model.")}
        nested = {f"model.{n}": t for n, t in tower.items()}
        nested |= {f"model.language_{n}".replace("language_model.", "language_model.", 1): t for n, t in text.items()}
        return nested | {"lm_head.weight": tensors["lm_head.weight"]}

    edit(saved, other_layout)
    assert equal_weights(load_network(saved), qwen.network)


def test_the_buffers_of_old_checkpoints_are_passed_over(qwen, saved):
    edit(saved, lambda tensors: tensors | {"visual.rotary_pos_emb.inv_freq": torch.zeros(4)})
    assert equal_weights(load_network(saved), qwen.network)


@pytest.mark.parametrize("qwen", ["qwen3_vl_moe"], indirect=True)
def test_experts_are_published_transposed_and_read_both_ways(qwen, saved):
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    assert load_file(saved / "model.safetensors")[name].shape == (4, 64, 96)
    assert qwen.network.state_dict()[name].shape == (4, 96, 64)
    # transformers' own save_pretrained leaves them as they are.
    assert load_file(qwen.directory / "model.safetensors")[name].shape == (4, 96, 64)
    assert equal_weights(load_network(saved), qwen.network)


@pytest.mark.parametrize("qwen", ["qwen2_vl", "qwen2_5_vl"], indirect=True)
def test_the_flat_configuration_of_published_checkpoints_is_read(qwen, saved):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    text = config.pop("text_config")
    text.pop("model_type")
    rope = text.pop("rope_parameters")
    text |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
    path.write_text(json.dumps(text | config))
    sample = samples(qwen)[2]
    assert torch.equal(states(load_network(saved), alone(sample)), states(qwen.network, alone(sample)))


def test_shards_behind_an_index_are_read(qwen, saved):
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, saved / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert equal_weights(load_network(saved), qwen.network)
    (saved / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"b\.safetensors: missing; the model directory is incomplete"):
        load_network(saved)


@pytest.mark.parametrize("generation", ["qwen2_vl", "qwen3_vl"])
def test_a_tied_head_is_stored_once_and_counted_once(generation, tmp_path):
    tied = open_qwen(generation, tmp_path / "tied", tie=True)
    assert tied.network.head.weight is tied.network.language_model.get_input_embeddings().weight
    held = list(tied.network.parts().parameters("vision", "projector", "language"))
    assert {id(p) for p in held} == {id(p) for p in tied.network.parameters()}
    assert len(held) == len(set(map(id, held)))
    save_network(tied.network, tied.processor, tmp_path / "saved")
    assert "lm_head.weight" not in load_file(tmp_path / "saved" / "model.safetensors")
    assert equal_weights(load_network(tmp_path / "saved"), tied.network)
    sample = samples(tied)[0]
    ours = tied.network.head(states(tied.network, alone(sample)))
    torch.testing.assert_close(ours, stock_logits(tied.stock, sample), rtol=0, atol=1e-5)
    edit(tmp_path / "saved", lambda tensors: tensors | {"lm_head.weight": torch.zeros(268, 64)})
    with pytest.raises(InputError, match="ties the head to the embeddings, but another head is stored"):
        load_network(tmp_path / "saved")


def test_half_precision_is_that_of_transformers_with_exact_rotary_frequencies(qwen):
    from transformers import AutoModelForImageTextToText

    network = load_network(qwen.directory, dtype=torch.bfloat16, attention="eager")
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    exact = dict(qwen.network.named_buffers())
    assert all(torch.equal(buffer, exact[name]) for name, buffer in network.named_buffers())
    options = {"dtype": torch.bfloat16, "attn_implementation": "eager", "local_files_only": True}
    stock = AutoModelForImageTextToText.from_pretrained(qwen.directory, **options).eval()
    sample = samples(qwen)[2]
    assert torch.equal(network.head(states(network, alone(sample))), stock_logits(stock, sample))


def remove(name):
    return lambda directory: (directory / name).unlink()


def truncate(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def configure(**changes):
    def change(directory):
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def shorten(directory):
    edit(directory, lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"][:-1].clone()})


def lose(directory):
    edit(directory, lambda tensors: {name: t for name, t in tensors.items() if "merger" not in name})


@pytest.mark.parametrize("qwen", ["qwen2_5_vl"], indirect=True)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no such model directory"),
        (remove("config.json"), r"config\.json: no such file"),
        (remove("tokenizer.json"), r"tokenizer\.json: no such file"),
        (remove("model.safetensors"), r"model\.safetensors: missing; the model directory is incomplete"),
        (truncate, "broken safetensors file"),
        (lose, "weights do not fit the configuration: 5 names differ, first model.visual.merger"),
        (shorten, "weights do not fit the configuration: .*lm_head.weight"),
        (configure(model_type="llama"), "'llama' is of no known family"),
        (configure(model_type="qwen2_vl"), "config"),
        (configure(text_config={"hidden_size": "wide"}), r"config\.json: "),
        (configure(text_config={"hidden_act": "none such"}), r"config\.json: makes no network: KeyError: 'none such'"),
        (configure(dtype="none such"), r"config\.json: .*'none such'"),
        (lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": 5}}'), "no weight_map"),
    ],
)
def test_a_broken_directory_gives_one_clear_line(qwen, saved, spoil, message):
    spoil(saved)
    with pytest.raises(InputError, match=message) as caught:
        load_network(saved)
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("qwen", ["qwen2_vl"], indirect=True)
def test_another_family_is_refused(qwen):
    from model.families import qwen3_vl

    with pytest.raises(InputError, match=r"model_type is 'qwen2_vl', not 'qwen3_vl' or 'qwen3_vl_moe'"):
        qwen3_vl.load_network(qwen.directory)


@pytest.mark.parametrize("qwen", ["qwen2_vl"], indirect=True)
def test_only_safetensors_are_read(qwen, saved):
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(tensors, saved / "pytorch_model.bin")
    with pytest.raises(InputError, match="incomplete"):
        load_network(saved)
