"""Where images come from: class folders, TensorFlow Datasets, drawn scenes, and views on any of these.

A source gives decoded images one at a time and describes them by arrays, so that splitting and partitioning
never decode a picture. Each image has a *digest* of its content: equal digests are exact duplicates, which a
split must keep together, and the digests of all images are the fingerprint of a source.
"""

import difflib
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, UInt8

from fedrsclip_jax.data.published import published
from fedrsclip_jax.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
CLASS_NAMES_FILE = "classnames.txt"
MOST_PIXELS = 100_000_000  # of a picture: eight are decoded at a time
SHORT_SIDE = 1024  # pixels that a large picture keeps at least, several times what any CLIP looks at
SKIP_HINT = "repair or remove it, or skip such images with --config.data.skip_unreadable=True"

# Names that well-known data sets (UC Merced, WHU-RS19) write in one word, where no rule finds the gap.
_SPACED = (
    "baseball diamond, dense residential, football field, golf course, medium residential, mobile home park, "
    "parking lot, railway station, sparse residential, storage tanks, tennis court"
)
RUN_TOGETHER = {words.replace(" ", ""): words for words in _SPACED.split(", ")}


@runtime_checkable
class ImageSource(Protocol):
    """Labelled images that can be opened in any order.

    Attributes:
        class_names: readable class names; a label is a position in it.
        labels: class of each image, int32 [images].
        domain_names: names of the sensors (or sites); `("all",)` where a source knows of none.
        domains: sensor of each image, int32 [images].
        digests: hex digest of the content of each image; equal digests mean equal images.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> Int32[np.ndarray, "images"]: ...
    @property
    def domain_names(self) -> tuple[str, ...]: ...
    @property
    def domains(self) -> Int32[np.ndarray, "images"]: ...
    @property
    def digests(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        """Image `i` as RGB; raises `InputError` that names the file where it cannot be decoded."""
        ...

    def name(self, i: int) -> str:
        """What to call image `i` in a message: a path, or a position in a data set."""
        ...


def readable_name(name: str) -> str:
    """`BareLand`, `storage_tanks`, `annual-crop` or `golfcourse` as the words a person would write."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = " ".join(re.split(r"[\s_\-]+", spaced.strip(" _-"))).lower()
    return RUN_TOGETHER.get(words, words)


def decode(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image file to RGB.

    Grey and palette pictures become RGB and an alpha channel is dropped. One-channel pictures of more than
    8 bits are stretched between their 2nd and 98th percentile, as is usual for raw sensor counts; of 16-bit
    *colour*, Pillow reads the high bytes only.

    Raises:
        ValueError: the bytes are not a complete image of a known format.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(
                    f"{picture.width:,} x {picture.height:,} pixels are more than {MOST_PIXELS:,}; cut it into tiles"
                )
            picture.load()
            if picture.mode.startswith("I") or picture.mode == "F":
                return _stretch(np.asarray(picture))
            if "transparency" in picture.info:
                picture = picture.convert("RGBA")
            return np.array(picture.convert("RGB"))
    except MemoryError:
        raise
    except UnidentifiedImageError as error:  # its own message holds an address in memory
        raise ValueError("not an image of a known format") from error
    except Exception as error:  # Pillow raises anything from SyntaxError to struct.error on damaged files.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def shrink(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """A large picture by means over blocks of pixels, with `SHORT_SIDE` or more on its short side; others as they are.

    So what waits for the encoder does not grow with the pictures on the disk.
    """
    from PIL import Image

    factor = min(image.shape[:2]) // SHORT_SIDE
    return image if factor < 2 else np.asarray(Image.fromarray(image).reduce(factor))


def _stretch(raw: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(raw.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = np.percentile(values, (2, 98))
    values -= low
    values *= 255 / max(high - low, 1e-12)
    grey = np.rint(np.clip(values, 0.0, 255.0, out=values), out=values).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


class Folder:
    """A folder with one folder of jpg, png or tif images per class, directly in it or nested deeper.

    Hidden files and folders are ignored. Class names are made readable from the folders' names, or taken from
    `classnames.txt` beside them: on each line a folder, then a tab, `=` or space, then its name.

    Raises:
        InputError: no such folder, no class folders, fewer than two classes, a class with fewer than two
            images, two classes of one readable name, or a bad line in `classnames.txt`.
    """

    def __init__(self, path: str | Path):
        root = Path(path).expanduser()
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise InputError(f"data.source=folder:{path} {what}; give a folder of class folders")
        folders = sorted((p for p in root.iterdir() if p.is_dir() and not _hidden(p.name)), key=_natural)
        if not folders:
            raise InputError(f"folder {path} has no class folders; put each class's images into a folder")
        files = [images_below(folder) for folder in folders]
        if not any(files):
            raise InputError(f"folder {path} has no images below its {len(folders)} folders; {_formats()}")
        if len(folders) < 2:
            raise InputError(
                f"folder {path} has one class folder, {folders[0].name!r}, and needs at least two; "
                f"are they one level deeper, in {Path(path) / folders[0].name}?"
            )
        for folder, members in zip(folders, files, strict=True):
            if len(members) < 2:
                raise InputError(
                    f"class {folder.name!r} in {path} has {len(members)} image(s) and needs two, to train "
                    f"and to test; add images ({_formats()}) or move the folder away"
                )
        self.class_names = _class_names(root, [folder.name for folder in folders])
        self.domain_names = ("all",)
        self.labels = np.repeat(np.arange(len(folders)), [len(m) for m in files]).astype(np.int32)
        self.domains = np.zeros(len(self.labels), np.int32)
        self._files = [path for members in files for path in members]
        self._digests: list[str] | None = None

    def __len__(self) -> int:
        return len(self._files)

    @property
    def digests(self) -> list[str]:
        """sha256 of each file's bytes; read when first asked for."""
        if self._digests is None:
            with ThreadPoolExecutor(8) as pool:  # hashing and reading both release the interpreter lock
                self._digests = list(pool.map(_file_digest, self._files))
        return self._digests

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        path = self._files[i]
        try:
            return decode(path.read_bytes())
        except (OSError, ValueError) as error:
            raise _unreadable(str(path), error) from error

    def name(self, i: int) -> str:
        return str(self._files[i])


class Tfds:
    """An image + label set of TensorFlow Datasets, all its splits one after another, read without TensorFlow.

    The set must have been prepared as array_record (or parquet), the formats with random access. Images stay
    encoded until they are asked for; labels and digests are read once, on opening.

    Args:
        name: as TFDS spells it: `uc_merced`, `eurosat/rgb`, `resisc45`, with `:VERSION` if wanted.
        data_dir: where the set was prepared; by default TFDS's own folder.

    Raises:
        InputError: the set is unknown, not prepared in such a format, or has no image and label.
    """

    def __init__(self, name: str, data_dir: str | Path | None = None):
        import tensorflow_datasets as tfds

        builder = find_builder(name, data_dir)
        place = "" if data_dir is None else f" --config.data.tfds_dir={data_dir}"
        remedy = f"prepare it with: pip install 'fedrsclip_jax[tfds]' && fedrsclip data --name={name}{place}"
        features = dict(builder.info.features or {})
        image, label = features.get("image"), features.get("label")
        if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
            raise InputError(
                f"data.source=tfds:{name} has no images with class labels; use a set with features 'image' "
                "and 'label', such as uc_merced, eurosat/rgb or resisc45"
            )
        if not builder.info.splits:
            known = published(name)
            by_hand = f"{known.instructions(manual_folder(builder))}, then " if known and known.unpacked else ""
            raise InputError(f"data.source=tfds:{name} is not prepared in {builder.data_dir}; {by_hand}{remedy}")
        try:
            # Encoded images: they are what is digested, and they are decoded by the same code as a folder's.
            splits: Any = builder.as_data_source(decoders={"image": tfds.decode.SkipDecoding()})
            scans = {split_name: _scan(splits[split_name]) for split_name in sorted(splits)}
        except (NotImplementedError, ValueError, OSError, RuntimeError, IndexError) as error:
            raise InputError(
                f"data.source=tfds:{name} cannot be read as array_record from {builder.data_dir}; "
                f"delete that folder and {remedy}"
            ) from error
        names = label.names
        # Some sets mark the images of an unlabelled test split by -1.
        rows = [(key, row, *pair) for key, scan in scans.items() for row, pair in enumerate(scan) if pair[0] >= 0]
        self.class_names = _distinct([readable_name(name) for name in names], names)
        self.domain_names = ("all",)
        self.labels = np.array([label for _, _, label, _ in rows], np.int32)
        self.domains = np.zeros(len(rows), np.int32)
        self.digests = [digest for _, _, _, digest in rows]
        self._places = [(key, row) for key, row, _, _ in rows]
        self._splits, self._name = splits, name

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        split, row = self._places[i]
        try:
            return decode(self._splits[split][row]["image"])
        except ValueError as error:
            raise _unreadable(self.name(i), error) from error

    def name(self, i: int) -> str:
        split, row = self._places[i]
        return f"tfds:{self._name} {split}[{row}]"


def find_builder(name: str, data_dir: str | Path | None = None, **settings: Any) -> Any:
    """TFDS's builder of a set, prepared or not; `settings` are its own.

    Raises:
        InputError: neither TFDS nor this package knows the set; the nearest name is named.
    """
    import tensorflow_datasets as tfds

    import fedrsclip_jax.data.optimal31  # noqa: F401  makes it known to TFDS

    try:
        return tfds.builder(name, data_dir=None if data_dir is None else str(data_dir), **settings)
    except Exception as error:  # TFDS has no common error, and runs the code of the set's author.
        known = tfds.list_builders(with_community_datasets=False)
        base = name.split("/")[0].split(":")[0]
        nearest = difflib.get_close_matches(base, known, n=1, cutoff=0.0)[0]
        reason = next(iter(str(error).splitlines()), "") if base in known else f"the nearest name is {nearest!r}"
        raise InputError(f"data.source=tfds:{name} is not known ({reason}); names: tfds.list_builders()") from error


def manual_folder(builder: Any) -> Path:
    """Where TFDS looks for what a person has downloaded for this builder."""
    below = len(Path(builder.info.full_name).parts)  # name, configuration, version
    return Path(builder.data_dir).parents[below - 1] / "downloads" / "manual"


class Subset:
    """The images `indices` of a source, in that order; classes and domains keep their numbers."""

    def __init__(self, source: ImageSource, indices: Int[np.ndarray, "images"]):
        self.source = source
        self.indices = indices
        self.class_names, self.domain_names = source.class_names, source.domain_names
        self.labels, self.domains = source.labels[indices], source.domains[indices]

    @property
    def digests(self) -> list[str]:
        digests = self.source.digests
        return [digests[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        return self.source.image(int(self.indices[i]))

    def name(self, i: int) -> str:
        return self.source.name(int(self.indices[i]))


def half(source: ImageSource, which: str, seed: int) -> Subset:
    """One of two halves, `pretrain` or `federate`, that have no image in common, not even as a duplicate.

    Each class is cut in the middle of its distinct images, ordered by sha256(digest, seed), whatever the
    order of the files. Duplicates go where their first one goes, even under another label. Of an odd number,
    `federate` gets the larger part.
    """
    if which not in ("pretrain", "federate"):
        raise InputError(f"half {which!r} is not known; allowed are 'pretrain' and 'federate'")
    first_class: dict[str, int] = {}
    for digest, label in zip(source.digests, source.labels, strict=True):
        first_class.setdefault(digest, int(label))
    members: dict[int, list[str]] = {}
    for digest, label in first_class.items():
        members.setdefault(label, []).append(digest)
    pretrain: set[str] = set()
    for digests in members.values():
        digests.sort(key=lambda digest: hashlib.sha256(f"{digest}/{seed}".encode()).digest())
        pretrain.update(digests[: len(digests) // 2])
    wanted = which == "pretrain"
    chosen = [i for i, digest in enumerate(source.digests) if (digest in pretrain) == wanted]
    return Subset(source, np.array(chosen, np.int64))


def fingerprint(source: ImageSource) -> str:
    """sha256 over the images, labels and class names of a source, in their order."""
    return _sha256([*source.class_names, *source.digests], np.ascontiguousarray(source.labels, "<i4").tobytes())


def fingerprint_of_images(source: ImageSource) -> str:
    """sha256 over the images alone: what they are called, and how names are merged, does not change it."""
    return _sha256(source.digests)


def _sha256(parts: Iterable[str], last: bytes = b"") -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() + b"\0")
    total.update(last)
    return total.hexdigest()


def open_source(
    spec: str,
    *,
    scenes_count: int,
    scenes_size: int,
    scenes_domains: tuple[str, ...],
    seed: int,
    data_dir: str | Path | None = None,
) -> ImageSource:
    """Opens `scenes`, `folder:PATH` or `tfds:NAME`; only `tfds` uses `data_dir`, only `scenes` the others.

    Raises:
        InputError: another kind of source, or one that cannot be opened.
    """
    kind, colon, rest = spec.partition(":")
    if kind == "scenes" and not colon:
        from fedrsclip_jax.data.scenes import Scenes

        return Scenes(scenes_count, size=scenes_size, seed=seed, domains=scenes_domains)
    if kind == "folder" and rest:
        return Folder(rest)
    if kind == "tfds" and rest:
        return Tfds(rest, data_dir)
    raise InputError(f"data.source={spec!r} is not known; use scenes, folder:PATH or tfds:NAME")


def split_spec(spec: str) -> list[str]:
    """The sources of `data.source`, which stand one after another with commas between; a path may hold commas."""
    return re.split(r",(?=scenes(?:,|$)|folder:|tfds:)", spec)


def named_spec(names: str) -> str:
    """`data.source` for names as a person gives them, with commas between: those of TFDS need no `tfds:`."""
    known = ("folder:", "tfds:")
    return ",".join(n if n == "scenes" or n.startswith(known) else f"tfds:{n}" for n in names.split(","))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _natural(path: Path) -> tuple:
    parts = re.split(r"(\d+)", path.as_posix())
    return [(int(p), "") if p.isdecimal() else (-1, p.lower()) for p in parts], path.as_posix()


def images_below(folder: Path) -> list[Path]:
    """Image files in a folder and those below it, in natural order; hidden ones are ignored."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    return sorted((p for p in found if not any(map(_hidden, p.relative_to(folder).parts))), key=_natural)


def _formats() -> str:
    return "images are " + ", ".join(extension.lstrip(".") for extension in EXTENSIONS)


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # named when the image itself is asked for, which may be skipped
        return hashlib.sha256(f"unreadable {path}".encode()).hexdigest()


def _unreadable(name: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return InputError(f"cannot read image {name} ({reason}); {SKIP_HINT}")


def _scan(split: Any) -> list[tuple[int, str]]:
    """Label and digest of each record; in blocks, as single reads are several times slower."""
    rows: list[tuple[int, str]] = []
    for start in range(0, len(split), 256):
        block = split.__getitems__(list(range(start, min(start + 256, len(split)))))
        rows += [(int(record["label"]), hashlib.sha256(record["image"]).hexdigest()) for record in block]
    return rows


def _class_names(root: Path, folders: list[str]) -> tuple[str, ...]:
    for folder in folders:
        if not folder.isprintable():  # bytes that are no UTF-8 are not, as Python reads them
            raise InputError(f"class folder {folder!r} in {root} is not named in UTF-8 text; rename it")
    path = root / CLASS_NAMES_FILE
    given: dict[str, str] = {}
    if path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            separator = "\t" if "\t" in line else "=" if "=" in line else None
            folder, *words = (part.strip() for part in line.strip().split(separator, 1))
            if folder not in folders:
                nearest = difflib.get_close_matches(folder, folders, n=1, cutoff=0.0)[0]
                raise InputError(f"{path} line {number}: no class folder {folder!r}; nearest is {nearest!r}")
            if not words or not words[0]:
                raise InputError(f"{path} line {number}: no readable name; write: {folder} = some words")
            given[folder] = " ".join(words[0].split())
    return _distinct([given.get(folder) or readable_name(folder) for folder in folders], folders)


def _distinct(names: Sequence[str], originals: Sequence[str]) -> tuple[str, ...]:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(
                f"classes {originals[names.index(name)]!r} and {originals[i]!r} are both called {name!r}; "
                f"merge them, or tell them apart in {CLASS_NAMES_FILE}"
            )
    return tuple(names)
