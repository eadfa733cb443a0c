"""Small data sets in the raw layouts of the real ones, prepared by the real builders.

A program, so that TensorFlow has a process of its own.

    python -m tests.lookalikes FOLDER

What was refused on the way goes into FOLDER/refused.json.
"""

import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from fedrsclip_jax.data.optimal31 import CLASSES

EACH = 3
# Class folders as the archives have them.
UC_MERCED = [
    "agricultural",
    "airplane",
    "baseballdiamond",
    "beach",
    "buildings",
    "chaparral",
    "denseresidential",
    "forest",
    "freeway",
    "golfcourse",
    "harbor",
    "intersection",
    "mediumresidential",
    "mobilehomepark",
    "overpass",
    "parkinglot",
    "river",
    "runway",
    "sparseresidential",
    "storagetanks",
    "tenniscourt",
]
EUROSAT = [
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
]
RESISC45 = ("airplane", "sea_ice", "wetland")  # of 45


def picture(data_set: str, label: str, number: int, side: int) -> Image.Image:
    """Smooth, so that JPEG keeps it; another one for every image."""
    seed = int.from_bytes(hashlib.sha256(f"{data_set} {label} {number}".encode()).digest()[:4], "big")
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def write(manual: Path) -> None:
    """All four below TFDS's folder for manual downloads."""
    manual.mkdir(parents=True)
    with zipfile.ZipFile(manual / "UCMerced_LandUse.zip", "w") as archive:
        for label in UC_MERCED:
            for i in range(EACH):
                data = encoded(picture("uc_merced", label, i, 40), "tiff")
                archive.writestr(f"UCMerced_LandUse/Images/{label}/{label}{i:02}.tif", data)
    with zipfile.ZipFile(manual / "EuroSAT.zip", "w") as archive:
        for label in EUROSAT:
            for i in range(EACH):
                data = encoded(picture("eurosat", label, i, 64), "jpeg")
                archive.writestr(f"2750/{label}/{label}_{i + 1}.jpg", data)
    for label in RESISC45:
        folder = manual / "NWPU-RESISC45" / label
        folder.mkdir(parents=True)
        for i in range(EACH):
            (folder / f"{label}_{i + 1:03}.jpg").write_bytes(encoded(picture("resisc45", label, i, 256), "jpeg"))
    optimal31(manual)


def optimal31(manual: Path) -> None:
    for label in CLASSES:
        folder = manual / "OPTIMAL-31" / "Images" / label
        folder.mkdir(parents=True)
        for i in range(EACH):
            (folder / f"{label}_{i + 1:02}.jpg").write_bytes(encoded(picture("optimal31", label, i, 32), "jpeg"))


def main(folder: str) -> None:
    from tensorflow_datasets.core.download.checksums import compute_url_info

    from fedrsclip_jax.data.preparation import prepare
    from fedrsclip_jax.data.tfds import find_builder
    from fedrsclip_jax.errors import InputError

    manual = Path(folder) / "downloads" / "manual"
    write(manual)
    refused = {}
    for name, archive in (("uc_merced", "UCMerced_LandUse.zip"), ("eurosat/rgb", "EuroSAT.zip")):
        try:  # it is not the published file
            prepare(name, folder, quiet=True)
        except InputError as error:
            refused[name] = str(error)
        builder = type(find_builder(name, folder))
        expected = {url: compute_url_info(manual / archive) for url in builder.url_infos if url.endswith(archive)}
        builder.url_infos = expected  # of the look-alike in place of the real archive
    for name in ("uc_merced", "eurosat/rgb", "resisc45", "optimal31"):
        prepare(name, folder, quiet=True)
    (Path(folder) / "refused.json").write_text(json.dumps(refused))


if __name__ == "__main__":
    main(sys.argv[1])
