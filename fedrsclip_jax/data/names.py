"""Class names as a person would write them: from folders' names, or from `classnames.txt` beside them."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from fedrsclip_jax.errors import InputError

CLASS_NAMES_FILE = "classnames.txt"

# Names that well-known data sets (UC Merced, WHU-RS19) write in one word, where no rule finds the gap.
_SPACED = (
    "baseball diamond, dense residential, football field, golf course, medium residential, mobile home park, "
    "parking lot, railway station, sparse residential, storage tanks, tennis court"
)
RUN_TOGETHER = {words.replace(" ", ""): words for words in _SPACED.split(", ")}


def readable_name(name: str) -> str:
    """`BareLand`, `storage_tanks`, `annual-crop` or `golfcourse` as the words a person would write."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = " ".join(re.split(r"[\s_\-]+", spaced.strip(" _-"))).lower()
    return RUN_TOGETHER.get(words, words)


def class_names(root: Path, folders: list[str]) -> tuple[str, ...]:
    """Readable names of class folders; `InputError` where `classnames.txt` is wrong or two have one name."""
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
    return distinct([given.get(folder) or readable_name(folder) for folder in folders], folders)


def distinct(names: Sequence[str], originals: Sequence[str]) -> tuple[str, ...]:
    """The names; `InputError` where two of them are the same."""
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(
                f"classes {originals[names.index(name)]!r} and {originals[i]!r} are both called {name!r}; "
                f"merge them, or tell them apart in {CLASS_NAMES_FILE}"
            )
    return tuple(names)
