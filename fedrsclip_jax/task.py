"""What runs on one data set share: its images as features of a frozen CLIP, and the frozen text side.

Images pass through the image tower here, once; nothing downstream opens one again.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fedrsclip_jax import compilation, distributed
from fedrsclip_jax.clip import huggingface, preprocess, tokenizer
from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.clip.model import CLIP, CLIPConfig, unit
from fedrsclip_jax.clip.precision import same_everywhere
from fedrsclip_jax.clip.templates import TEMPLATE, reads, sentence
from fedrsclip_jax.config import GIVEN, Config, DataConfig, MethodConfig, split_seed
from fedrsclip_jax.data import features, scenes, sources
from fedrsclip_jax.data.clients import Clients, PartitionedClients
from fedrsclip_jax.data.halves import ClassRange, base_and_new
from fedrsclip_jax.data.joined import Joined, read_merge
from fedrsclip_jax.data.partition import partition
from fedrsclip_jax.data.split import given_sides, given_split, stratified_split
from fedrsclip_jax.data.virtual import virtual_clients
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.interrupt import Interrupt, Stopped
from fedrsclip_jax.methods import find_method
from fedrsclip_jax.methods.base import needs_patches
from fedrsclip_jax.progress import Progress

ENCODE_BATCH = 128
VIEW_SEED = 0  # of the augmented views, the same for all runs, so that they share the cache


@dataclass(frozen=True)
class Task:
    """A data set and a frozen CLIP.

    Attributes:
      source: the images that the federation sees, with names, domains and digests.
      folder, clip, clip_config, words: the backbone and its tokenizer.
      digest: of the backbone's weights.
      templates: sentences of zero-shot, whose text features are averaged.
      new: those of further classes, which it does not see, with `eval.base_to_new`.
    """

    source: sources.ImageSource
    folder: Path
    clip: CLIP
    clip_config: CLIPConfig
    words: Any
    digest: str
    templates: tuple[str, ...] = (TEMPLATE,)
    new: ClassRange | None = None

    @property
    def images(self) -> sources.ImageSource:
        """All images of the data set, of whatever class."""
        return self.source if self.new is None else self.new.source

    def of_new_classes(self) -> "Task":
        """The same CLIP on the images of the classes that the federation does not see."""
        assert self.new is not None
        return dataclasses.replace(self, source=self.new, new=None)

    @property
    def reads(self) -> str:
        """What zero-shot CLIP reads, for people."""
        return reads(self.templates, self.source.class_names)

    @property
    def labels(self) -> Int[np.ndarray, " images"]:
        return self.source.labels

    def backbone(self, method: MethodConfig) -> Backbone:
        """The text side, bound to the class names, with room for the method's context."""
        prompts = 2 if method.combine == "concat" else 1
        names = self.source.class_names
        suffixes = tokenizer.suffixes(
            self.words, names, self.clip_config, method.context_tokens, prompts, method.class_position
        )
        return Backbone(
            self.clip.text,
            jnp.exp(self.clip.logit_scale[...]),
            suffixes,
            self._zero_shot(),
            method.class_position,
        )

    def _zero_shot(self) -> Float[Array, "classes embed"]:
        """Unit-norm text features of the classes; of several templates the mean, again of unit norm.

        As in CLIP's prompt ensembling (Radford et al. 2021, arXiv:2103.00020, section 3.1.4).
        """
        features = []
        for template in self.templates:
            texts = [sentence(template, name) for name in self.source.class_names]
            tokens = jnp.asarray(tokenizer.tokenize(self.words, texts, self.clip_config))
            features.append(_encode_text(*nnx.split(self.clip), tokens))
        return features[0] if len(features) == 1 else unit(jnp.stack(features).mean(axis=0))

    def patch_grid(self, method: MethodConfig) -> int:
        """Patches along a side that methods of patches see.

        Raises:
          InputError: `method.patch_grid` does not divide those of the image tower.
        """
        side = self.clip_config.image_size // self.clip_config.patch_size
        if side % (method.patch_grid or side):
            raise InputError(
                f"method.patch_grid = {method.patch_grid} does not divide the {side} patches along a side of the "
                f"backbone; use one of {', '.join(str(n) for n in range(1, side + 1) if side % n == 0)}, or 0 for all"
            )
        return method.patch_grid or side

    def context_start(self, method: MethodConfig) -> Float[Array, "context width"] | None:
        """Embeddings of the words of `method.context_init`; None where there are none."""
        if not method.context_init:
            return None
        ids = tokenizer.words(self.words, method.context_init)
        if len(ids) != method.context_tokens:
            raise InputError(
                f"method.context_init = {method.context_init!r} has {len(ids)} tokens; set method.context_tokens = "
                f"{len(ids)} (it is {method.context_tokens})"
            )
        return self.clip.text.token[...][jnp.asarray(ids)].astype(jnp.float32)


def load_source(data: DataConfig) -> sources.ImageSource:
    """The images that a configuration names, half of each source where it says so; several sources as one."""
    specs = sources.split_spec(data.source)
    opened = [_open_one(spec, data) for spec in specs]
    return opened[0] if len(opened) == 1 else Joined(opened, specs, read_merge(data.merge), data.classes)


def seen(config: Config, source: sources.ImageSource) -> sources.ImageSource:
    """The images of a source that the federation sees; `InputError` where its classes cannot be halved."""
    return base_and_new(source)[0] if config.eval.base_to_new else source


def _open_one(spec: str, data: DataConfig) -> sources.ImageSource:
    source = sources.open_source(
        spec,
        scenes_count=data.scenes.count,
        scenes_size=data.image_size,
        scenes_domains=data.scenes.domains or scenes.FEDERATION,
        seed=data.scenes.seed,
        data_dir=data.tfds_dir or None,
        layout=data.layout,
    )
    if data.half == "all":
        return source
    return sources.half(source, "pretrain" if data.half == "pretrain" else "federate", data.half_seed)


@dataclass(frozen=True)
class Pretrained:
    """A frozen CLIP before it is given images.

    Attributes:
      name: `tiny`, a Hugging Face name, or a folder.
      dtype: arithmetic of the towers, as the key `dtype`.
      folder, clip, clip_config, words, digest, templates: as of `Task`.
    """

    name: str
    dtype: str
    folder: Path
    clip: CLIP
    clip_config: CLIPConfig
    words: Any
    digest: str
    templates: tuple[str, ...] = (TEMPLATE,)

    def __repr__(self) -> str:
        size, embed = self.clip_config.image_size, self.clip_config.embed
        return f"CLIP {self.name}: images of {size} x {size} pixels, {embed} joint channels, {self.dtype}"

    def task(self, source: sources.ImageSource, *, base_to_new: bool = False) -> Task:
        """A task on all images, or on those of the base classes; `InputError` where these cannot be told apart."""
        seen, new = base_and_new(source) if base_to_new else (source, None)
        return Task(seen, self.folder, self.clip, self.clip_config, self.words, self.digest, self.templates, new)


def load_pretrained(name: str, dtype: str, templates: Sequence[str] = ()) -> Pretrained:
    """Loads a backbone; `InputError` where it cannot be used. Without templates zero-shot has the usual one."""
    folder = huggingface.resolve(name)
    clip, clip_config = huggingface.load_clip(folder, dtype)
    words = tokenizer.load_tokenizer(folder, clip_config)
    digest = huggingface.weights_digest(folder)
    return Pretrained(name, dtype, folder, clip, clip_config, words, digest, tuple(templates) or (TEMPLATE,))


def load_task(config: Config, source: sources.ImageSource | None = None) -> Task:
    """Opens the images, unless a source of all of them is given, and loads the backbone; no image is decoded yet.

    Raises:
      InputError: the backbone or the data cannot be used.
    """
    source = load_source(config.data) if source is None else source
    pretrained = load_pretrained(config.backbone, config.dtype, config.backbone_templates)
    return pretrained.task(source, base_to_new=config.eval.base_to_new)


def encode_images(
    config: Config, task: Task, progress: Progress, interrupt: Interrupt | None = None, methods: Sequence[Any] = ()
) -> features.Features:
    """All images through the image tower, or from the cache.

    Images of new classes are encoded, too, and stand in `Features.new`. Where a method needs patches, their features
    stand behind those of each image, in entries of their own.

    Args:
      methods: those that train on them, as classes; by default the configuration's own and its baselines.
      interrupt: asked after each batch whether to leave, which all of several processes then do.

    Raises:
      Stopped: as `interrupt` asked; what was encoded is in the cache.
      InputError: an image cannot be read (unless `data.skip_unreadable`), or the cache cannot be written.
    """
    views, count = config.data.views, len(task.images)
    grid = _patches(config, task, methods)
    if grid is not None:
        progress.say(
            f"{features.bytes_of(count, views, _width(task, grid)) / 1e6:,.0f} MB of features, of {grid} x {grid} "
            "patches an image"
        )
    total = count * (views + 1 if views > 1 else 1)
    with ExitStack() as stack:
        encoded_images, bar = 0, None

        def encode(step: Callable[[], None]) -> features.Features:
            nonlocal encoded_images

            def advance(done: int, _: int) -> None:
                nonlocal encoded_images, bar
                encoded_images = done
                # Only now: where all are in the cache, nothing is encoded.
                bar = bar or stack.enter_context(progress.track("encoding images", total, unit="images"))
                bar.advance_to(done)
                step()

            found = features.encode(
                task.images,
                _encoder(task, grid),
                **_entries(config, task, grid),
                batch_size=ENCODE_BATCH,
                skip_unreadable=config.data.skip_unreadable,
                progress=advance,
            )
            encoded_images = total
            return found

        def leave(code: int) -> NoReturn:
            raise Stopped(f"{encoded_images} of {total} images are encoded", code)

        asked = (lambda: interrupt.exit_code) if interrupt is not None else (lambda: 0)
        encoded = distributed.in_turn(features.default_cache_dir(), encode, asked, leave)
    unreadable = int(np.sum(~encoded.readable))
    if unreadable:
        progress.say(f"{unreadable} of {count} images could not be read and are left out")
    if task.new is None:
        return encoded
    assert isinstance(task.source, ClassRange)
    return dataclasses.replace(encoded.of(task.source.indices), new=encoded.of(task.new.indices))


def images_to_encode(config: Config, task: Task) -> int:
    """How many images `encode_images` would not find in the cache, counted over all views."""
    return features.missing(task.images, **_entries(config, task, _patches(config, task)))


def features_width(config: Config, task: Task) -> int:
    """Numbers that `encode_images` keeps of an image, those of its patches among them."""
    return _width(task, _patches(config, task))


def time_encoding(config: Config, task: Task, seconds: float) -> dict[str, float]:
    """What encoding takes on this machine, found out by about so many seconds of it; nothing is kept.

    Returns:
      `compile`, and `image` with reading: seconds.
    """
    sample = partial(
        features.trial,
        task.images,
        _encoder(task, _patches(config, task)),
        views=config.data.views,
        seed=VIEW_SEED,
        batch_size=ENCODE_BATCH,
        skip_unreadable=config.data.skip_unreadable,
    )
    spent = {"compile": 0.0, "first": 0.0, "then": 0.0}
    with compilation.measure(spent, "first"):
        sample(seconds=0.0)
    with compilation.measure(spent, "then"):
        done = sample(seconds=seconds)
    return {"compile": spent["compile"], "image": spent["then"] / done}


def divide(
    config: Config,
    task: Task,
    readable: Bool[np.ndarray, " images"] | None = None,
    tests: Int[np.ndarray, " test"] | None = None,
) -> Clients:
    """The images of a task given to clients; see `divide_images`."""
    return divide_images(config, task.source, readable, tests)


def divide_images(
    config: Config,
    source: sources.ImageSource,
    readable: Bool[np.ndarray, " images"] | None = None,
    tests: Int[np.ndarray, " test"] | None = None,
    sides: tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]] | None = None,
) -> Clients:
    """The images split for training and scoring, and given to clients; a function of data and seeds.

    Clients that are held out get their images in the same draw as the others: they are the last of
    `partition.clients + partition.held_out` owners, of `domain` so those of the last sensors. The pooled test images
    are those of the clients that train.

    Without `readable` all images count, which is enough to find out whether settings and data fit.

    Args:
      tests: images that the same clients, with the same training images, are tested on instead of those of
        `eval.split`.
      sides: the two sides of a split that is not drawn.

    Raises:
      InputError: settings that the images do not allow.
    """
    if config.eval.clients > config.partition.clients:
        raise InputError(
            f"eval.clients = {config.eval.clients} of partition.clients = {config.partition.clients}; use at most "
            "that, or 0 for everyone"
        )
    labels, settings = source.labels, config.partition
    if settings.kind == GIVEN:
        raise InputError(
            f"partition.kind = {GIVEN!r}: who owns which image is given to frs.make_clients of Python, and such a run "
            "is saved by Federation.save; use another kind here"
        )
    train, test = split(config, source, readable) if sides is None else sides
    if settings.kind == "virtual":
        if settings.held_out:
            raise InputError(
                f"partition.held_out = {settings.held_out}: clients of partition.kind = virtual share images, so that "
                "none is unseen; use another kind, or 0"
            )
        if not config.cohort:
            raise InputError(
                f"cohort = 0 is everyone, all {settings.clients} clients of partition.kind = virtual; give the number "
                "that a round draws, such as 64"
            )
        return virtual_clients(
            labels,
            train,
            test if tests is None else tests,
            clients=settings.clients,
            alpha=settings.alpha,
            examples_per_client=settings.examples_per_client,
            seed=config.seed,
        )
    try:
        owners = partition(
            settings.kind,
            labels,
            source.domains,
            train,
            test,
            clients=settings.clients + settings.held_out,
            alpha=settings.alpha,
            classes_per_client=settings.classes_per_client,
            min_examples=settings.min_examples,
            seed=config.seed,
            domain_names=source.domain_names,
            tests=tests,
            may_share=sides is None,  # virtual clients have a drawn split
        )
    except InputError as error:
        if not settings.held_out:
            raise
        raise InputError(f"{error}; of these clients {settings.held_out} are partition.held_out") from error
    clients = PartitionedClients.holding_out(owners, settings.held_out)
    if clients.unseen is not None and not (len(clients.pooled) and len(clients.unseen.pooled)):
        raise InputError(
            f"partition.held_out = {settings.held_out} leaves the clients that train, or the others, without a single "
            "test image; use another value, or another seed"
        )
    return clients


def split(
    config: Config, source: sources.ImageSource, readable: Bool[np.ndarray, " images"] | None = None
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """Positions of the images to train on and to score: as the folders give them, or drawn by `data.split_seed`.

    Clients that each have a sensor are tested on as large a part of every sensor's images; see `data.split`.
    """
    labels = source.labels
    strata = source.domains if config.partition.kind == "domain" else None

    def drawn(eligible: Bool[np.ndarray, " images"]) -> tuple[np.ndarray, np.ndarray]:
        fraction, seed = config.data.test_fraction, split_seed(config)
        return stratified_split(labels, source.digests, fraction, seed, eligible, source.class_names, strata)

    eligible = np.ones(len(labels), bool) if readable is None else readable
    sides, validation = given_sides(config.data.split, source), config.eval.split == "validation"
    if sides is not None:
        train, test = given_split(labels, sides, eligible, source.class_names, validation)
        validation = validation and not len(test)
    else:
        train, test = drawn(eligible)
    if validation:
        # Settings are chosen on a part of the training images; the test images are not looked at.
        train, test = drawn(np.isin(np.arange(len(labels)), train))
    return train, test


def client_domains(config: Config, source: sources.ImageSource, clients: Clients) -> list[str] | None:
    """The source (or sensor) whose images each client has, where clients are dealt out by it; else None."""
    if config.partition.kind != "domain":
        return None
    images, _ = clients.padded(np.arange(clients.num_clients), "train")
    return [source.domain_names[domain] for domain in source.domains[images[:, 0]]]


@partial(jax.jit, static_argnums=(0, 3))
def _encode_images(
    graph, weights, images: Float[Array, "batch size size 3"], grid: int | None
) -> Float[Array, "batch features"]:
    """Unit-norm image features; one program for all encoders of the same tower."""
    return nnx.merge(graph, weights).encode_images(images, grid)


@partial(jax.jit, static_argnums=0)
def _encode_text(graph, weights, tokens: Int[Array, "texts length"]) -> Float[Array, "texts embed"]:
    """Unit-norm text features, as one program: operation by operation, compiling them takes seconds."""
    return nnx.merge(graph, weights).encode_text(tokens)


def _patches(config: Config, task: Task, methods: Sequence[Any] = ()) -> int | None:
    """Patches along a side whose features are encoded; None where no method needs them. See `encode_images`."""
    methods = methods or [find_method(name) for name in (config.method.name, *config.baselines)]
    return task.patch_grid(config.method) if any(map(needs_patches, methods)) else None


def _width(task: Task, grid: int | None) -> int:
    return task.clip_config.embed * (1 if grid is None else 1 + grid * grid)


def _entries(config: Config, task: Task, grid: int | None) -> dict[str, Any]:
    """Where features lie in the cache, those with patches apart from others; see `features.encode`."""
    # Where products are rounded, each kind of device does it in its own way.
    products = "full" if same_everywhere(config.dtype) else f"of {jax.default_backend()}"
    key = {
        "weights": task.digest,
        "preprocess": preprocess.settings_digest(task.folder),
        "dtype": config.dtype,
        "products": products,
    }
    return {
        "key": key if grid is None else {**key, "patches": str(grid)},
        "views": config.data.views,
        "seed": VIEW_SEED,
        "cache_dir": features.default_cache_dir(),
    }


def _encoder(task: Task, grid: int | None) -> features.Encoder:
    """It loads the preprocessing at its first call, as usually every image is in the cache."""
    prepare = cache(lambda: preprocess.load_preprocess(task.folder))
    return image_encoder(task.clip, lambda images: prepare()(images), grid=grid)


def image_encoder(
    clip: CLIP, prepare: preprocess.Preprocess, batch: int = ENCODE_BATCH, grid: int | None = None
) -> features.Encoder:
    """Maps lists of up to `batch` pictures to unit-norm features, with `grid` to those of their patches, too.

    They are padded to `batch`, so that it compiles once.
    """
    graph, weights = nnx.split(clip)

    def encoder(images):
        ready = prepare(images)
        padded = np.zeros((batch, *ready.shape[1:]), np.float32)
        padded[: len(ready)] = ready
        return np.asarray(_encode_images(graph, weights, padded, grid))[: len(ready)]

    return encoder
