"""CLIP folders in Hugging Face layout: read, written, and refused in one line that says what and where."""

import json
import shutil
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from safetensors.numpy import load_file, save_file

from fedrsclip_jax.clip import huggingface
from fedrsclip_jax.clip.huggingface import load_clip, read_config, resolve, save_clip, tensors, weights_digest
from fedrsclip_jax.errors import install

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
NAME = "text_model.encoder.layers.1.mlp.fc1.weight"


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """A copy of the tiny CLIP to change at will."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "clip"))


def change(folder: Path, **changes: np.ndarray | None) -> None:
    """Replaces, adds or (None) removes tensors of the weights file."""
    written = load_file(folder / WEIGHTS) | changes
    save_file({name: value for name, value in written.items() if value is not None}, folder / WEIGHTS)


def configure(folder: Path, **changes) -> None:
    """Changes keys of config.json; of those that hold a dictionary, single keys of it."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(config))


def shard(folder: Path) -> None:
    """Splits the weights file in two, with an index."""
    written = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    where = {name: SHARDS[i % 2] for i, name in enumerate(sorted(written))}
    for file in SHARDS:
        save_file({name: value for name, value in written.items() if where[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def assert_same_weights(one, other) -> None:
    ones, others = jax.tree.leaves(one), jax.tree.leaves(other)
    assert len(ones) == len(others) > 40
    for a, b in zip(ones, others, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_load_of_save_is_bitwise_the_same(tiny_folder, tmp_path):
    clip, config = load_clip(tiny_folder)
    save_clip(clip, config, tmp_path / "deeper" / "again")
    again, same = load_clip(tmp_path / "deeper" / "again")
    assert same == config
    assert_same_weights(clip, again)
    one, other = load_file(tiny_folder / WEIGHTS), load_file(tmp_path / "deeper" / "again" / WEIGHTS)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_float16_is_widened(tiny_folder, tmp_path):
    clip, config = load_clip(tiny_folder)
    save_clip(clip, config, tmp_path, "float16")
    assert {value.dtype for value in load_file(tmp_path / WEIGHTS).values()} == {np.dtype(np.float16)}
    assert (tmp_path / WEIGHTS).stat().st_size < 0.6 * (tiny_folder / WEIGHTS).stat().st_size
    rounded = jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), clip)
    assert_same_weights(rounded, load_clip(tmp_path)[0])


def test_bfloat16_file(folder):
    clip, _ = load_clip(folder)
    narrow = {name: jnp.asarray(value, jnp.bfloat16) for name, value in load_file(folder / WEIGHTS).items()}
    safetensors.flax.save_file(narrow, folder / WEIGHTS)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), clip)
    assert_same_weights(rounded, load_clip(folder)[0])


def test_dtype_of_the_weights(tiny_folder):
    clip, _ = load_clip(tiny_folder, "bfloat16")
    # The scale stays exact: it multiplies every logit.
    assert clip.logit_scale.dtype == jnp.float32
    assert clip.text.token.dtype == clip.vision.blocks[0].qkv.kernel.dtype == jnp.bfloat16


def test_pytorch_file_of_an_older_repository(folder, refused):
    torch = pytest.importorskip("torch", reason="a PyTorch file is read through PyTorch")
    expected, _ = load_clip(folder)
    written = {name: torch.from_numpy(value.copy()) for name, value in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    torch.save(written, folder / "pytorch_model.bin")
    assert_same_weights(load_clip(folder)[0], expected)
    del written[NAME]
    torch.save(written, folder / "pytorch_model.bin")
    with refused(NAME, "pytorch_model.bin"):
        load_clip(folder)


def test_pytorch_file_without_pytorch(tmp_path, refused, monkeypatch):
    # Only this reader is tried: transformers itself cannot be used any more once PyTorch is hidden from it.
    monkeypatch.setitem(sys.modules, "torch", None)
    with refused("pytorch_model.bin", install("torch")):
        huggingface._TorchFile(tmp_path / "pytorch_model.bin")


def test_shards_with_an_index(folder):
    clip, config = load_clip(folder)
    shard(folder)
    again, same = load_clip(folder)
    assert same == config
    assert_same_weights(clip, again)


def test_position_ids_of_older_files_are_passed_over(folder):
    clip, _ = load_clip(folder)
    ids = {f"{side}_model.embeddings.position_ids": np.arange(77)[None] for side in ("text", "vision")}
    change(folder, **ids)
    assert_same_weights(clip, load_clip(folder)[0])


def test_legacy_eos_token_id_means_the_highest_id(folder):
    configure(folder, text_config={"eos_token_id": 2, "bos_token_id": 0})
    config = read_config(folder)
    assert (config.sos_id, config.eos_id) == (config.vocabulary - 2, config.vocabulary - 1)


def test_every_tensor_of_the_file_is_used_once(tiny_folder):
    names = [name for tensor in tensors(read_config(tiny_folder)) for name in tensor.names]
    assert len(names) == len(set(names))
    assert set(names) == set(load_file(tiny_folder / WEIGHTS))


def test_digest_is_of_weights_and_configuration(folder):
    digest = weights_digest(folder)
    assert weights_digest(folder) == digest
    configure(folder, text_config={"hidden_act": "gelu"})
    changed = weights_digest(folder)
    change(folder, logit_scale=np.ones((), np.float32))
    assert len({digest, changed, weights_digest(folder)}) == 3


def test_missing_tensor(folder, refused):
    change(folder, **{NAME: None})
    with refused(NAME, "missing", folder / WEIGHTS):
        load_clip(folder)


def test_missing_tensor_of_shards(folder, refused):
    change(folder, **{NAME: None})
    shard(folder)
    with refused(NAME, "missing", folder / INDEX):
        load_clip(folder)


def test_superfluous_tensor(folder, refused):
    change(folder, **{"text_model.encoder.layers.2.mlp.fc1.bias": np.zeros(64, np.float32)})
    with refused("text_model.encoder.layers.2.mlp.fc1.bias", folder / WEIGHTS):
        load_clip(folder)
    shard(folder)
    with refused("text_model.encoder.layers.2.mlp.fc1.bias", "model-0000"):
        load_clip(folder)


def test_wrong_shape(folder, refused):
    change(folder, **{NAME: np.zeros((32, 64), np.float32)})
    with refused(NAME, folder / WEIGHTS, [32, 64], [64, 32]):
        load_clip(folder)


def test_sizes_of_another_model(folder, refused):
    configure(folder, vision_config={"patch_size": 16})
    with refused("vision_model.embeddings.p", folder / WEIGHTS, "config.json"):
        load_clip(folder)


@pytest.mark.parametrize("keep", [0, 4, 300, 0.5, 0.999], ids=str)
def test_truncated_weights(folder, refused, keep):
    path = folder / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with refused(path, "download"):
        load_clip(folder)


def test_missing_folder(tmp_path, refused):
    for backbone in (str(tmp_path / "nowhere"), "./nowhere", "nowhere", "a/b/c"):
        with refused("backbone", repr(backbone), "config.json"):
            resolve(backbone)


def test_folder_without_config(folder, refused):
    (folder / "config.json").unlink()
    with refused(folder, "config.json"):
        load_clip(folder)


def test_folder_without_weights(folder, refused):
    (folder / WEIGHTS).unlink()
    with refused(folder, WEIGHTS, INDEX):
        load_clip(folder)
    with refused(folder, WEIGHTS):
        weights_digest(folder)


def test_missing_shard(folder, refused):
    shard(folder)
    (folder / SHARDS[1]).unlink()
    with refused(folder / SHARDS[1], folder / INDEX, "missing"):
        load_clip(folder)


@pytest.mark.parametrize("index", ["{", "[]", '{"metadata": {}}', '{"weight_map": [1]}', '{"weight_map": {}}'])
def test_broken_index(folder, refused, index):
    shard(folder)
    (folder / INDEX).write_text(index)
    with refused(folder / INDEX):
        load_clip(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "siglip"}, ("'siglip'", "clip")),
        ({"model_type": None}, ("None", "clip")),
        ({"text_config": {"hidden_act": "relu"}}, ("'relu'", "quick_gelu", "gelu")),
        ({"vision_config": {"hidden_act": "gelu_new"}}, ("'gelu_new'", "quick_gelu")),
        ({"text_config": {"hidden_size": "wide"}}, ("hidden_size", "wide")),
        ({"vision_config": {"num_attention_heads": 5}}, ("32", "5")),
        ({"vision_config": {"patch_size": 7}}, ("32", "7", "whole patches")),
    ],
    ids=str,
)
def test_configuration_of_something_else(folder, refused, changes, words):
    configure(folder, **changes)
    with refused(folder / "config.json", *words):
        load_clip(folder)


@pytest.mark.parametrize("written", ["", "{", "[1, 2]"])
def test_configuration_that_is_no_json_object(folder, refused, written):
    (folder / "config.json").write_text(written)
    with refused(folder / "config.json"):
        load_clip(folder)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A Hugging Face cache of our own, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub: Path, name: str) -> Path:
    """The place of a name's snapshot in the cache."""
    root = hub / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    return root / "snapshots" / ("0" * 40)


def test_name_without_network(hub, refused):
    began = time.monotonic()
    with refused("'openai/clip-vit-base-patch16'", "Hugging Face", "give its folder"):
        resolve("openai/clip-vit-base-patch16")
    assert time.monotonic() - began < 10  # seconds: no waiting for what cannot come


def test_name_in_the_cache_needs_no_network(hub, tiny_folder):
    snapshot = cached(hub, "someone/tiny-clip")
    shutil.copytree(tiny_folder, snapshot)
    assert resolve("someone/tiny-clip") == snapshot
    assert_same_weights(load_clip(tiny_folder)[0], load_clip(resolve("someone/tiny-clip"))[0])


def test_half_cached_name_without_network(hub, tiny_folder, refused):
    """Another program may have cached the tokenizer alone."""
    snapshot = cached(hub, "someone/tiny-clip")
    snapshot.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(tiny_folder / name, snapshot)
    with refused(WEIGHTS):
        load_clip(resolve("someone/tiny-clip"))


def test_folder_is_taken_as_it_is(tiny_folder, monkeypatch):
    assert resolve(str(tiny_folder)) == tiny_folder
    monkeypatch.chdir(tiny_folder.parent)
    assert resolve(tiny_folder.name).samefile(tiny_folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ViT-B/16", ("'ViT-B/16'", "openai/clip-vit-base-patch16")),
        ("ViT-B-32", ("openai/clip-vit-base-patch32",)),
        ("ViT-L/14@336px", ("openai/clip-vit-large-patch14-336",)),
        ("runs/aid_clip", ("no folder runs/aid_clip", "fedrsclip pretrain --workdir=runs/aid_clip", "`tiny`")),
        ("here/clip", ("no folder here/clip", "fedrsclip pretrain")),
    ],
)
def test_a_backbone_that_people_call_otherwise_or_have_not_made_yet(name, words, refused, tmp_path, monkeypatch):
    """No network is asked: the answer is not there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with refused("backbone: ", *words):
        huggingface.resolve(name)
