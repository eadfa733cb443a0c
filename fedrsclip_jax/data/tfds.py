"""Data sets of TensorFlow Datasets as sources of images, read without TensorFlow."""

import difflib
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fedrsclip_jax.data.decoding import decode, unreadable
from fedrsclip_jax.data.names import distinct, readable_name
from fedrsclip_jax.data.published import published
from fedrsclip_jax.errors import InputError, install


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
        remedy = f"prepare it with: {install('tfds')} && fedrsclip data --name={name}{place}"
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
        self.class_names = distinct([readable_name(name) for name in names], names)
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
            raise unreadable(self.name(i), error) from error

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


def _scan(split: Any) -> list[tuple[int, str]]:
    """Label and digest of each record; in blocks, as single reads are several times slower."""
    rows: list[tuple[int, str]] = []
    for start in range(0, len(split), 256):
        block = split.__getitems__(list(range(start, min(start + 256, len(split)))))
        rows += [(int(record["label"]), hashlib.sha256(record["image"]).hexdigest()) for record in block]
    return rows
