"""Every key of a configuration with its default, meaning and unit; a ConfigDict in, a checked frozen dataclass out.

Precedence, later wins: the defaults here, the configuration file, `--config.KEY=VALUE` on the command line.
This module imports no JAX, so that a mistyped key is answered at once.
"""

import ast
import dataclasses
import difflib
import hashlib
import importlib.util
import json
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedrsclip_jax import formats
from fedrsclip_jax.clip.templates import read_templates
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.files import read_json
from fedrsclip_jax.nearest import nearest

T = TypeVar("T")
MAX_SEED = 2**31 - 1
MAX_CLIENTS = 2**31 - 1
SWEEP = "sweep"  # the group of a configuration that is many runs
KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a list of names, written a,b,c",
}
EXAMPLES = {float: "0.1", str: "'tiny'", tuple: "promptfl,local_coop"}
GIVEN = "given"  # partition.kind of clients that no seed draws
FOLLOWS = -1  # as `data.split_seed`: the run's own seed
SCORED = ("test", "validation")  # images that a run is scored on


@typing.runtime_checkable
class Written(typing.Protocol):
    """What a configuration file gives: a ConfigDict (which is no Mapping) or a dict, nested."""

    def items(self) -> Any: ...


def key(
    default: Any,
    meaning: str,
    *,
    among: Sequence[str] = (),
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
    by: tuple[str, Mapping[Any, Any]] | None = None,
    share_of: str = "",
):
    """One key: its default, its meaning with the unit, and what is allowed; `low` and `high` are, `above` is not.

    Args:
      by: another key, and the defaults that its values bring in place of this one.
      share_of: another key, of which a value below 1 is a share.
    """
    allowed = {"among": tuple(among), "low": low, "above": above, "high": high, "by": by, "share_of": share_of}
    return dataclasses.field(default=default, metadata={"meaning": meaning, **allowed})


def group(cls: type[T]) -> T:
    """A group of keys."""
    return dataclasses.field(default_factory=cls)


@dataclass(frozen=True)
class ScenesConfig:
    count: int = key(2400, "scenes drawn, all 16 classes together", low=32)
    seed: int = key(
        7, "seed of the drawing; independent of the run's seed, so that seeds share images", low=0, high=MAX_SEED
    )
    domains: tuple = key((), "sensor domains; empty for those that pretraining has not seen")


@dataclass(frozen=True)
class DataConfig:
    source: str = key(
        "scenes",
        "`scenes`, `folder:PATH` (a folder a class) or `tfds:NAME`; or several, written A,B, each an institution",
    )
    merge: str = key("", "of several sources: a file of class names that mean the same; empty for the shipped one")
    classes: str = key(
        "union", "of several sources: those of any, or those that all have", among=("union", "intersection")
    )
    half: str = key("all", "images used: `all`, or one of two disjoint halves", among=("all", "pretrain", "federate"))
    half_seed: int = key(0, "seed of the halves; pretraining and federation must agree", low=0, high=MAX_SEED)
    split: str = key(
        "auto",
        "training and test images: `folder` takes those of train/, val/ and test/ in the folder, `drawn` draws them, "
        "`auto` draws where there are no such folders",
        among=("auto", "folder", "drawn"),
    )
    layout: str = key(
        "auto",
        "what the folders of `folder:PATH` are: `classes`, whatever they are called, `domains` with class folders in "
        "each, or `auto`, which recognises these and folders of a split",
        among=("auto", "classes", "domains"),
    )
    test_fraction: float = key(0.2, "share of each class kept for testing", low=0.0, high=1.0)
    split_seed: int = key(
        0,
        "seed of the split into training, validation and test images; the same for all runs, so that no run chooses "
        "settings on an image that another is tested on; -1 follows the run's seed",
        low=FOLLOWS,
        high=MAX_SEED,
    )
    views: int = key(1, "augmented views cached per image for training; 1 trains on the plain image", low=1)
    image_size: int = key(64, "pixels; of drawn scenes and in pretraining (a backbone brings its own)", low=16)
    skip_unreadable: bool = key(False, "leave out and count images that cannot be read, instead of stopping")
    tfds_dir: str = key("", "folder of prepared TFDS data sets; empty for TFDS's own default")
    scenes: ScenesConfig = group(ScenesConfig)


@dataclass(frozen=True)
class PartitionConfig:
    kind: str = key(
        "dirichlet",
        "how images fall to clients; each has one owner, but clients of `virtual` share them and may be a billion; "
        "`given` is said by a run that Federation.save of Python wrote, whose folder keeps who owns what",
        among=("iid", "dirichlet", "classes", "domain", "virtual", GIVEN),
    )
    clients: int = key(10, "institutions in the federation; 1 is centralised training", low=1, high=MAX_CLIENTS)
    alpha: float = key(0.1, "concentration of `dirichlet` and `virtual`; small is uneven", above=0.0)
    classes_per_client: int = key(2, "classes that a client has, of `classes`", low=1)
    min_examples: int = key(8, "training images every client has at least; not of `virtual`", low=1)
    examples_per_client: int = key(32, "training images of every client of `virtual`", low=1)
    held_out: int = key(
        0, "further clients that never train, on whose images the shared prompt alone is scored at the end", low=0
    )


@dataclass(frozen=True)
class MethodConfig:
    name: str = key("fedrsclip", "what is trained; see fedrsclip_jax/methods")
    context_tokens: int = key(4, "tokens of a prompt (m); m x text width numbers travel", low=1)
    context_init: str = key("", "words that a prompt starts from; empty for N(0, 0.02^2)")
    class_position: str = key("end", "where the class name stands in the context", among=("end", "middle", "front"))
    combine: str = key(
        "logits", "what of shared and private prompt is put together", among=("logits", "features", "concat")
    )
    pacl: str = key("features", "what PACL compares", among=("features", "tokens"))
    cmfac: str = key("cosine", "how CMFAC ties text to images", among=("cosine", "contrastive"))
    pacl_weight: float = key(0.1, "weight of PACL in the loss", low=0.0)
    cmfac_weight: float = key(0.5, "weight of CMFAC in the loss", low=0.0)
    rank: int = key(2, "of FedPGP's private change of the prompt; at most context_tokens count", low=1)
    contrastive_weight: float = key(1.0, "weight of FedPGP's contrastive term", low=0.0)
    temperature: float = key(0.5, "temperature of FedPGP's contrastive term", above=0.0)
    transport_epsilon: float = key(0.1, "entropic weight of FedOTP's transport, in units of cosine", low=0.001)
    transport_iterations: int = key(20, "iterations of FedOTP's transport, always so many", low=1, high=10_000)
    transport_mass: float = key(0.8, "share of the patches' mass that FedOTP transports; 1 is all", above=0.0, high=1.0)
    patch_grid: int = key(
        0, "patches along a side that FedOTP sees, averages of the image tower's; 0 is all of these", low=0
    )


@dataclass(frozen=True)
class LocalConfig:
    epochs: int = key(1, "passes of a client over its images in a round", low=1)
    batch_size: int = key(32, "images in a step", low=1)
    optimizer: str = key("sgd", "optimiser of a client; starts fresh each round", among=("sgd", "adam", "adamw"))
    learning_rate: float = key(0.002, "step size of a client; 0.002 suits real CLIP, 0.01 to 0.1 small ones", low=0.0)
    momentum: float = key(0.9, "momentum of `sgd`, within a round; b1 of `adam`", low=0.0, high=0.9999)
    weight_decay: float = key(0.0, "weight decay of prompts", low=0.0)
    proximal_weight: float = key(0.0, "FedProx's mu on the shared prompt; 0 is FedAvg", low=0.0)


@dataclass(frozen=True)
class ServerConfig:
    aggregator: str = key(
        "mean",
        "average of the clients' changes; the means weight them by images, the others treat clients alike",
        among=("mean", "norm_clipped_mean", "median", "trimmed_mean", "krum", "multi_krum"),
    )
    faulty: int = key(1, "clients of a cohort that may be faulty, of `krum` and `multi_krum`", low=0)
    trim: float = key(0.1, "share of clients cut at each end, of `trimmed_mean`", low=0.0, high=0.49)
    client_norm: float = key(0.0, "longest change of one client (L2), of `norm_clipped_mean`", low=0.0)
    clip_norm: float = key(0.0, "longest average change (L2), of any aggregator; 0 is no limit", low=0.0)
    optimizer: str = key("sgd", "applied to the average; sgd at 1 is FedAvg", among=("sgd", "momentum", "adam", "yogi"))
    learning_rate: float = key(
        1.0,
        "step size of the server; the default is 0.01 with adam and yogi, whose steps are as long as that",
        low=0.0,
        by=("server.optimizer", {"adam": 0.01, "yogi": 0.01}),
    )


@dataclass(frozen=True)
class EvalConfig:
    every: int = key(5, "rounds between evaluations; the last round is always one", low=1)
    clients: int = key(
        0,
        "clients that are scored, a seeded sample, the same in all rounds; 0 is everyone, of `virtual` 1,000. Of "
        "`virtual` as many of those that took part are scored beside them, or with 0 up to 10,000",
        low=0,
    )
    target_accuracy: float = key(
        0.0,
        "accuracy (0 to 1) up to which `bytes_to_target` of the summary counts the bytes sent; 0 is none",
        low=0.0,
        high=1.0,
    )
    finetune_epochs: int = key(
        0,
        "passes over its own training images with which each scored client fine-tunes before its personal score; "
        "nothing of it is sent or kept; 0 is no fine-tuning",
        low=0,
    )
    split: str = key(
        "test",
        "images that are scored: `test`, or `validation`, a part of the training images, to choose settings on",
        among=SCORED,
    )
    base_to_new: bool = key(
        False, "train on the first half of the classes, and at the end score prompts with the names of the others, too"
    )


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = key(10, "rounds between checkpoints; 0 keeps the last round alone", low=0)
    keep: int = key(2, "checkpoints kept", low=1)


@dataclass(frozen=True)
class SpmdConfig:
    devices: int = key(0, "devices used; 0 is all", low=0)
    clients_per_device: int = key(
        0,
        "lanes: clients trained at a time on a device; 0 chooses by platform, cohort and memory, and takes one where "
        "ordered_reduce asks for equal bits on any number of devices",
        low=0,
    )
    rounds_per_dispatch: int = key(0, "rounds run without returning to the host, at most; 0 chooses", low=0, high=1024)
    ordered_reduce: bool = key(
        False, "add changes in the order of the cohort: equal bits on any number of devices, for some more traffic"
    )
    features: str = key(
        "auto",
        "all training views on every device (`resident`), or those of each round's clients sent ahead (`streamed`); "
        "the plain view stays there for scoring",
        among=("auto", "resident", "streamed"),
    )


@dataclass(frozen=True)
class Config:
    """One federated run, or a comparison of methods over seeds."""

    seed: int = key(0, "seed of partition, cohorts, initial prompts and batches", low=0, high=MAX_SEED)
    seeds: int = key(1, "runs, with seed, seed + 1, ...; each has its own partition", low=1)
    baselines: tuple = key((), "methods trained beside method.name on the same partitions, for the closing table")
    backbone: str = key("tiny", "`tiny` (embedded), a Hugging Face name, or a CLIP folder")
    backbone_templates: tuple = key(
        (),
        "what zero-shot reads: one sentence with `{}` for the class, several whose features are averaged, or a file "
        "with one a line; empty for `a satellite photo of a {}.`",
    )
    init_from: str = key(
        "",
        "prompts to start from: `run:FOLDER` (another run's shared prompt), `coop:FILE`, `fedotp:FILE`, `flip:FILE` or "
        "`safetensors:FILE`",
    )
    rounds: int = key(50, "rounds of the federation", low=1)
    cohort: int = key(
        0,
        "clients drawn a round; 0 is everyone, and a number below 1, such as 0.1, a share of partition.clients",
        low=0,
        share_of="partition.clients",
    )
    dropout: float = key(0.0, "share of a cohort that fails to answer", low=0.0, high=0.99)
    dtype: str = key(
        "float32",
        "arithmetic of the towers: `float32` (accelerators, too, compute products in full), `tensorfloat32` (float32 "
        "of which accelerators round the factors of products) or `bfloat16`; prompts and losses stay float32",
        among=("float32", "tensorfloat32", "bfloat16"),
    )
    data: DataConfig = group(DataConfig)
    partition: PartitionConfig = group(PartitionConfig)
    method: MethodConfig = group(MethodConfig)
    local: LocalConfig = group(LocalConfig)
    server: ServerConfig = group(ServerConfig)
    eval: EvalConfig = group(EvalConfig)
    checkpoint: CheckpointConfig = group(CheckpointConfig)
    spmd: SpmdConfig = group(SpmdConfig)


@dataclass(frozen=True)
class TowersConfig:
    width: int = key(128, "channels of both towers", low=16)
    vision_layers: int = key(4, "blocks of the image tower", low=1)
    text_layers: int = key(3, "blocks of the text tower", low=1)
    heads: int = key(4, "attention heads of both towers", low=1)
    embed: int = key(128, "channels of the joint embedding", low=8)
    patch_size: int = key(8, "side of a patch of the image tower, in pixels", low=2)
    positions: int = key(40, "longest text in tokens", low=8)
    vocabulary: int = key(512, "tokens of the byte-level BPE that is fitted to the captions", low=280)


@dataclass(frozen=True)
class PretrainConfig:
    """Contrastive training of a small CLIP."""

    seed: int = key(0, "seed of weights, captions, alterations and batches", low=0, high=MAX_SEED)
    epochs: int = key(30, "passes over the images", low=1)
    batch_size: int = key(256, "images in a step", low=2)
    learning_rate: float = key(1e-3, "peak of a cosine schedule with 5 % warm-up", low=0.0)
    weight_decay: float = key(0.1, "AdamW's, on matrices", low=0.0)
    min_crop: float = key(0.6, "smallest share of an image's area in a random crop", low=0.05, high=1.0)
    validation_fraction: float = key(0.1, "images kept to report zero-shot accuracy on", low=0.01, high=0.5)
    save_dtype: str = key("float16", "type of the written weights", among=("float16", "float32"))
    data: DataConfig = group(DataConfig)
    model: TowersConfig = group(TowersConfig)


def keys(cls: type, prefix: str = "") -> Iterator[tuple[str, type, dataclasses.Field]]:
    """Every leaf key of a configuration: dotted name, type, field."""
    for f in dataclasses.fields(cls):
        kind = typing.cast(type, f.type)
        if dataclasses.is_dataclass(kind):
            yield from keys(kind, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", kind, f


def resolve(cls: type[T], written: Written, overrides: Sequence[tuple[str, str]] = ()) -> T:
    """A checked configuration from what a file says and what the command line adds.

    Args:
      cls: `Config` or `PretrainConfig`.
      written: nested mapping (a ConfigDict or a dict) with any of the keys.
      overrides: (dotted key, text) pairs; the text is read by the key's type.

    Raises:
      InputError: unknown key (the nearest is named), wrong type, value out of range.
    """
    known = {name: (kind, f) for name, kind, f in keys(cls)}
    values: dict[str, Any] = {}
    if SWEEP in dict(written.items()):
        raise InputError("this configuration has a group `sweep`, and is many runs; use fedrsclip sweep")
    for name, value in _flatten(written, known):
        values[name] = _typed(name, value, *_look_up(name, known))
    for name, text in overrides:
        kind, f = _look_up(name, known)
        values[name] = _typed(name, _parse(name, text, kind), kind, f)
    for name, (_, f) in known.items():
        if f.metadata["by"] and name not in values:
            other, defaults = f.metadata["by"]
            values[name] = defaults.get(values.get(other), f.default)
    for name, value in values.items():
        kind, f = known[name]
        if kind is int and isinstance(value, float):
            whole = f.metadata["share_of"]
            values[name] = max(1, round(value * values.get(whole, known[whole][1].default)))
    if values.get("backbone_templates"):
        values["backbone_templates"] = read_templates(values["backbone_templates"])
    return _build(cls, values)


def split_seed(config: Config) -> int:
    """The seed of the split into training, validation and test images."""
    return config.seed if config.data.split_seed == FOLLOWS else config.data.split_seed


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionary, as `config.json` holds it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def digest(config: Any) -> str:
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()


def load_file(spec: str) -> Written:
    """What `get_config` of a configuration file returns, or what a run's `config.json` holds.

    Args:
      spec: `FILE.py`, `FILE.py:ARGUMENT` or `FILE.json`. A word such as `aid`, where no such file is at hand, names a
        configuration of the package.
    """
    name, _, argument = spec.partition(":")
    path = Path(name)
    if not path.is_file() and name in shipped():
        path = shipped()[name]
    if not path.is_file():
        near = [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        hint = difflib.get_close_matches(name, [*near, *shipped()], 1)
        hint = [path.stem] if path.stem in shipped() else hint
        remedy = f"did you mean {hint[0]}?" if hint else f"give FILE.py or one of {', '.join(shipped())}"
        raise InputError(f"--config: no file {name!r}; {remedy}")
    if path.suffix == ".json":
        return formats.upgrade("config", read_json(path), path)
    module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"--config: {name} is not a Python file; give FILE.py with get_config()")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        get_config = module.get_config
        written = get_config(argument) if argument else get_config()
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"--config: {name} fails ({type(error).__name__}: {error}); it needs get_config(arg)"
        ) from error
    if not isinstance(written, Written):
        raise InputError(f"--config: get_config of {name} gives {written!r}; it must return a ConfigDict")
    return written


def shipped() -> dict[str, Path]:
    """The configurations of the package by name: inside it where it is installed, beside it in the source tree."""
    package = Path(__file__).parent
    inside = package / "configs"
    return {
        path.stem: path for path in sorted((inside if inside.is_dir() else package.parent / "configs").glob("*.py"))
    }


def default_file() -> Path:
    """The quickstart."""
    if (path := shipped().get("quickstart")) is None:
        raise InputError("no configs/quickstart.py in the package; give --config=FILE.py")
    return path


def _flatten(written: Written, known: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in written.items():
        full = f"{prefix}{name}"
        if isinstance(value, Written):
            if full in known:
                raise InputError(f"config key {full!r} is a single value, not a group")
            yield from _flatten(value, known, f"{full}.")
        else:
            yield full, value


def _look_up(name: str, known: Mapping[str, tuple[type, dataclasses.Field]]) -> tuple[type, dataclasses.Field]:
    if name in known:
        return known[name]
    if inside := [k for k in known if k.startswith(f"{name}.")]:
        raise InputError(f"config key {name!r} is a group; set one of its keys, such as {inside[0]!r}")
    if name.partition(".")[0] == SWEEP:
        raise InputError(f"config key {name!r} is of many runs side by side; use fedrsclip sweep")
    raise InputError(f"unknown config key {name!r}; {nearest(name, known)}")


def _parse(name: str, text: str, kind: type) -> Any:
    if kind is str:
        return text
    if kind is tuple:
        if text.startswith(("(", "[")):
            try:
                read = ast.literal_eval(text)
            except (ValueError, SyntaxError, TypeError) as error:
                raise InputError(f"config key {name!r} = {text!r} is no list; write a,b,c") from error
            return tuple(read) if isinstance(read, (list, tuple)) else (read,)
        return tuple(part for part in text.split(",") if part)
    lowered = text.lower()
    if kind is bool and lowered in ("true", "false"):
        return lowered == "true"
    try:
        return float(text) if kind is float else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text  # `_typed` names what was expected


def _several(value: Any) -> list[str]:
    """The numbers of what is a list of them, as texts; empty for anything else."""
    parts = value.split(",") if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else []
    try:
        return [str(part).strip() for part in parts if math.isfinite(float(part))] if len(parts) > 1 else []
    except (TypeError, ValueError):
        return []


def _typed(name: str, value: Any, kind: type, f: dataclasses.Field) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if kind is int and f.metadata["share_of"] and isinstance(value, float) and 0 < value < 1:
        return value  # `resolve` makes a number of it
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        if kind in (int, float) and (several := _several(value)):
            more = (
                f"--config.seeds={len(several)}"
                if name in ("seed", "seeds")
                else f"--config.sweep.grid.{name}={','.join(several)}"
            )
            verb = "train" if name in ("seed", "seeds") else "sweep"
            raise InputError(
                f"config key {name!r} = {value!r} is a list, and a run takes one value; for a run each, use fedrsclip "
                f"{verb} with {more}"
            )
        such = (
            "true"
            if f.default is True
            else "false"
            if f.default is False
            else f.default or EXAMPLES.get(kind, f.default)
        )
        raise InputError(f"config key {name!r} = {value!r} is not {KINDS[kind]}; give one, such as {such}")
    if isinstance(value, tuple) and (wrong := [item for item in value if not isinstance(item, str)]):
        raise InputError(f"config key {name!r} holds {wrong[0]!r}; it takes names, written a,b,c")
    among, low, above, high = (f.metadata[limit] for limit in ("among", "low", "above", "high"))
    if among and value not in among:
        near = difflib.get_close_matches(str(value), among, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"config key {name!r} = {value!r} is not one of {', '.join(among)}{hint}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise InputError(f"config key {name!r} = {value!r} is not finite; the default is {f.default!r}")
        if not (low <= value <= high and value > above):
            span = f"at least {low:.10g}" if high == math.inf else f"between {low:.10g} and {high:.10g}"
            span = f"above {above:g}" if above > -math.inf else span
            raise InputError(f"config key {name!r} = {value!r} is out of range; it must be {span}")
    return value


def _build(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    made = {}
    for f in dataclasses.fields(typing.cast(Any, cls)):
        name = f"{prefix}{f.name}"
        if dataclasses.is_dataclass(f.type):
            made[f.name] = _build(typing.cast(type, f.type), values, f"{name}.")
        elif name in values:
            made[f.name] = values[name]
    return cls(**made)
