"""For notebooks and scripts, as `import fedrsclip_jax as frs`: a federation in memory, and its rounds one by one.

A thin layer over what `fedrsclip train` runs; the same settings give the same numbers. `Federation.save` writes a run's
folder. Keys of a configuration are given as keywords, with two underscores for a dot: `local__learning_rate=0.1`.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fedrsclip_jax import compilation, experiment, workdir
from fedrsclip_jax import federation as engine
from fedrsclip_jax.clip.templates import TEMPLATE
from fedrsclip_jax.config import GIVEN, Config, DataConfig
from fedrsclip_jax.data.clients import SPLITS, Clients, PartitionedClients
from fedrsclip_jax.data.decoding import decode
from fedrsclip_jax.data.sources import ImageSource
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.evaluate import score_zero_shot
from fedrsclip_jax.export.chosen import choose_module, logits_of
from fedrsclip_jax.federated.engine import Diverged, Done
from fedrsclip_jax.finished import Restored
from fedrsclip_jax.generalisation import score_beyond
from fedrsclip_jax.ingredients import (
    READ_BY,
    ChosenMethod,
    Images,
    as_given,
    check_images,
    covers,
    read_by,
)
from fedrsclip_jax.ledger import Ledger
from fedrsclip_jax.methods import METHODS, find_method
from fedrsclip_jax.methods.base import needs_patches
from fedrsclip_jax.methods.contract import check_module
from fedrsclip_jax.predict.classify import Classify, Guess
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.prompts import imported
from fedrsclip_jax.report.page import write_report
from fedrsclip_jax.task import Pretrained, divide_images, encode_images, load_pretrained, load_source

_CHECKED = 4096  # clients whose images are looked at together
_LISTED = 20  # names in a message
_OWN = "(images of one's own)"  # data.source of images that `load_images` did not find
Picture = str | Path | Image.Image | UInt8[np.ndarray, "height width 3"]


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


class Federation:
    """A federation in memory: rounds change it, `evaluate` and `predict` use it as it stands, `save` keeps it.

    Attributes:
      config: of all that it does.
      clients: who owns which image.
      history: all rounds so far.
    """

    def __init__(
        self,
        method: ChosenMethod | Any,
        backbone: Pretrained | Any,
        images: ImageSource | Any,
        clients: Clients | Any,
        *,
        quiet: bool = True,
        **keys: Any,
    ):
        """Encodes the images, once: features stay in a cache on disk.

        Args:
          method, backbone, images, clients: of `make_method`, `load_backbone`, `load_images` and `make_clients`.
          quiet: False shows a bar.
          keys: further keys of a configuration: `seed`, `init_from`, `cohort`, `dropout`, `data__views`,
            `data__skip_unreadable`, `eval__clients`, `eval__finetune_epochs` and those of `local`, `server` and `spmd`.

        Raises:
          InputError: an argument of the wrong kind, a key that is wrong, does not fit or is not read here, or an image
            that cannot be read.
        """
        _check_kinds(method, backbone, images, clients)
        config = read_by("Federation", keys, partition__clients=clients.num_clients)
        source, found = images, DataConfig(source=_OWN)
        if isinstance(images, Images):
            source, found = images.source, images.settings
        config = dataclasses.replace(config, data=_read_by_federation(found, config))
        self._begin(config, method, backbone, source, clients, quiet)

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
        task, self._progress = backbone.task(images), Progress(quiet=quiet)
        templates = () if backbone.templates == (TEMPLATE,) else backbone.templates
        config = dataclasses.replace(
            config,
            backbone=backbone.name,
            dtype=backbone.dtype,
            backbone_templates=templates,
            method=method.settings,
        )
        if method.make not in METHODS.values():
            width = task.clip_config.embed
            if needs_patches(method.make):
                width *= 1 + task.patch_grid(config.method) ** 2
            start = task.context_start(config.method)
            check_module(method.make, config.method, task.backbone(config.method), start, width)
        features = encode_images(config, task, self._progress, methods=[method.make])
        if clients is None:
            clients = divide_images(config, images, features.readable)
        else:
            _check_owned(clients, features.readable)
            config = _told_by(clients, config)
        if config.eval.clients > clients.num_clients or config.cohort > clients.num_clients:
            key, asked = max(
                ("cohort", config.cohort), ("eval__clients", config.eval.clients), key=lambda pair: pair[1]
            )
            raise InputError(f"{key} = {asked} of {clients.num_clients} clients; use at most that, or 0 for everyone")
        self.config, self.clients = config, clients
        self._task, self._features, self._make = task, features, method.make
        self._prompts = imported(config, task.clip_config)
        self._engine = engine.Federation(config, task, features, clients, self._prompts, make=method.make)
        self._ledger = Ledger()
        self.history: list[Round] = []

    @classmethod
    def of(cls, config: Config, *, quiet: bool = True) -> "Federation":
        """All that a configuration says: its backbone, images, clients and method, with its first seed.

        `baselines`, `seeds`, `rounds` and when to evaluate and save are for a planned run, and are not looked at.

        Raises:
          InputError: something in it that cannot be used.
        """
        config = dataclasses.replace(config, seeds=1, baselines=())
        method = ChosenMethod(find_method(config.method.name), config.method)
        backbone = load_pretrained(config.backbone, config.dtype, config.backbone_templates)
        made = cls.__new__(cls)
        made._begin(config, method, backbone, load_source(config.data), None, quiet)
        return made

    def __repr__(self) -> str:
        images, classes = len(self._task.labels), len(self.class_names)
        done = len(self.history)
        return (
            f"{self.config.method.name} after {done} round{'' if done == 1 else 's'}: {self.clients!r}, of {images} "
            f"images of {classes} classes"
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of labels and logits."""
        return tuple(self._task.source.class_names)

    def run(self, rounds: int, callback: Callable[[Round], Any] | None = None) -> list[Round]:
        """Runs that many rounds more, and returns what each reports.

        Args:
          callback: called with each round as it ends; an exception of it stops between rounds.

        Raises:
          InputError: `rounds` is less than 1, or prompts or loss are no longer finite; the state is then the last
            sound one.
        """
        if callback is not None:
            done = []
            for one in self.iterate(rounds):
                done.append(one)
                callback(one)
            return done
        before = len(self.history)
        for _ in self._dispatches(rounds, together=rounds):
            pass
        return self.history[before:]

    def iterate(self, rounds: int) -> Iterator[Round]:
        """Runs that many rounds more, and yields each as it ends; to `break` leaves the federation after that round.

        Raises:
          InputError: as `run`.
        """
        yield from self._dispatches(rounds, together=1)

    def _dispatches(self, rounds: int, together: int) -> Iterator[Round]:
        """Runs rounds, at most so many at a time on the devices, and yields the last of each time."""
        if isinstance(rounds, bool) or not isinstance(rounds, (int, np.integer)) or rounds < 1:
            raise InputError(f"rounds = {rounds!r} is out of range; give a whole number, at least 1")
        before, end = len(self.history), len(self.history) + int(rounds)
        with self._progress.track(self.config.method.name, int(rounds), unit="rounds") as bar:
            while len(self.history) < end:
                first = len(self.history) + 1
                try:
                    with compilation.measure(self._ledger.seconds, "train"):
                        done = self._engine.advance(first, min(end - first + 1, together))
                    self._enter(done)
                except Diverged as diverged:
                    self._enter(diverged.before)
                    raise
                bar.advance_to(len(self.history) - before, **self.history[-1].figures)
                yield self.history[-1]

    def _enter(self, dispatch: Sequence[Done]) -> None:
        self._ledger.enter(dispatch, self._engine.traffic.bytes)
        for number, done in enumerate(dispatch, len(self.history) + 1):
            self.history.append(Round(number, done.figures, done.clients, done.answered, done.seconds))

    def evaluate(self, *, complete: bool = False) -> dict[str, Any]:
        """Scores on test images (or those of `make_clients(split="validation")`), fractions from 0 to 1.

        Args:
          complete: also every client's model on all test images.

        Returns:
          `zero_shot` and `global` with `accuracy`, `macro_f1`, `ece`, `per_class`; `personalised` with `mean`, `std`,
          `worst_decile`, `per_client`; and others: see `evaluate.score_federation` and `generalisation.score_beyond`.
        """
        own = self._engine
        zero_shot = score_zero_shot(self._features.plain, own.labels, self.clients, own.scored, own.backbone)
        with compilation.measure(self._ledger.seconds, "evaluate"):
            scores = own.score(complete=complete)
        if self.history and not self._ledger.has_line:
            self._ledger.write_line(experiment.brief(scores))  # a point of the curves, once it is saved
        scores = {"zero_shot": zero_shot, **scores}
        return scores | score_beyond(own, self._task, self._features, scores)

    def save(self, folder: str | Path) -> Path:
        """Writes the folder of a run, as `fedrsclip train` leaves it, for report, evaluate, predict and export.

        Its curves have a point for each round after which `evaluate` was called, and one for the last. A method of
        one's own has a report, and no name by which the other verbs could find it.

        Args:
          folder: new or empty.

        Returns:
          The folder.

        Raises:
          InputError: no round was run, clients or images are of a kind that a folder cannot keep, or the folder holds
            something, or cannot be written.
        """
        folder = Path(folder).expanduser()
        if self.config.partition.kind == GIVEN and not isinstance(self.clients, PartitionedClients):
            raise InputError(
                f"save: a run's folder cannot keep given {type(self.clients).__name__}; use frs.make_clients, or "
                "Federation.of(config), which draws them itself"
            )
        if not self.history:
            raise InputError("save: no round was run yet; call run(rounds) first")
        if self.config.data.source == _OWN:
            raise InputError(
                "save: images of one's own cannot be found again; put them into a folder a class and use "
                "frs.load_images('folder:PATH')"
            )
        workdir.check(folder)
        if (folder / "config.json").exists():
            raise InputError(f"save: {folder} holds a run; name a new folder, so that nothing is overwritten")
        config = dataclasses.replace(self.config, rounds=len(self.history))
        ready = self._engine, copy.deepcopy(self._ledger)
        with (
            workdir.claim(folder),
            experiment.Run(config, self._task, self._features, folder, self._progress, ready=ready) as run,
        ):
            run.enter(())  # evaluates and keeps a checkpoint, as after any last round
            run.summarise()
            write_report(folder)
        return folder

    def predict(self, pictures: Sequence[Picture], client: int | str | None = None) -> list[Guess]:
        """Class and probabilities of pictures: paths, Pillow's images, or RGB arrays of any size.

        Args:
          client: whose model, by number or by the name of an owner that `make_clients` was given; None is the
            federation's, the shared variables alone.

        Raises:
          InputError: there is no such client or no such model, or a picture cannot be read.
        """
        own = self._engine
        if isinstance(pictures, (str, Path)):
            raise InputError(f"pictures: {str(pictures)!r} is one path; give a list, such as [{str(pictures)!r}]")
        restored = Restored(len(self.history), own.plan.graph, own.server.shared, own.population, own.backbone)
        number = _number_of(client, self.clients) if isinstance(client, str) else client
        module = choose_module(self.config.method.name, restored, number)
        logits = partial(logits_of, module, number is None, own.backbone)
        grid = self._task.patch_grid(self.config.method) if needs_patches(module) else None
        return Classify(self._task, logits, len(pictures), grid).guesses([_opened(picture) for picture in pictures])


def _number_of(name: str, clients: Clients) -> int:
    """The client that is called so."""
    called = [number for number, other in enumerate(clients.names) if other == name]
    if len(called) == 1:
        return called[0]
    remedy = f"give a number from 0 to {clients.num_clients - 1}"
    if not clients.names:
        reason = "the clients have no names"
    elif called:
        reason = f"{len(called)} clients are called so"
    else:
        reason = f"the clients are {', '.join(clients.names[:_LISTED])}{', ...' * (len(clients.names) > _LISTED)}"
        remedy = f"give one of these, or {remedy.removeprefix('give ')}"
    raise InputError(f"client = {name!r}: {reason}; {remedy}")


def _opened(picture: Picture) -> np.ndarray:
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    if not isinstance(picture, (str, Path)):
        return picture
    try:
        return decode(Path(picture).read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read image {picture} ({reason}); give another") from error


def _check_kinds(method: Any, backbone: Any, images: Any, clients: Any) -> None:
    """Refuses arguments of the wrong kind, by the function that gives the right one."""
    if not isinstance(method, ChosenMethod):
        raise InputError(f"method: {_shown(method)} is given; give frs.make_method({_shown(method)})")
    if not isinstance(backbone, Pretrained):
        raise InputError(f"backbone: {_shown(backbone)} is given; give what frs.load_backbone returns")
    check_images(images)
    if not isinstance(clients, Clients):
        raise InputError(f"clients: {_shown(clients)} is given; give what frs.make_clients(images) returns")


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (str, int, float)) else getattr(value, "__name__", type(value).__name__)


def _read_by_federation(found: DataConfig, config: Config) -> DataConfig:
    """Which images there are, and how a federation reads them."""
    own = [f.name for f in dataclasses.fields(found) if covers(READ_BY["Federation"], f"data.{f.name}")]
    return dataclasses.replace(found, **{name: getattr(config.data, name) for name in own})


def _told_by(clients: Clients, config: Config) -> Config:
    """The configuration with what it can say of its clients, from which they could be drawn again, or that they were
    given."""
    made_by = getattr(clients, "made_by", None)
    if made_by is None:
        return as_given(config, clients)
    own = [f.name for f in dataclasses.fields(DataConfig) if covers(READ_BY["make_clients"], f"data.{f.name}")]
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, **{name: getattr(made_by.data, name) for name in own}),
        eval=dataclasses.replace(config.eval, split=made_by.eval.split),
        partition=made_by.partition,
    )
    return config if made_by.seed == config.seed else as_given(config, clients)


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
