"""The format of a run's folder: a number in each of its records, and how records of older formats are read.

Every JSON record (`config.json`, `identity.json`, `study.json`, `summary.json`, `comparison.json`, `sweep.json`,
`diverged.json`, what a checkpoint says beside its arrays) holds `format`, and the `version` of the package that wrote
it; lines of `metrics.jsonl` and npz files hold `format` alone. Folders from before there were numbers are of format 0.

To change what a record means: add one to `FORMAT` and a `Step` to `STEPS`, and keep a small folder of the format before
in `tests/fixtures`. Imports no JAX.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedrsclip_jax import __version__
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.files import read_json, write_json

_UNNUMBERED = "0.1.0 or earlier"  # what wrote records without a number


@dataclass(frozen=True)
class Step:
    """What became of one format's records in the next.

    Attributes:
      renamed: by kind of record (`config`, `ledger`, `summary`): old names of keys, dotted in groups, and the new ones.
      implied: of configurations, keys that are younger, and what runs did without them where that is not the default.
    """

    renamed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    implied: Mapping[str, Any] = field(default_factory=dict)


# Step n leads from format n to n + 1.
STEPS: tuple[Step, ...] = (
    # The split followed the run's seed, and each folder was a class, whatever it was called or held.
    Step(implied={"data.split_seed": -1, "data.layout": "classes"}),
)
FORMAT = len(STEPS)


class Record(dict[str, Any]):
    """A record in the present format, without `format` and `version`.

    Attributes:
      version: of the package that wrote it.
    """

    def __init__(self, content: Mapping[str, Any], version: str):
        super().__init__(content)
        self.version = version


def stamp(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as it is written, with its format and our version."""
    return {"format": FORMAT, "version": __version__, **record}


def upgrade(kind: str, record: Mapping[str, Any], where: object, steps: Sequence[Step] = STEPS) -> Record:
    """A record as written by this or an older version, in the present format.

    Args:
      kind: `config`, `checkpoint`, or the name of the file without its ending.
      where: it comes from, for messages.
      steps: to the present format; other tables are for tests.

    Raises:
      InputError: its format is newer.
    """
    number = check_number(record.get("format", 0), where, record.get("version"), len(steps))
    changed = copy.deepcopy({name: value for name, value in record.items() if name not in ("format", "version")})
    for step in steps[number:]:
        for part, content in _parts(kind, changed):
            for old, new in step.renamed.get(part, {}).items():
                _rename(content, old, new)
            if part == "config":
                for key, value in step.implied.items():
                    group, name = _group(content, key)
                    group.setdefault(name, value)
    return Record(changed, record.get("version", _UNNUMBERED))


def check_number(number: Any, where: object, version: str | None = None, newest: int = FORMAT) -> int:
    """A format's number; `InputError` where it is newer than ours, or none."""
    number = number.item() if hasattr(number, "item") else number  # of an npz file
    if not isinstance(number, int) or number < 0:
        raise InputError(f"{where} has format {number!r}, which is none; give the folder of a sound run")
    if number > newest:
        writer = f"fedrsclip_jax {version}" if version else "a newer fedrsclip_jax"
        raise InputError(
            f"{where} is of format {number}, written by {writer}; this is {__version__}, which reads formats up to "
            f"{newest}; install {version or 'that one'} or a newer version to use it"
        )
    return number


def read(path: Path, *needed: str) -> Record:
    """A JSON record of a run's folder, in the present format.

    Args:
      needed: keys without which it is of no use.

    Raises:
      InputError: it cannot be read, is no JSON object, lacks a key, or is of a newer format.
    """
    record = upgrade(path.stem, read_json(path), path)
    if lacking := [key for key in needed if key not in record]:
        raise InputError(
            f"--workdir: {path} holds no {lacking[0]}; it was written by fedrsclip_jax {record.version}, and this is "
            f"{__version__}; give the folder of a sound run, or use that version"
        )
    return record


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a JSON record of a run's folder."""
    write_json(path, stamp(record))


def version_of(folder: Path) -> str:
    """Which version wrote a run's folder, as far as its configuration tells."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("version", _UNNUMBERED)
    except (OSError, ValueError, AttributeError):
        return "an unknown version"


def _parts(kind: str, record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The record by its kind, and records of other kinds inside it."""
    yield kind, record
    for inner in ("config", "ledger"):
        if isinstance(record.get(inner), dict):
            yield inner, record[inner]
    if kind == "sweep":
        yield from (
            ("summary", run["summary"]) for row in record.get("rows", ()) for run in row["runs"] if run["summary"]
        )


def _group(record: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The group that a dotted key belongs to, made where it is missing, and the key's name in it."""
    *groups, name = key.split(".")
    for group in groups:
        record = record.setdefault(group, {})
    return record, name


def _rename(record: dict[str, Any], old: str, new: str) -> None:
    group: Any = record
    *groups, name = old.split(".")
    for inner in groups:
        group = group.get(inner, {})
    if name in group:
        there, renamed = _group(record, new)
        there[renamed] = group.pop(name)
