"""What a federation of a notebook is made of: a configuration, a backbone, images, clients and a method.

Each function takes the keys of a configuration that it reads, and refuses all others by name: a key that is accepted
changes something.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedrsclip_jax import config as configuration
from fedrsclip_jax.clip.templates import read_templates
from fedrsclip_jax.config import FOLLOWS, GIVEN, Config, DataConfig, MethodConfig, PartitionConfig
from fedrsclip_jax.data import given
from fedrsclip_jax.data.clients import Clients, PartitionedClients
from fedrsclip_jax.data.sources import ImageSource, Subset, sides_of, split_spec
from fedrsclip_jax.data.split import given_sides, scored_side
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.methods import READS, find_method
from fedrsclip_jax.methods.contract import check_class, name_of
from fedrsclip_jax.task import Pretrained, divide_images, load_pretrained, load_source
from fedrsclip_jax.task import split as drawn_split

# Who reads which keys of a configuration; a dot at the end is all keys of a group.
READ_BY = {
    "load_backbone": ("backbone", "dtype", "backbone_templates"),
    "load_images": (
        "data.source",
        "data.merge",
        "data.classes",
        "data.half",
        "data.half_seed",
        "data.image_size",
        "data.tfds_dir",
        "data.layout",
        "data.split",
        "data.scenes.",
    ),
    "make_clients": ("partition.", "data.test_fraction", "data.split_seed", "eval.split"),
    "make_method": ("method.",),
    "Federation": (
        "seed",
        "init_from",
        "cohort",
        "dropout",
        "data.views",
        "data.skip_unreadable",
        "local.",
        "server.",
        "eval.clients",
        "eval.finetune_epochs",
        "spmd.",
    ),
}
_OF_SPLIT = ("test_fraction", "split_seed")
# In front of keys where a reader takes those of one group alone.
_GROUPS = {"load_images": "data__", "make_clients": "partition__", "make_method": "method__"}
# Keys of a planned run, of which one in memory has no use.
_PLANNED = {
    "rounds": "give their number to Federation.run",
    "seeds": "a federation has one seed; make one for each",
    "baselines": "a federation has one method; make one for each",
    "eval.every": "call Federation.evaluate when scores are wanted",
    "eval.target_accuracy": "Federation.save counts the bytes to each tenth",
    "eval.base_to_new": "it is for `fedrsclip train` and `sweep`",
    "checkpoint.": "call Federation.save when a checkpoint is wanted",
}
# Keys of the group `data` by the kinds of source that read them, and of `partition` by the kinds of clients.
_OF_SOURCES = {
    "data.merge": ("several",),
    "data.classes": ("several",),
    "data.image_size": ("scenes",),
    "data.tfds_dir": ("tfds",),
    "data.layout": ("folder",),
    "data.split": ("folder",),
    "data.scenes.": ("scenes",),
}
_OF_CLIENTS = {
    "partition.alpha": ("dirichlet",),
    "partition.classes_per_client": ("classes",),
    "partition.examples_per_client": ("virtual",),
}


class Images(Subset):
    """Labelled images, as `load_images` found them.

    Attributes:
      source: where they come from.
      settings: the configuration that says so.
    """

    def __init__(self, source: ImageSource, settings: DataConfig):
        super().__init__(source, np.arange(len(source)))
        self.settings = settings
        if settings.split == "drawn":
            self.sides = None

    def __repr__(self) -> str:
        return f"{len(self)} images of {len(self.class_names)} classes, from {self.settings.source}"


@dataclasses.dataclass(frozen=True)
class ChosenMethod:
    """A method and its settings; see `make_method`.

    Attributes:
      make: makes its module from (settings, backbone, key, start).
      settings: that the module reads.
    """

    make: Callable[..., Any]
    settings: MethodConfig

    def __repr__(self) -> str:
        return f"method {self.settings.name}"


def load_config(file: str | Path | None = None, **keys: Any) -> Config:
    """A checked configuration.

    Args:
      file: such as `configs/quickstart.py`; None are the defaults of `fedrsclip_jax/config.py`.
      keys: values that come on top, such as `rounds=10, partition__clients=5`.

    Raises:
      InputError: an unknown key (the nearest is named), a wrong type, or a value out of range.
    """
    written = {} if file is None else configuration.load_file(str(file))
    return configuration.resolve(Config, written, [(dotted(key), _text(value)) for key, value in keys.items()])


def load_backbone(name: str | Path = "tiny", dtype: str = "float32", templates: str | Sequence[str] = ()) -> Pretrained:
    """A frozen CLIP.

    Args:
      name: `tiny` (embedded), a Hugging Face name, or a CLIP folder.
      dtype: arithmetic of its towers.
      templates: what zero-shot reads: a sentence with `{}` for the class, several whose features are averaged, or a
        file with one a line; by default `a satellite photo of a {}.`

    Raises:
      InputError: it cannot be used.
    """
    read = read_templates([templates] if isinstance(templates, str) and templates else templates)
    return load_pretrained(str(name), load_config(dtype=dtype).dtype, read)


def load_images(source: str | Path = "scenes", **keys: Any) -> Images:
    """Labelled images; none is decoded yet.

    Args:
      source: `scenes` (drawn), `folder:PATH` (a folder a class), `tfds:NAME`, or several, written A,B.
      keys: of the group `data` that say which images, such as `scenes__count=640, image_size=64`.

    Raises:
      InputError: they cannot be found, or a key is wrong or says nothing of such a source.
    """
    if isinstance(source, Path):
        source = f"folder:{source}"
    config = read_by("load_images", {f"data__{key}": value for key, value in keys.items()}, data__source=source)
    specs = split_spec(config.data.source)
    kinds = {spec.partition(":")[0] for spec in specs} | ({"several"} if len(specs) > 1 else set())
    _only_for(keys, "data__", _OF_SOURCES, kinds, f"images of {source!r}")
    if "half_seed" in keys and config.data.half == "all":
        raise InputError("half_seed: half = 'all' does not read it; give half='federate', or leave it out")
    source_of_images = load_source(config.data)
    if "split" in keys and sides_of(source_of_images) is None:
        raise InputError(f"split: images of {source!r} bring no split in folders; leave it out")
    return Images(source_of_images, config.data)


def make_clients(
    images: ImageSource | Any,
    kind: str | None = None,
    *,
    seed: int = 0,
    split: str = "test",
    train: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    owner: Sequence[Hashable] | Mapping[Any, Hashable] | None = None,
    **keys: Any,
) -> Clients:
    """Who owns which image, after a split for training and testing; drawn ones are the same for the same seed.

    Args:
      images: of `load_images`; all have to be readable.
      kind: `iid`, `dirichlet` (the default), `classes` or `domain`.
      seed: of the partition, and with `split_seed=-1` of the split; not for given owners, unless of such a split.
      split: images that are scored: `test`, or `validation`, a part of the training images, to choose settings on.
      train, test: a split of one's own instead of a drawn one: positions in `images`, paths, or a mask; of one alone,
        the other is all the rest.
      owner: owners of one's own instead of drawn ones: a name or number an image, in the order of `images`, or a dict
        by position or path. Clients are numbered in the order of the names, by which the report of a saved federation
        calls them; None is nobody.
      keys: of the group `partition`, such as `clients=10, alpha=0.1`, and, where a split is
        drawn, `test_fraction` and `split_seed`: not for folders that are a split.

    Raises:
      InputError: settings that the images do not allow, or that say nothing of such clients.
    """
    check_images(images)
    if kind == "virtual":
        raise InputError("kind = 'virtual': such clients follow from a whole configuration; use Federation.of(config)")
    settings = {f"{'data' if key in _OF_SPLIT else 'partition'}__{key}": value for key, value in keys.items()}
    config = read_by("make_clients", settings, seed=seed, partition__kind=kind or "dirichlet", eval__split=split)
    _only_for(keys, "partition__", _OF_CLIENTS, {config.partition.kind}, f"clients of kind = {config.partition.kind!r}")
    sides = None
    if train is not None or test is not None:
        for key in [key for key in keys if key in _OF_SPLIT] + ["split"] * (split != "test"):
            raise InputError(f"{key}: the split is given by train and test; leave it out")
        sides = given.split(images, train, test)
    elif drawn_by := [key for key in keys if key in _OF_SPLIT]:
        brought = given_sides(config.data.split, images)
        if brought is not None and (split == "test" or scored_side(brought, validation=True) is not None):
            raise InputError(
                f"{drawn_by[0]}: the folders of these images are a split, and none is drawn; leave it out, or give "
                "frs.load_images(..., split='drawn')"
            )
    if owner is not None:
        drawn = [key for key in keys if key not in _OF_SPLIT] + ["kind"] * (kind is not None)
        if drawn:
            raise InputError(f"{drawn[0]}: the owners are given; leave it out")
        if seed and (sides is not None or config.data.split_seed != FOLLOWS):
            raise InputError(f"seed = {seed}: the owners are given, and nothing is drawn with it; leave it out")
        partition, names = given.owned(images, owner, *(sides or drawn_split(config, images)))
        clients = PartitionedClients(partition, names=names)
    else:
        clients = divide_images(config, images, sides=sides)
    assert isinstance(clients, PartitionedClients)
    if owner is not None or sides is not None:
        config = as_given(config, clients)
    return dataclasses.replace(clients, made_by=config)


def make_method(method: str | Callable[..., Any] | Any = "fedrsclip", **keys: Any) -> ChosenMethod:
    """A method with settings.

    Args:
      method: a name (`fedrsclip`, `promptfl`, `local_coop`, `fedpgp`, `fedotp`, `fedclip`, `linear_probe`), or a class
        of one's own: an `nnx.Module` with variables `Shared` and `Private` that has what `methods.base.Method` says.
      keys: of the group `method` that the method reads, such as `context_tokens=4`.

    Raises:
      InputError: an unknown name or key, or a class that is no method.
    """
    if isinstance(method, str):
        make, name = find_method(method, "method"), method
    else:
        check_class(method)
        make, name = method, name_of(method)
    given_keys = {f"method__{key}": value for key, value in keys.items()}
    settings = read_by("make_method", given_keys, method__name=name).method
    for key in keys:
        if name in READS and make is find_method(name) and key not in READS[name]:
            able = f"it reads {', '.join(READS[name])}" if READS[name] else "it has no settings"
            raise InputError(f"{key}: {name} does not read it; leave it out ({able})")
    return ChosenMethod(make, settings)


def check_images(images: Any) -> None:
    """Refuses what is no source of images."""
    if isinstance(images, (str, Path)) or not isinstance(images, ImageSource):
        shown = repr(str(images)) if isinstance(images, (str, Path)) else f"an object of {type(images).__name__}"
        raise InputError(f"images: {shown} is given; give what frs.load_images({_example(images)}) gives")


def read_by(reader: str, keys: Mapping[str, Any], **others: Any) -> Config:
    """A configuration of keys that `reader` reads.

    Args:
      keys: as given, with two underscores for a dot.
      others: keys that the reader has arguments of its own for.

    Raises:
      InputError: another's key (who reads it is said), or one that no one reads here.
    """
    config = load_config(**{**others, **keys})  # names what is unknown, of a wrong type or out of range
    for key in keys:
        if key in others or not covers(READ_BY[reader], dotted(key)):
            shown = key.removeprefix(_GROUPS.get(reader, ""))
            for place, remedy in _PLANNED.items():
                if covers((place,), dotted(key)):
                    raise InputError(f"{shown}: {reader} does not read it; {remedy}")
            places = [place for place, known in READ_BY.items() if covers(known, dotted(key))]
            remedy = f"say it to {places[0]}" if places else "give Federation.of a configuration with it"
            raise InputError(f"{shown}: {reader} does not read it; {remedy}")
    return config


def covers(known: Iterable[str], key: str) -> bool:
    """Whether keys and groups, which end with a dot, hold a key."""
    return any(key == each or (each.endswith(".") and key.startswith(each)) for each in known)


def dotted(key: str) -> str:
    """A key of a configuration as it is written there."""
    return key.replace("__", ".")


def as_given(config: Config, clients: Clients) -> Config:
    """A configuration that does not claim to know how its clients were drawn: a run's folder keeps them."""
    held_out = 0 if clients.unseen is None else clients.unseen.num_clients
    partition = PartitionConfig(kind=GIVEN, clients=clients.num_clients, held_out=held_out)
    return dataclasses.replace(config, partition=partition)


def _only_for(
    keys: Iterable[str], prefix: str, readers: Mapping[str, tuple[str, ...]], kinds: set[str], what: str
) -> None:
    """Refuses keys that are read of other kinds alone."""
    for key in keys:
        for place, able in readers.items():
            if covers((place,), dotted(f"{prefix}{key}")) and not kinds & set(able):
                raise InputError(f"{key}: {what} do not read it, but those of {' or '.join(able)}; leave it out")


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _example(images: Any) -> str:
    return repr(str(images)) if isinstance(images, (str, Path)) else ""
