"""Frozen image features: every image goes through the image tower once, and the result stays on disk.

One cache entry is one view of one source under one encoder: a folder named by the sha256 of all that decides
its content, with `features.npy`, `readable.npy` and `key.json`. It is written to `<name>.partial/`, with a
record of how far it got, so that an interrupted encoding goes on where it stopped; it is published by a
rename, so that nobody ever sees half of it. Only the holder of `<name>.lock` writes; see `lock.turn`.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from fedrsclip_jax.clip.preprocess import shrink
from fedrsclip_jax.data.decoding import SKIP_HINT
from fedrsclip_jax.data.sources import ImageSource, fingerprint_of_images
from fedrsclip_jax.errors import DISK_REFUSALS, InputError
from fedrsclip_jax.files import replace
from fedrsclip_jax.lock import turn

_FORMAT = 4  # part of every key: raise it whenever cached features would no longer be the same
_FLUSH_EVERY = 4  # batches between two records of progress: what a killed process loses
_CROP_SCALE = (0.5, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)
_log = logging.getLogger(__name__)

Encoder = Callable[[list[np.ndarray]], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Image features, read memory-mapped.

    Attributes:
        plain: features of the pictures as they are, for testing; rows of unreadable images are zero. What the encoder
            says of an image's patches stands behind what it says of the whole image.
        views: features for training, one array a view: `(plain,)`, or augmented views only.
        readable: False for images that could not be decoded.
        new: of images of classes that the federation does not see, where they are asked for.
    """

    plain: Float32[np.ndarray, "images width"]
    views: tuple[Float32[np.ndarray, "images width"], ...]
    readable: Bool[np.ndarray, "images"]
    new: "Features | None" = None

    def of(self, images: Int[np.ndarray, "some"]) -> "Features":
        """Those of some of the images."""
        plain = self.plain[images]
        views = (plain,) if len(self.views) == 1 else tuple(view[images] for view in self.views)
        return dataclasses.replace(self, plain=plain, views=views, readable=self.readable[images])

    def narrowed(self, width: int) -> "Features":
        """The first `width` numbers of each row: of features with patches, those of the whole images."""
        if self.plain.shape[1] == width:
            return self
        views = tuple(view[:, :width] for view in self.views)
        new = None if self.new is None else self.new.narrowed(width)
        return Features(self.plain[:, :width], views, self.readable, new)


def bytes_of(images: int, views: int, width: int) -> int:
    """What features of `width` numbers take on the disk."""
    return 4 * images * (views + 1 if views > 1 else 1) * width


def default_cache_dir() -> Path:
    """`$FEDRSCLIP_CACHE`, or `~/.cache/fedrsclip`."""
    return Path(os.environ.get("FEDRSCLIP_CACHE") or "~/.cache/fedrsclip").expanduser()


def encode(
    source: ImageSource,
    encoder: Encoder,
    *,
    key: dict[str, str],
    views: int,
    seed: int,
    cache_dir: Path,
    batch_size: int = 256,
    skip_unreadable: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Features of all images of a source, from the cache or computed now.

    Args:
        source: the images.
        encoder: maps uint8 pictures [height, width, 3] of any size to features [pictures, width].
        key: what identifies the encoder: its weights and preprocessing.
        views: 1 trains on the plain pictures; above 1, on that many random crops and flips of each.
        seed: draws the crops and flips; view v of image i is a function of (seed, v, i).
        cache_dir: holds the entries.
        batch_size: pictures a call of the encoder; the last call has fewer.
        skip_unreadable: go on past images that cannot be decoded. The cache is the same either way.
        progress: called with (images done, images in all), counted over all views; not where all are in the cache.

    Raises:
        InputError: an unreadable image (unless skipped), no images, views < 1, or a `cache_dir` that cannot
            be written. Nothing is published then, and what was encoded before is not lost.
        ValueError: features of a wrong shape, or that are not finite.
    """
    if views < 1:
        raise InputError(f"data.views={views} is out of range; give 1 for the plain images, or more")
    if len(source) == 0:
        raise InputError("there are no images to encode; give a data.source with images")
    identities = _identities(source, key, views, seed)
    arrays, readable, working = [], np.ones(len(source), bool), False
    for step, (view, identity) in enumerate(identities.items()):

        def report(done: int, before: int = step * len(source)) -> None:
            nonlocal working
            working = True
            if progress is not None:
                progress(before + done, len(identities) * len(source))

        job = _Job(source, encoder, view, seed, batch_size, skip_unreadable, report)
        array, can_read = _entry(Path(cache_dir), identity, job)
        if working:
            report(len(source))
        arrays.append(array)
        readable &= can_read
    return Features(arrays[0], tuple(arrays[1:] or arrays), readable)


def missing(source: ImageSource, *, key: dict[str, str], views: int, seed: int, cache_dir: Path) -> int:
    """Images that `encode` would have to encode, counted over all views; arguments as there, and nothing is changed."""
    count = 0
    for identity in _identities(source, key, views, seed).values():
        folder = Path(cache_dir) / _digest(identity)
        if _open(folder, identity, len(source)) is None:
            count += len(source) - _encoded_before(_partial(folder), identity)
    return count


def trial(
    source: ImageSource,
    encoder: Encoder,
    *,
    views: int,
    seed: int,
    batch_size: int,
    skip_unreadable: bool,
    seconds: float,
) -> int:
    """Reads and encodes the first images as `encode` would, and keeps nothing.

    Args:
        seconds: about how long, but at least a batch.

    Returns:
        How many images that were.

    Raises:
        InputError: an unreadable image (unless skipped).
    """
    job = _Job(source, encoder, min(views - 1, 1), seed, batch_size, skip_unreadable, lambda _: None)
    until, done = time.perf_counter() + seconds, 0
    with contextlib.closing(job.batches(0)) as batches:
        for _, pictures, _ in batches:
            encoder(pictures)
            done += len(pictures)
            if time.perf_counter() > until:
                break
    return done


def augment(image: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "side side 3"]:
    """A random resized crop (half to all of the area, sides 3:4 to 4:3) and flips: there is no up."""
    from PIL import Image

    height, width = image.shape[:2]
    area = height * width * rng.uniform(*_CROP_SCALE)
    ratio = np.exp(rng.uniform(*np.log(_CROP_RATIO)))
    crop_width = int(np.clip(round(np.sqrt(area * ratio)), 1, width))
    crop_height = int(np.clip(round(np.sqrt(area / ratio)), 1, height))
    left = int(rng.integers(width - crop_width + 1))
    top = int(rng.integers(height - crop_height + 1))
    side = min(height, width)  # square, so that the encoder's own preprocessing cuts nothing more away
    box = (left, top, left + crop_width, top + crop_height)
    picture = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, box=box))
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    if rng.random() < 0.5:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


@dataclasses.dataclass(frozen=True)
class _Job:
    """What it takes to compute one entry."""

    source: ImageSource
    encoder: Encoder
    view: int
    seed: int
    batch_size: int
    skip_unreadable: bool
    report: Callable[[int], None]

    def picture(self, i: int) -> np.ndarray | InputError:
        try:
            image = self.source.image(i)
        except InputError as error:
            return error
        if self.view:
            image = augment(image, np.random.default_rng((self.seed, self.view, i)))
        return shrink(image)  # as the encoder would; what waits for it is small from here on

    def batches(self, start: int) -> Generator[tuple[int, list[np.ndarray], np.ndarray], None, None]:
        """First image, pictures and readable flags, by batches; decoded one batch ahead of the encoder."""
        size = len(self.source)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:

            def submit(first: int) -> list[Future]:
                return [pool.submit(self.picture, i) for i in range(first, min(first + self.batch_size, size))]

            ahead = submit(start)
            try:
                for first in range(start, size, self.batch_size):
                    current, ahead = ahead, submit(first + self.batch_size)
                    pictures = [future.result() for future in current]
                    for i, picture in enumerate(pictures, start=first):
                        if isinstance(picture, InputError):
                            if not self.skip_unreadable:
                                raise picture
                            _log.warning("skipped image %s, which cannot be read", self.source.name(i))
                    good = np.array([not isinstance(picture, InputError) for picture in pictures])
                    # A blank in place of an unreadable image: an encoder compiled for one batch size is not
                    # compiled anew, and the row is blanked afterwards.
                    blank = np.zeros((32, 32, 3), np.uint8)
                    yield first, [blank if isinstance(p, InputError) else p for p in pictures], good
            finally:
                for future in ahead:
                    future.cancel()


def _identities(source: ImageSource, key: dict[str, str], views: int, seed: int) -> dict[int, dict[str, Any]]:
    """What decides the content of the entry of each view."""
    content = fingerprint_of_images(source)
    # The plain view has no seed, so that all seeds share it.
    return {
        view: {
            "format": _FORMAT,
            "key": key,
            "source": content,
            "view": view,
            "seed": int(seed) if view else None,
        }
        for view in ([0] if views == 1 else range(views + 1))
    }


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _encoded_before(partial: Path, identity: dict[str, Any]) -> int:
    """Images that an interrupted encoding has recorded, as far as can be told without opening its arrays."""
    try:
        record = json.loads((partial / "progress.json").read_text())
        return int(record["done"]) if record["identity"] == identity else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _entry(cache_dir: Path, identity: dict[str, Any], job: _Job) -> tuple[np.ndarray, np.ndarray]:
    """Features and readable flags of one entry, published first if need be."""
    name = _digest(identity)
    folder = cache_dir / name
    found = _open(folder, identity, len(job.source))
    if found is None:
        with contextlib.ExitStack() as stack:
            try:
                cache_dir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(turn(lock_of(folder), lambda holder: _say_who(holder, folder)))
            except OSError as error:
                raise InputError(
                    f"cannot write the feature cache {cache_dir} ({error.strerror}); set FEDRSCLIP_CACHE to a "
                    "folder that can be written"
                ) from error
            found = _open(folder, identity, len(job.source))  # another process may have been faster
            if found is None:
                if folder.exists():
                    _log.warning("feature cache entry %s is damaged; encoding the images again", folder)
                    shutil.rmtree(folder)
                try:
                    _compute(folder, identity, job)
                except OSError as error:
                    if error.errno not in DISK_REFUSALS:
                        raise
                    raise InputError(
                        f"the feature cache {cache_dir} cannot be written ({error.strerror}); make room, or set "
                        "FEDRSCLIP_CACHE to a folder elsewhere; what is encoded is kept"
                    ) from error
                found = _open(folder, identity, len(job.source))
                if found is None:
                    raise RuntimeError(f"feature cache entry {folder} is damaged right after it was written")
    with contextlib.suppress(OSError):  # when it was used last, for `caches`; also where the system does not note that
        os.utime(folder / "key.json", (time.time(), (folder / "key.json").stat().st_mtime))
    features, readable = found
    if not readable.all() and not job.skip_unreadable:
        i = int(np.argmin(readable))
        raise InputError(f"cannot read image {job.source.name(i)}, as an earlier run found; {SKIP_HINT}")
    return features, readable


def _open(folder: Path, identity: dict[str, Any], images: int) -> tuple[np.ndarray, np.ndarray] | None:
    """A published entry, or None where there is none or it is not what it should be."""
    try:
        record = json.loads((folder / "key.json").read_text())
        features = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
        readable = np.load(folder / "readable.npy", allow_pickle=False)
        sound = (
            record["identity"] == identity
            and record["shape"] == list(features.shape)
            and (features.dtype, readable.dtype) == (np.float32, np.bool_)
            and len(features) == images == len(readable)
            and record["crc32"] == _checksum(features, readable)
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return (features, readable) if sound else None


def _compute(folder: Path, identity: dict[str, Any], job: _Job) -> None:
    """Encodes all images that the partial folder lacks, and publishes it as `folder`."""
    partial = _partial(folder)
    size = len(job.source)
    features, readable, done = _resume(partial, identity, size)
    job.report(done)
    recorded = done
    try:
        with contextlib.closing(job.batches(done)) as batches:
            for number, (first, pictures, good) in enumerate(batches, start=1):
                rows = np.asarray(job.encoder(pictures), np.float32)
                if rows.ndim != 2 or len(rows) != len(pictures):
                    raise ValueError(f"the encoder made {rows.shape} of {len(pictures)} pictures; must be 2-D")
                if not np.isfinite(rows[good]).all():
                    raise ValueError(f"features of images {first} to {first + len(rows) - 1} are not finite")
                if features is None:
                    features = _allocate(partial / "features.npy", (size, rows.shape[1]))
                features[first : first + len(rows)] = np.where(good[:, None], rows, 0)
                readable[first : first + len(rows)] = good
                done = first + len(rows)  # only now: this is what an interruption records
                if number % _FLUSH_EVERY == 0:
                    _record(partial, identity, features, readable, done)
                    recorded = done
                job.report(done)
    except BaseException:
        if features is None:  # nothing was encoded
            with contextlib.suppress(OSError):
                partial.rmdir()
        elif done > recorded:  # so that Ctrl-C loses no batch
            _record(partial, identity, features, readable, done)
        raise
    assert features is not None
    features.flush()
    replace(partial / "readable.npy", lambda file: file.write(_npy(readable)))
    record = {"identity": identity, "shape": list(features.shape), "crc32": _checksum(features, readable)}
    replace(partial / "key.json", lambda file: file.write(json.dumps(record, indent=2).encode()))
    (partial / "progress.json").unlink(missing_ok=True)
    del features
    os.rename(partial, folder)


def _allocate(path: Path, shape: tuple[int, int]) -> np.memmap:
    features = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a bus error at some later row
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return features


def _resume(partial: Path, identity: dict[str, Any], size: int) -> tuple[np.memmap | None, np.ndarray, int]:
    """What an interrupted encoding left behind, or an empty partial folder."""
    try:
        record = json.loads((partial / "progress.json").read_text())
        features = np.load(partial / "features.npy", mmap_mode="r+", allow_pickle=False)
        readable = np.load(partial / "readable.npy", allow_pickle=False)
        if (
            record["identity"] == identity
            and features.shape == (size, record["width"])
            and features.dtype == np.float32
            and (readable.shape, readable.dtype) == ((size,), np.bool_)
            and 0 < record["done"] <= size
        ):
            return features, readable, record["done"]
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        pass
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    return None, np.zeros(size, bool), 0


def _record(partial: Path, identity: dict[str, Any], features: Any, readable: np.ndarray, done: int) -> None:
    """Notes that the first `done` images are encoded; the rows reach the disk before the note does."""
    features.flush()
    replace(partial / "readable.npy", lambda file: file.write(_npy(readable)))
    record = {"identity": identity, "done": done, "width": features.shape[1]}
    replace(partial / "progress.json", lambda file: file.write(json.dumps(record).encode()))


def _npy(array: np.ndarray) -> bytes:
    """As `np.save` writes it, which says nothing of the cause where a disk is full."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _checksum(features: np.ndarray, readable: np.ndarray) -> int:
    total = zlib.crc32(readable.tobytes())
    for start in range(0, len(features), 8192):
        total = zlib.crc32(features[start : start + 8192].tobytes(), total)
    return total


def lock_of(folder: Path) -> Path:
    """The lock of an entry, held by who writes it."""
    return folder.with_name(f"{folder.name}.lock")


def _say_who(holder: str, folder: Path) -> None:
    _log.warning("waiting for another process, which is encoding the same images to %s: %s", folder, holder)
