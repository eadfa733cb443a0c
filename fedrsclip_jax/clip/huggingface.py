"""CLIP folders in Hugging Face layout, read into Flax and written back.

A folder holds `config.json`, the weights (`model.safetensors`, or shards with `model.safetensors.index.json`),
the tokenizer and `preprocessor_config.json`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from fedrsclip_jax.clip.model import CLIP, CLIPConfig
from fedrsclip_jax.clip.precision import ARITHMETIC
from fedrsclip_jax.clip.transformer import ACTIVATIONS, TowerConfig
from fedrsclip_jax.errors import InputError, install

TINY = Path(__file__).parent.parent / "assets" / "tiny_clip"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_WEIGHTS = "pytorch_model.bin"  # of older repositories, read through PyTorch where it is installed
# Buffers of older files that hold arange(n) and nothing learnt.
_IGNORED = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")


@dataclass(frozen=True)
class Tensor:
    """One Flax variable and the tensors of the file that it is made of.

    Attributes:
      path: attribute path of the variable in `CLIP`.
      names: tensors in the file, in the order in which they are joined along the last Flax axis.
      shape: shape of each tensor in the file.
      to_flax, to_file: change of axes between the two.
    """

    path: tuple[str | int, ...]
    names: tuple[str, ...]
    shape: tuple[int, ...]
    to_flax: Callable[[np.ndarray], np.ndarray] = np.asarray
    to_file: Callable[[np.ndarray], np.ndarray] = np.asarray


def tensors(config: CLIPConfig) -> Iterator[Tensor]:
    """The whole correspondence between `CLIP` and a Hugging Face CLIP, a variable at a time."""

    def linear(path, names, inputs, outputs, bias=True):
        names = (names,) if isinstance(names, str) else names
        weights = tuple(f"{n}.weight" for n in names)
        yield Tensor((*path, "kernel"), weights, (outputs, inputs), np.transpose, np.transpose)
        if bias:
            yield Tensor((*path, "bias"), tuple(f"{n}.bias" for n in names), (outputs,))

    def norm(path, name, width):
        yield Tensor((*path, "scale"), (f"{name}.weight",), (width,))
        yield Tensor((*path, "bias"), (f"{name}.bias",), (width,))

    def blocks(tower: TowerConfig, side: str):
        for i in range(tower.layers):
            at, name, width = (side, "blocks", i), f"{side}_model.encoder.layers.{i}", tower.width
            yield from norm((*at, "norm_attention"), f"{name}.layer_norm1", width)
            fused = tuple(f"{name}.self_attn.{x}_proj" for x in "qkv")
            yield from linear((*at, "qkv"), fused, width, width)
            yield from linear((*at, "out"), f"{name}.self_attn.out_proj", width, width)
            yield from norm((*at, "norm_mlp"), f"{name}.layer_norm2", width)
            yield from linear((*at, "mlp_in"), f"{name}.mlp.fc1", width, tower.mlp_width)
            yield from linear((*at, "mlp_out"), f"{name}.mlp.fc2", tower.mlp_width, width)

    text, vision, patch = config.text.width, config.vision.width, config.patch_size
    yield Tensor(("logit_scale",), ("logit_scale",), ())
    words, places = "text_model.embeddings.token_embedding", "text_model.embeddings.position_embedding"
    yield Tensor(("text", "token"), (f"{words}.weight",), (config.vocabulary, text))
    yield Tensor(("text", "position"), (f"{places}.weight",), (config.positions, text))
    yield from blocks(config.text, "text")
    yield from norm(("text", "norm_post"), "text_model.final_layer_norm", text)
    yield from linear(("text", "projection"), "text_projection", text, config.embed, bias=False)

    embeddings = "vision_model.embeddings"
    tokens = (config.image_size // patch) ** 2 + 1
    yield Tensor(("vision", "class_token"), (f"{embeddings}.class_embedding",), (vision,))
    yield Tensor(("vision", "position"), (f"{embeddings}.position_embedding.weight",), (tokens, vision))
    yield Tensor(
        ("vision", "patch", "kernel"),
        (f"{embeddings}.patch_embedding.weight",),
        (vision, 3, patch, patch),
        # A convolution in PyTorch is [out, in, height, width]; ours is a matrix over (height, width, in).
        lambda w: w.transpose(2, 3, 1, 0).reshape(-1, vision),
        lambda w: w.reshape(patch, patch, 3, vision).transpose(3, 2, 0, 1),
    )
    yield from norm(("vision", "norm_pre"), "vision_model.pre_layrnorm", vision)
    yield from blocks(config.vision, "vision")
    yield from norm(("vision", "norm_post"), "vision_model.post_layernorm", vision)
    yield from linear(("vision", "projection"), "visual_projection", vision, config.embed, bias=False)


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


# OpenAI's own names of its CLIPs, in letters and figures alone, and Hugging Face's.
_OPENAI = {
    _letters(f"{clip}{name}"): f"openai/clip-vit-{ours}"
    for name, ours in {
        "ViT-B/32": "base-patch32",
        "ViT-B/16": "base-patch16",
        "ViT-L/14": "large-patch14",
        "ViT-L/14@336px": "large-patch14-336",
    }.items()
    for clip in ("", "CLIP-", "openai/")
}


def resolve(backbone: str) -> Path:
    """The folder of a backbone: `tiny`, a folder, or a Hugging Face name (downloaded once, then cached)."""
    if backbone == "tiny":
        return TINY
    folder = Path(backbone).expanduser()
    if folder.is_dir():
        return folder
    if known := _OPENAI.get(_letters(backbone)):
        raise InputError(f"backbone: {backbone!r} is called {known} here, its Hugging Face name; give that")
    below = len(folder.parts) > 1 and (folder.parts[0] == "runs" or folder.parent.is_dir())
    if below and not folder.is_absolute():
        raise InputError(
            f"backbone: there is no folder {backbone}; make a CLIP there by `fedrsclip pretrain --workdir={backbone} "
            "--config=FILE.py`, such as configs/pretrain_aid.py for configs/aid.py, or give `tiny`, which is embedded"
        )
    if folder.is_absolute() or backbone.startswith(".") or backbone.count("/") != 1:
        raise InputError(
            f"backbone: {backbone!r} is no folder; give `tiny`, a folder with config.json and {WEIGHTS}, or a "
            "Hugging Face name such as openai/clip-vit-base-patch16"
        )
    import huggingface_hub

    download = partial(
        huggingface_hub.snapshot_download,
        backbone,
        allow_patterns=["*.json", "*.txt", "*.safetensors"],
    )
    try:
        cached = Path(download(local_files_only=True))
        # Other programs cache single files: a folder with a tokenizer alone, or without one, is not whole.
        whole = all((cached / name).is_file() for name in ("config.json", "preprocessor_config.json"))
        words = any((cached / name).is_file() for name in ("tokenizer.json", "vocab.json"))
        if whole and words and _weight_files(cached):
            return cached
    except Exception:  # not in the cache, or not whole: any reason is as good as another, the network decides
        pass
    try:
        fetched = Path(download())
        if not any(fetched.glob("*.safetensors")):
            download(allow_patterns=[TORCH_WEIGHTS])
        return fetched
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"backbone: {backbone!r} is neither a folder here nor could it be fetched from Hugging Face "
            f"({reason}); download it where there is a network and give its folder"
        ) from error


def read_config(folder: Path) -> CLIPConfig:
    """`config.json` of a CLIP folder; missing keys take Hugging Face's defaults."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"backbone: {folder} has no config.json; it must be a CLIP folder in Hugging Face layout")
    try:
        written = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"backbone: {path} is not JSON ({error}); download the folder again") from error
    kind = written.get("model_type") if isinstance(written, dict) else None
    if kind != "clip":
        raise InputError(f"backbone: {path} describes a {kind!r} model; only model_type `clip` is supported")
    from transformers import CLIPConfig as HuggingFaceConfig

    try:
        config: Any = HuggingFaceConfig.from_dict(written)
    except Exception as error:  # a wrong type, or sizes that do not go together; transformers says which
        reason = " ".join(str(error).split())
        raise InputError(f"backbone: {path} cannot be used ({reason}); download the folder again") from error

    def tower(side) -> TowerConfig:
        if side.hidden_act not in ACTIVATIONS:
            raise InputError(
                f"backbone: {path} asks for activation {side.hidden_act!r}; supported are {', '.join(ACTIVATIONS)}"
            )
        return TowerConfig(
            width=side.hidden_size,
            layers=side.num_hidden_layers,
            heads=side.num_attention_heads,
            mlp_width=side.intermediate_size,
            activation=side.hidden_act,
            eps=side.layer_norm_eps,
        )

    text, vision = config.text_config, config.vision_config
    if vision.image_size % vision.patch_size:
        raise InputError(
            f"backbone: {path} cuts images of {vision.image_size} pixels into patches of {vision.patch_size}; only "
            "whole patches are supported"
        )
    # Older configurations say 2, and transformers then reads the highest id, which is EOS (see its CLIPTextModel).
    eos = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
    sos = text.vocab_size - 2 if text.eos_token_id == 2 else text.bos_token_id
    return CLIPConfig(
        text=tower(text),
        vision=tower(vision),
        embed=config.projection_dim,
        vocabulary=text.vocab_size,
        positions=text.max_position_embeddings,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        sos_id=sos,
        eos_id=eos,
    )


def load_clip(folder: Path, dtype: str = "float32") -> tuple[CLIP, CLIPConfig]:
    """The CLIP of a folder, computing as `dtype` says; see `clip.precision`.

    Raises:
      InputError: a file or tensor is missing, a tensor is superfluous or of the wrong shape; names both.
    """
    config, arithmetic = read_config(folder), ARITHMETIC[dtype]
    towers = (dataclasses.replace(tower, precision=arithmetic.products) for tower in (config.text, config.vision))
    config = dataclasses.replace(config, **dict(zip(("text", "vision"), towers, strict=True)))
    files = _weight_files(folder)
    located, handles = {}, {}
    for file in files:
        try:
            handles[file] = _TorchFile(file) if file.name == TORCH_WEIGHTS else safe_open(file, framework="np")
            located |= dict.fromkeys(handles[file].keys(), file)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"backbone: {file} cannot be read ({error}); download it again") from error

    where = files[0] if len(files) == 1 else folder / INDEX
    table = list(tensors(config))
    wanted = {name for tensor in table for name in tensor.names}
    for name in sorted(wanted - located.keys()):
        raise InputError(f"backbone: tensor {name} is missing in {where}; config.json asks for it")
    for name in sorted(located.keys() - wanted - set(_IGNORED)):
        raise InputError(f"backbone: tensor {name} in {located[name]} belongs to no CLIP of this config.json")

    graph, state = _structure(config)
    flat = {}
    for tensor in table:
        parts = []
        for name in tensor.names:
            value = _read(handles[located[name]], located[name], name)
            if value.shape != tensor.shape:
                raise InputError(
                    f"backbone: tensor {name} in {located[name]} has shape {list(value.shape)}; "
                    f"config.json asks for {list(tensor.shape)}"
                )
            parts.append(tensor.to_flax(value))
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        flat[tensor.path] = jnp.asarray(joined, jnp.float32 if tensor.path == ("logit_scale",) else arithmetic.weights)

    def fill(path, variable):
        return variable.replace(flat.pop(tuple(path)))

    state = nnx.map_state(fill, state)
    if flat:
        raise AssertionError(f"no variable for {list(flat)}")
    return nnx.merge(graph, state), config


@lru_cache(maxsize=8)
def _structure(config: CLIPConfig) -> tuple[Any, nnx.State]:
    """Graph and variables without values of a CLIP: traced once, as this takes longer than reading a small one."""
    return nnx.split(nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0))))


def save_clip(clip: CLIP, config: CLIPConfig, folder: Path, dtype: str = "float32") -> None:
    """Writes `config.json` and `model.safetensors`, which `transformers.CLIPModel.from_pretrained` loads."""
    _save(clip, list(tensors(config)), _config_json(config, dtype), folder, dtype)


def save_image_tower(clip: CLIP, config: CLIPConfig, folder: Path, dtype: str = "float32") -> None:
    """Likewise the image tower alone, for `transformers.CLIPVisionModelWithProjection.from_pretrained`."""
    tower = _config_json(config, dtype)["vision_config"]
    written = {"architectures": ["CLIPVisionModelWithProjection"], "dtype": dtype, **tower}
    _save(clip, [tensor for tensor in tensors(config) if tensor.path[0] == "vision"], written, folder, dtype)


def _save(clip: CLIP, table: list[Tensor], config: dict, folder: Path, dtype: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _, state = nnx.split(clip)
    flat = {tuple(path): variable for path, variable in nnx.to_flat_state(state)}
    written = {}
    for tensor in table:
        joined = np.asarray(flat[tensor.path][...], np.float32)
        parts = [joined] if len(tensor.names) == 1 else np.split(joined, len(tensor.names), axis=-1)
        for name, part in zip(tensor.names, parts, strict=True):
            written[name] = np.ascontiguousarray(tensor.to_file(part)).astype(dtype).reshape(tensor.shape)
    save_file(written, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors leaves it readable for the owner alone
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def weights_digest(folder: Path) -> str:
    """sha256 over the configuration and the weight files: the identity of a backbone."""
    digest = hashlib.sha256()
    for file in (folder / "config.json", *_weight_files(folder)):
        with open(file, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def _config_json(config: CLIPConfig, dtype: str) -> dict:
    def tower(side: TowerConfig, kind: str) -> dict:
        return {
            "model_type": kind,
            "hidden_size": side.width,
            "num_hidden_layers": side.layers,
            "num_attention_heads": side.heads,
            "intermediate_size": side.mlp_width,
            "hidden_act": side.activation,
            "layer_norm_eps": side.eps,
            "projection_dim": config.embed,
        }

    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": dtype,
        "projection_dim": config.embed,
        "logit_scale_init_value": float(np.log(1 / 0.07)),
        "text_config": tower(config.text, "clip_text_model")
        | {
            "vocab_size": config.vocabulary,
            "max_position_embeddings": config.positions,
            "bos_token_id": config.sos_id,
            "eos_token_id": config.eos_id,
            "pad_token_id": config.eos_id,
        },
        "vision_config": tower(config.vision, "clip_vision_model")
        | {"image_size": config.image_size, "patch_size": config.patch_size, "num_channels": 3},
    }


def _weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, in order; the index, where there is one, says which."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        if (folder / TORCH_WEIGHTS).is_file():
            return [folder / TORCH_WEIGHTS]
        raise InputError(
            f"backbone: {folder} has no weights; expected {WEIGHTS}, {INDEX} with its shards, or {TORCH_WEIGHTS}"
        )
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"backbone: {index} is no index of shards ({error!r}); download it again") from error
    if outside:
        raise InputError(
            f"backbone: {index} lists {outside[0]!r}, which is outside its folder; do not trust this folder"
        )
    files = [folder / name for name in names]
    for file in files:
        if not file.is_file():
            raise InputError(f"backbone: {file} is missing although {index} lists it; download the folder again")
    return files


class _TorchFile:
    """A PyTorch checkpoint in the manner of a safetensors handle; only plain tensors are unpickled."""

    def __init__(self, file: Path):
        try:
            import torch
        except ImportError as error:
            raise InputError(
                f"backbone: {file} needs PyTorch to be read; run `{install('torch')}`, or give a folder with {WEIGHTS}"
            ) from error
        self._tensors = torch.load(file, map_location="cpu", weights_only=True)

    def keys(self) -> list[str]:
        return list(self._tensors)

    def get_tensor(self, name: str) -> np.ndarray:
        return self._tensors[name].float().numpy()


def _read(handle, file: Path, name: str) -> np.ndarray:
    try:
        return np.asarray(handle.get_tensor(name))
    except TypeError:  # bfloat16 is no NumPy type, and older safetensors do not know that ml_dtypes has it
        with safe_open(file, framework="flax") as again:
            return np.asarray(again.get_tensor(name))
    except Exception as error:
        raise InputError(f"backbone: tensor {name} in {file} cannot be read ({error})") from error
