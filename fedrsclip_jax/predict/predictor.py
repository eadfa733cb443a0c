"""One prediction, from a finished run and paths to lines and maps; read it from top to bottom."""

import difflib
import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedrsclip_jax.clip.preprocess import shrink
from fedrsclip_jax.data.bands import RASTERS
from fedrsclip_jax.data.decoding import EXTENSIONS, decode
from fedrsclip_jax.data.layout import files_below, images_below, is_image, kinds
from fedrsclip_jax.errors import CheckError, InputError
from fedrsclip_jax.export.chosen import choose
from fedrsclip_jax.export.figures import remembered, warning
from fedrsclip_jax.files import check_can_be_made, make_folder, replace, write_bytes, write_text
from fedrsclip_jax.finished import open_run, restore
from fedrsclip_jax.predict import maps, records
from fedrsclip_jax.predict.classify import Classify, Guess
from fedrsclip_jax.predict.scene import LEAST_VALID, Scene, Tile, has_coordinates
from fedrsclip_jax.progress import Bar, Progress

TILE = 256
MOST_TILE = 10_000  # pixels a side; a tile is held in memory
_READERS = 8  # threads that decode


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
      workdir: folder of the run.
      paths: images and folders of images.
      client: whose model; None is the federation's.
      checkpoint: `last`, `best` or a round.
      format: of the lines, one of `records.FORMATS`.
      output: file for the lines; None is standard output.
      tile, stride: of scenes, in pixels; None are 256, and a tile. A tile makes every image a scene.
      bands: of scenes, numbers from 1 with commas; None are 1,2,3, or 1. Bands make every image a scene.
      overwrite: whether earlier predictions may be replaced.
    """

    workdir: Path
    paths: Sequence[Path]
    client: int | None = None
    checkpoint: str = "last"
    format: str = "csv"
    output: Path | None = None
    tile: int | None = None
    stride: int | None = None
    bands: str | None = None
    overwrite: bool = False


@dataclass
class Outcome:
    """What became of it.

    Attributes:
      answered: pictures and tiles with an answer.
      files: what was written, but for standard output.
      notes: what a person should know, a line each.
    """

    answered: int = 0
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Piece:
    """A picture, or a tile of a scene."""

    path: Path
    scene: Scene | None
    tile: Tile | None

    def picture(self) -> tuple[np.ndarray | Exception | None, float | None]:
        """RGB, None where there is too little data, or what went wrong; and of a tile the share of its data."""
        try:
            if self.scene is None or self.tile is None:
                return shrink(decode(self.path.read_bytes())), None
            picture, share = self.scene.picture(self.tile)
            return None if picture is None else shrink(picture), share
        except (OSError, ValueError) as error:
            return error, None


def predict(request: Request, overrides: Sequence[tuple[str, str]], progress: Progress) -> Outcome:
    """Writes a line a picture and tile; for each scene `NAME.predicted.geojson` and `NAME.predicted.png`.

    These lie beside `output` with its name in front (`OUTPUT-NAME.predicted.png`), or in the current folder.
    Images that cannot be read are noted, and the others go on.

    Args:
      overrides: keys that say where things lie now; see `finished.MOVABLE`.

    Raises:
      InputError: something that cannot be predicted like this; nothing is written.
      CheckError: not one image could be read.
    """
    cut = _check(request)
    files = _files(request.paths)
    plan = _plan(request, files, cut)
    run = open_run(request.workdir, overrides, images=False)
    model = choose(run, restore(run, request.checkpoint), request.client)
    outcome = Outcome(notes=_left_out(request.paths))
    figures = remembered(run, model.round, model.client)
    if said := warning(model, figures, "without --client, the federation's model answers"):
        outcome.notes.append(f"warning: {said}")
    work = _Work(request, cut, plan, Classify(run.task, model.logits, plan.expected, model.grid), outcome)
    with progress.track("predicting", plan.expected, unit="images") as bar:
        if request.output is None:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(errors="surrogateescape")  # names of files may be in any encoding
            for line in work.lines(files, bar):
                sys.stdout.write(line)
        else:
            make_folder(request.output.parent, "--output")
            replace(
                request.output,
                lambda file: file.writelines(line.encode(errors="surrogateescape") for line in work.lines(files, bar)),
            )
            outcome.files.insert(0, request.output)
    return outcome


@dataclass(frozen=True)
class _Cut:
    """How scenes are cut: pixels, and bands."""

    tile: int
    stride: int
    bands: tuple[int, ...] | None


@dataclass(frozen=True)
class _Plan:
    """Which files are scenes, by the stem of what is written of each, and how many pieces there are in all."""

    stems: dict[Path, Path]
    expected: int


class _Work:
    """Piece by piece to lines, and scene by scene to maps."""

    def __init__(self, request: Request, cut: _Cut, plan: _Plan, classify: Classify, outcome: Outcome):
        self._request, self._cut, self._plan, self._classify, self._outcome = request, cut, plan, classify, outcome
        self._done, self._unreadable = 0, 0

    def lines(self, files: Sequence[Path], bar: Bar) -> Iterator[str]:
        """The whole text."""
        yield records.head(self._request.format)
        with ThreadPoolExecutor(_READERS) as pool:
            for of_scenes, group in itertools.groupby(files, key=self._plan.stems.__contains__):
                if of_scenes:
                    for path in group:
                        yield from self._scene(path, pool, bar)
                else:
                    yield from self._pictures(group, pool, bar)
        if self._unreadable:
            self._outcome.notes.append(f"{self._unreadable} of {len(files)} images cannot be read and are left out")
        if self._unreadable == len(files):
            raise CheckError("; ".join(self._outcome.notes))

    def _pictures(self, paths: Iterator[Path], pool: ThreadPoolExecutor, bar: Bar) -> Iterator[str]:
        for piece, result, _ in self._guessed((_Piece(path, None, None) for path in paths), pool, bar):
            if isinstance(result, Exception):
                self._cannot_read(piece.path, result)
            elif result is not None:
                yield self._line(piece, result, None)

    def _scene(self, path: Path, pool: ThreadPoolExecutor, bar: Bar) -> Iterator[str]:
        try:
            opened = self._open(path)
        except ValueError as error:
            self._cannot_read(path, error)
            return
        with opened as scene:
            answers, empty, failed = [], [], []
            if scene.order is not None:
                self._outcome.notes.append(
                    f"{path}: its bands have no names; {scene.order}; others by --bands, such as --bands=3,2,1"
                )
            pieces = (_Piece(path, scene, tile) for tile in scene.tiles)
            for piece, result, share in self._guessed(pieces, pool, bar):
                if isinstance(result, Exception):
                    failed.append(result)
                elif result is None:
                    empty.append(share)
                else:
                    assert piece.tile is not None
                    assert share is not None
                    answers.append((piece.tile, result, share))
                    yield self._line(piece, result, share)
            if len(failed) == len(scene.tiles):
                self._cannot_read(path, failed[0])
                return
            little = f"hold data in less than {100 * LEAST_VALID:.0f} % of their pixels"
            if any(empty):
                little += f" (at most {100 * max(empty):.1f} %)"
            without = little if any(empty) else "hold no data"
            for count, what in ((len(empty), without), (len(failed), "cannot be read")):
                if count:
                    self._outcome.notes.append(f"{path}: {count} of {len(scene.tiles)} tiles {what} and are skipped")
            stem = self._plan.stems[path]
            tiles, overlay = _map_files(stem)
            write_text(tiles, maps.as_geojson(scene, answers))
            self._outcome.files.append(tiles)
            try:
                write_bytes(overlay, maps.as_png(scene, answers))
                self._outcome.files.append(overlay)
            except ValueError as error:  # the answers are there, and some of the scene cannot be read
                self._outcome.notes.append(f"{path}: no overlay, as the scene cannot be read as a whole ({error})")

    def _open(self, path: Path) -> Scene:
        return Scene(path, self._cut.tile, self._cut.stride, self._cut.bands)

    def _guessed(
        self, pieces: Iterator[_Piece], pool: ThreadPoolExecutor, bar: Bar
    ) -> Iterator[tuple[_Piece, Guess | Exception | None, float | None]]:
        """Each piece with its answer, or what stands in its way, and of a tile the share of its data.

        The next batch is read while one is classified.
        """
        ahead: list = []
        while True:
            current = ahead
            ahead = [(piece, pool.submit(piece.picture)) for piece in itertools.islice(pieces, self._classify.batch)]
            found = [(piece, *future.result()) for piece, future in current]
            pictures = [picture for _, picture, _ in found if isinstance(picture, np.ndarray)]
            guesses = iter(self._classify.guesses(pictures))
            for piece, picture, share in found:
                yield piece, next(guesses) if isinstance(picture, np.ndarray) else picture, share
            self._done += len(found)
            bar.advance_to(self._done)
            if not ahead:
                return

    def _line(self, piece: _Piece, guess: Guess, share: float | None) -> str:
        self._outcome.answered += 1
        return records.line(self._request.format, piece.path, piece.tile, guess, share)

    def _cannot_read(self, path: Path, error: Exception) -> None:
        self._unreadable += 1
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        self._outcome.notes.append(f"cannot read image {path} ({reason})")


def _check(request: Request) -> _Cut:
    """Refuses what is wrong whatever the images."""
    if request.format not in records.FORMATS:
        near = difflib.get_close_matches(request.format, records.FORMATS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"--format={request.format} is not one of {', '.join(records.FORMATS)}{hint}")
    tile = TILE if request.tile is None else request.tile
    if not 1 <= tile <= MOST_TILE:
        raise InputError(f"--tile={tile} is out of range; give 1 to {MOST_TILE} pixels, such as {TILE}")
    stride = tile if request.stride is None else request.stride
    if not 1 <= stride <= tile:
        raise InputError(
            f"--stride={stride} is out of range; give 1 to {tile} pixels, the tile, so that none is left out"
        )
    bands = None
    if request.bands is not None:
        words = request.bands.split(",")
        if len(words) not in (1, 3) or not all(word.strip().isdecimal() and int(word) > 0 for word in words):
            raise InputError(f"--bands={request.bands} are no bands; give one or three numbers from 1, such as 3,2,1")
        bands = tuple(map(int, words))
    return _Cut(tile, stride, bands)


def _files(paths: Sequence[Path]) -> list[Path]:
    """Images named, and those in folders and below them, each once, in the order given.

    Raises:
      InputError: a path that is not there, or no image at all.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist; give images or folders of images")
        found |= dict.fromkeys(images_below(path) if path.is_dir() else [path])
    if not found:
        formats = ", ".join(extension.lstrip(".") for extension in EXTENSIONS)
        raise InputError(f"no image in {', '.join(map(str, paths)) or 'nothing'}; images are {formats}")
    return list(found)


def _left_out(paths: Sequence[Path]) -> list[str]:
    """Files in folders that are no images to us, a note a folder."""
    others = {path: [file for file in files_below(path) if not is_image(file)] for path in paths if path.is_dir()}
    return [f"{path}: left out are {kinds(files)}" for path, files in others.items() if files]


def _plan(request: Request, files: Sequence[Path], cut: _Cut) -> _Plan:
    """Tells scenes from pictures, and refuses bands that are not there and files that would be lost."""
    explicit = request.tile is not None or request.bands is not None
    scenes, expected = [], 0
    for path in files:
        if not (explicit or (path.suffix.lower() in RASTERS and has_coordinates(path, cut.tile))):
            expected += 1
            continue
        scenes.append(path)
        try:
            with Scene(path, cut.tile, cut.stride, cut.bands) as scene:
                expected += len(scene.tiles)
        except InputError:
            raise
        except ValueError:
            pass  # what is wrong with it is said when its turn comes
    folder = Path() if request.output is None else request.output.parent
    stems: dict[Path, Path] = {}
    for path in scenes:
        stem = path.stem if request.output is None else f"{request.output.stem}-{path.stem}"
        names = (folder / (stem if n == 1 else f"{stem}-{n}") for n in itertools.count(1))
        stems[path] = next(stem for stem in names if stem not in stems.values())
    _check_outputs(request, files, [made for stem in stems.values() for made in _map_files(stem)])
    return _Plan(stems, max(expected, 1))


def _check_outputs(request: Request, files: Sequence[Path], made: list[Path]) -> None:
    if request.output is not None:
        check_can_be_made(request.output.parent, "--output")
        if request.output.is_dir():
            raise InputError(f"--output={request.output} is a folder; name a file")
        made = [request.output, *made]
    elif made:
        check_can_be_made(Path(), "--output")
    ours = {path.resolve() for path in files}
    for path in made:
        if path.resolve() in ours:
            raise InputError(f"--output: {path} is one of the images; name another file")
        if path.exists() and not request.overwrite:
            raise InputError(f"--output: {path} exists; name another file, or replace it with --overwrite")


def _map_files(stem: Path) -> list[Path]:
    return [stem.with_name(f"{stem.name}.predicted.{kind}") for kind in ("geojson", "png")]
