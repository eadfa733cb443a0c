"""For notebooks and scripts, as `import fedrsclip_jax as frs`: a backbone, images, clients, a method, and rounds.

A thin layer over what `fedrsclip train` runs; the same settings give the same numbers. It writes no folder of results.
Keys of a configuration are given as keywords, with two underscores for a dot: `local__learning_rate=0.1`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from fedrsclip_jax import config as configuration
from fedrsclip_jax import federation as engine
from fedrsclip_jax.config import Config, MethodConfig
from fedrsclip_jax.data.clients import SPLITS, Clients
from fedrsclip_jax.data.decoding import decode
from fedrsclip_jax.data.sources import ImageSource
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.evaluate import score_zero_shot
from fedrsclip_jax.export.chosen import choose_module, logits_of
from fedrsclip_jax.federated.engine import Diverged, Done
from fedrsclip_jax.finished import Restored
from fedrsclip_jax.generalisation import score_beyond
from fedrsclip_jax.methods import find_method
from fedrsclip_jax.methods.base import needs_patches
from fedrsclip_jax.predict.classify import Classify, Guess
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.prompts import imported
from fedrsclip_jax.task import Pretrained, divide_images, encode_images, load_pretrained, load_source

_CHECKED = 4096  # clients whose images are looked at together
Picture = str | Path | UInt8[np.ndarray, "height width 3"]


class Round(NamedTuple):
    """What a round reports.

    Attributes:
      number: from 1.
      figures: means over the images seen, by name, such as `loss` and `accuracy` on training images (0 to 1).
      clients, answered: drawn, and of these the ones whose update counted.
      seconds: of wall-clock time.
    """

    number: int
    figures: dict[str, float]
    clients: int
    answered: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class ChosenMethod:
    """A method and its settings; see `make_method`.

    Attributes:
      make: makes its module from (settings, backbone, key, start).
      settings: that the module reads.
    """

    make: Callable[..., Any]
    settings: MethodConfig


def load_config(file: str | Path | None = None, **keys: Any) -> Config:
    """A checked configuration.

    Args:
      file: such as `configs/quickstart.py`; None are the defaults of `fedrsclip_jax/config.py`.
      keys: values that come on top, such as `rounds=10, partition__clients=5`.

    Raises:
      InputError: an unknown key (the nearest is named), a wrong type, or a value out of range.
    """
    written = {} if file is None else configuration.load_file(str(file))
    return configuration.resolve(Config, written, [(_dotted(key), str(value)) for key, value in keys.items()])


def load_backbone(name: str | Path = "tiny", dtype: str = "float32") -> Pretrained:
    """A frozen CLIP: `tiny` (embedded), a Hugging Face name, or a CLIP folder; `InputError` where it cannot be used."""
    return load_pretrained(str(name), load_config(dtype=dtype).dtype)


def load_images(source: str = "scenes", **keys: Any) -> ImageSource:
    """Labelled images; none is decoded yet.

    Args:
      source: `scenes` (drawn), `folder:PATH` (a folder a class) or `tfds:NAME`.
      keys: of the group `data`, such as `scenes__count=640, image_size=64`.

    Raises:
      InputError: they cannot be found, or a key is wrong.
    """
    given = {f"data__{key}": value for key, value in keys.items()}
    return load_source(load_config(data__source=source, **given).data)


def make_clients(images: ImageSource, kind: str = "dirichlet", *, seed: int = 0, **keys: Any) -> Clients:
    """Who owns which image, after a split for training and testing; the same for the same seed.

    Args:
      images: of `load_images`; all have to be readable.
      kind: `iid`, `dirichlet`, `classes` or `domain`.
      seed: of the split and the partition.
      keys: of the group `partition`, such as `clients=10, alpha=0.1`, and `test_fraction`.

    Raises:
      InputError: settings that the images do not allow.
    """
    if kind == "virtual":
        raise InputError("kind = 'virtual': such clients follow from a whole configuration; use Federation.of(config)")
    given = {"data__test_fraction" if key == "test_fraction" else f"partition__{key}": v for key, v in keys.items()}
    return divide_images(load_config(seed=seed, partition__kind=kind, **given), images)


def make_method(method: str | Callable[..., Any] = "fedrsclip", **keys: Any) -> ChosenMethod:
    """A method with settings.

    Args:
      method: a name (`fedrsclip`, `promptfl`, `local_coop`, `fedpgp`, `fedotp`, `fedclip`, `linear_probe`), or a class
        of one's own: an `nnx.Module` with variables `Shared` and `Private` that has what `methods.base.Method` says.
      keys: of the group `method`, such as `context_tokens=4`.

    Raises:
      InputError: an unknown name or key.
    """
    make = find_method(method) if isinstance(method, str) else method
    name = method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)
    settings = load_config(method__name=name, **{f"method__{key}": value for key, value in keys.items()}).method
    return ChosenMethod(make, settings)


# Keys that a federation is given as things already, by who makes these.
_ELSEWHERE = {
    "make_method": "method__",
    "make_clients": "partition__",
    "load_backbone": ("backbone", "dtype"),
    "load_images": ("data__source", "data__half", "data__scenes"),
}


class Federation:
    """A federation in memory: rounds change it, `evaluate` and `predict` use it as it stands.

    Attributes:
      config: of all that it does.
      clients: who owns which image.
      history: all rounds so far.
    """

    def __init__(
        self,
        method: ChosenMethod,
        backbone: Pretrained,
        images: ImageSource,
        clients: Clients,
        *,
        quiet: bool = True,
        **keys: Any,
    ):
        """Encodes the images, once: features stay in a cache on disk.

        Args:
          quiet: False shows a bar.
          keys: other keys of a configuration, such as `seed=0, local__learning_rate=0.1, cohort=5`. `rounds` is what
            a run by the command line would be planned for, and no limit here.

        Raises:
          InputError: a key that is wrong or does not fit, or an image that cannot be read.
        """
        for key in keys:
            for place, start in _ELSEWHERE.items():
                if key.startswith(start):
                    raise InputError(f"{key}: Federation takes this from what it is given; say it to {place}")
        self._begin(load_config(**keys), method, backbone, images, clients, quiet)

    def _begin(
        self,
        config: Config,
        method: ChosenMethod,
        backbone: Pretrained,
        images: ImageSource,
        clients: Clients | None,
        quiet: bool,
    ) -> None:
        """Without clients these are made as the configuration says, of the images that can be read."""
        if config.eval.base_to_new:
            raise InputError("eval.base_to_new = True is for `fedrsclip train` and `sweep`; leave it out here")
        self._task, self._progress = backbone.task(images), Progress(quiet=quiet)
        config = dataclasses.replace(config, backbone=backbone.name, dtype=backbone.dtype, method=method.settings)
        self._features = encode_images(config, self._task, self._progress, methods=[method.make])
        if clients is None:
            clients = divide_images(config, images, self._features.readable)
        else:
            _check_owned(clients, self._features.readable)
        held_out = 0 if clients.unseen is None else clients.unseen.num_clients
        partition = dataclasses.replace(config.partition, clients=clients.num_clients, held_out=held_out)
        self.config = dataclasses.replace(config, partition=partition)
        self.clients = clients
        prompts = imported(self.config, self._task.clip_config)
        self._engine = engine.Federation(self.config, self._task, self._features, clients, prompts, make=method.make)
        self.history: list[Round] = []

    @classmethod
    def of(cls, config: Config, *, quiet: bool = True) -> "Federation":
        """All that a configuration says: its backbone, images, clients and method.

        Raises:
          InputError: something in it that cannot be used.
        """
        method = ChosenMethod(find_method(config.method.name), config.method)
        made, backbone = cls.__new__(cls), load_pretrained(config.backbone, config.dtype)
        made._begin(config, method, backbone, load_source(config.data), None, quiet)
        return made

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of labels and logits."""
        return tuple(self._task.source.class_names)

    def run(self, rounds: int) -> list[Round]:
        """Runs that many rounds more, and returns what each reports.

        Raises:
          InputError: `rounds` is less than 1, or prompts or loss are no longer finite; the state is then the last
            sound one.
        """
        if rounds < 1:
            raise InputError(f"rounds = {rounds} is out of range; give at least 1")
        before, end = len(self.history), len(self.history) + rounds
        with self._progress.track(self.config.method.name, rounds, unit="rounds") as bar:
            while len(self.history) < end:
                first = len(self.history) + 1
                try:
                    self._enter(self._engine.advance(first, end - first + 1))
                except Diverged as diverged:
                    self._enter(diverged.before)
                    raise
                bar.advance_to(len(self.history) - before, **self.history[-1].figures)
        return self.history[before:]

    def _enter(self, dispatch: Sequence[Done]) -> None:
        for number, done in enumerate(dispatch, len(self.history) + 1):
            self.history.append(Round(number, done.figures, done.clients, done.answered, done.seconds))

    def evaluate(self, *, complete: bool = False) -> dict[str, Any]:
        """Scores on test images, fractions from 0 to 1.

        Args:
          complete: also every client's model on all test images.

        Returns:
          `zero_shot` and `global` with `accuracy`, `macro_f1`, `ece`, `per_class`; `personalised` with `mean`, `std`,
          `worst_decile`, `per_client`; and others: see `evaluate.score_federation` and `generalisation.score_beyond`.
        """
        own = self._engine
        zero_shot = score_zero_shot(self._features.plain, own.labels, self.clients, own.scored, own.backbone)
        scores = {"zero_shot": zero_shot, **own.score(complete=complete)}
        return scores | score_beyond(own, self._task, self._features, scores)

    def predict(self, pictures: Sequence[Picture], client: int | None = None) -> list[Guess]:
        """Class and probabilities of pictures: paths, or RGB arrays of any size.

        Args:
          client: whose model; None is the federation's, the shared variables alone.

        Raises:
          InputError: there is no such client or no such model, or a picture cannot be read.
        """
        own = self._engine
        restored = Restored(len(self.history), own.plan.graph, own.server.shared, own.population, own.backbone)
        module = choose_module(self.config.method.name, restored, client)
        logits = partial(logits_of, module, client is None, own.backbone)
        grid = self._task.patch_grid(self.config.method) if needs_patches(module) else None
        return Classify(self._task, logits, len(pictures), grid).guesses([_opened(picture) for picture in pictures])


def _dotted(key: str) -> str:
    return key.replace("__", ".")


def _opened(picture: Picture) -> np.ndarray:
    if not isinstance(picture, (str, Path)):
        return picture
    try:
        return decode(Path(picture).read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read image {picture} ({reason}); give another") from error


def _check_owned(clients: Clients, readable: np.ndarray) -> None:
    """Refuses clients of other images, or of some that cannot be read, which would train on nothing."""
    for split in SPLITS:
        for start in range(0, clients.num_clients, _CHECKED):
            ids = np.arange(start, min(start + _CHECKED, clients.num_clients))
            rows, counts = clients.padded(ids, split)
            own = rows[np.arange(rows.shape[1]) < counts[:, None]]
            if own.size and own.max() >= len(readable):
                there = len(readable)
                raise InputError(f"clients: they own image {own.max()}, and there are {there}; make them of these")
            if not readable[own].all():
                raise InputError(
                    f"clients: image {own[~readable[own]][0]} of theirs cannot be read; take it away, or use "
                    "Federation.of(config), which leaves such images out"
                )
