"""Optimal-31 for TensorFlow Datasets, which does not have it; importing this file makes `optimal31` known to TFDS.

Wang, Liu, Chanussot and Li 2018, Scene Classification With Recurrent Attention of VHR Remote Sensing Images,
doi:10.1109/TGRS.2018.2864987: 31 classes of 60 images of 256 x 256 pixels.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from fedrsclip_jax.data.published import PUBLISHED
from fedrsclip_jax.errors import InputError

CLASSES = (
    "airplane",
    "airport",
    "baseball_diamond",
    "basketball_court",
    "beach",
    "bridge",
    "chaparral",
    "church",
    "circular_farmland",
    "commercial_area",
    "dense_residential",
    "desert",
    "forest",
    "freeway",
    "golf_course",
    "ground_track_field",
    "harbor",
    "industrial_area",
    "intersection",
    "island",
    "lake",
    "meadow",
    "medium_residential",
    "mobile_home_park",
    "mountain",
    "overpass",
    "parking_lot",
    "railway",
    "rectangular_farmland",
    "roundabout",
    "runway",
)


class Optimal31(tfds.core.GeneratorBasedBuilder):
    """Optimal-31 from a folder of class folders that was downloaded by hand."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = PUBLISHED["optimal31"].instructions(Path("MANUAL_DIR"))

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Aerial scenes of 31 classes, 60 images each.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                    "filename": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=PUBLISHED["optimal31"].page,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {"train": self._generate_examples(class_folders(Path(dl_manager.manual_dir)))}

    def _generate_examples(self, folders: dict[str, Path]) -> Iterator[tuple[str, dict[str, str]]]:
        for label, folder in folders.items():
            for path in sorted(folder.glob("*.[jJ][pP][gG]")):
                yield f"{label}/{path.name}", {"image": str(path), "label": label, "filename": path.name}


def class_folders(manual: Path) -> dict[str, Path]:
    """The folder of each class below TFDS's folder for manual downloads.

    Found are `OPTIMAL-31` in any spelling, its `Images` or itself, and the classes in any spelling.

    Raises:
      InputError: something is missing, or a folder is of no class.
    """
    remedy = PUBLISHED["optimal31"].instructions(manual)
    tops = [path for path in _folders(manual) if _letters(path.name) == "optimal31"]
    if not tops:
        raise InputError(f"optimal31 is not in {manual}; {remedy}")
    top = next((path for path in _folders(tops[0]) if _letters(path.name) == "images"), tops[0])
    labels = {_letters(name): name for name in CLASSES}
    found = {}
    for path in _folders(top):
        if _letters(path.name) not in labels:
            near = difflib.get_close_matches(path.name, CLASSES, n=1, cutoff=0.0)[0]
            raise InputError(f"optimal31: {path} is none of its 31 classes, the nearest is {near!r}; move it away")
        found[labels[_letters(path.name)]] = path
    if lacking := [name for name in CLASSES if name not in found]:
        raise InputError(f"optimal31: {top} lacks {len(lacking)} of its 31 classes, such as {lacking[0]!r}; {remedy}")
    return found


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.glob("*") if p.is_dir() and not p.name.startswith("."))


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
