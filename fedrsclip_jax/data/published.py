"""Data sets that have to be fetched: how large they were published, what to download, and where it goes."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Published:
    """A data set as its authors published it.

    Attributes:
      classes, images: how many it holds.
      file: what is downloaded.
      page: where from.
      unpacked: folder of class folders below TFDS's folder for manual downloads; empty where TFDS downloads and
        unpacks the file itself, and looks for it there first.
    """

    classes: int
    images: int
    file: str
    page: str
    unpacked: str = ""

    def instructions(self, manual: Path) -> str:
        """What a person has to do, as a part of a sentence; `manual` is TFDS's folder for manual downloads."""
        if self.unpacked:
            return f"download {self.file} from {self.page} and unpack it to {manual / self.unpacked}/CLASS/*.jpg"
        return f"download {self.file} from {self.page} and put it, packed, into {manual}"


PUBLISHED = {
    # Wang et al. 2018, doi:10.1109/TGRS.2018.2864987
    "optimal31": Published(31, 1_860, "OPTIMAL-31", "https://crabwq.github.io", "OPTIMAL-31"),
    # Yang and Newsam 2010, doi:10.1145/1869790.1869829
    "uc_merced": Published(
        21, 2_100, "UCMerced_LandUse.zip", "http://weegee.vision.ucmerced.edu/datasets/UCMerced_LandUse.zip"
    ),
    # Cheng et al. 2017, arXiv:1703.00121
    "resisc45": Published(
        45, 31_500, "NWPU-RESISC45.rar", "https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs", "NWPU-RESISC45"
    ),
    # Helber et al. 2019, arXiv:1709.00029
    "eurosat/rgb": Published(10, 27_000, "EuroSAT.zip", "http://madm.dfki.de/files/sentinel/EuroSAT.zip"),
}


def published(name: str) -> Published | None:
    """What is known of a set by its name for TFDS, with or without a version; EuroSAT's default is `rgb`."""
    base = name.partition(":")[0]
    return PUBLISHED.get("eurosat/rgb" if base == "eurosat" else base)
