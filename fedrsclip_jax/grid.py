"""The rows of a sweep: which keys take which values, and over which seeds. Imports no JAX.

A sweep's configuration is that of a run with a group `sweep` beside it:

    sweep.grid    values of some keys, of which every combination is a row
    sweep.zip     values of some keys, equally many of each, of which the first together are a row, the second, ...
    sweep.seeds   how many seeds each row has, from `seed` on; each seed is another partition
    sweep.labels  names of the rows of `zip`, for the tables

With both grid and zip, every row of zip stands with every row of grid. The `config.json` of a sweep's folder has `rows`
and `seeds` instead: each row with its label and values, which are read as those of zip.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedrsclip_jax.config import Config, Written, keys, resolve
from fedrsclip_jax.errors import InputError

_GROUP = "sweep"
# What the group holds, for people; KEY is any key of a run.
MEANINGS = {
    "sweep.grid.KEY = a,b,c": "values of a key; every combination of the grid's keys is a row",
    "sweep.zip.KEY = a,b,c": "values of a key; the first of all zip's keys together are a row, the second are, ...",
    "sweep.seeds = 1": "runs of each row (whole number, at least 1), with seed, seed + 1, ...",
    "sweep.labels = (none)": "names of zip's rows, for the tables; in a configuration file only",
}
_PARTS = ("grid", "zip", "seeds", "labels")
# Keys that no row may change, and why.
_FIXED = {
    "seed": "sweep.seeds says how many seeds each row has",
    "seeds": "sweep.seeds says how many seeds each row has",
    "baselines": "name methods as values of method.name",
    "eval.split": "rows are compared on the same images",
}
# What a configuration may say of more runs than one is the sweep's to say.
_ALONE = (("seeds", "1"), ("baselines", ""))


@dataclass(frozen=True)
class Row:
    """One line of a sweep's table.

    Attributes:
      label: for people, and the folder's name.
      values: of the keys that the sweep varies.
      runs: one a seed.
    """

    label: str
    values: dict[str, Any]
    runs: tuple[Config, ...]


@dataclass(frozen=True)
class Grid:
    """What a sweep runs.

    Attributes:
      base: the configuration that rows change.
      varied: keys that differ between rows.
      rows: in the order of the table; the first is what the others are compared with.
      left_out: a sentence on what the configuration says of more runs than one, and a sweep does not heed; or empty.
    """

    base: Config
    varied: tuple[str, ...]
    rows: tuple[Row, ...]
    left_out: str = ""


def read(written: Written, overrides: Sequence[tuple[str, str]] = ()) -> Grid:
    """A checked sweep from what a file says and what the command line adds.

    Args:
      written: nested mapping; `sweep` is taken out, and the rest is a run's configuration.
      overrides: (dotted key, text); `sweep.seeds`, `sweep.grid.KEY` and `sweep.zip.KEY` among them, of which the latter
        take values separated by commas.

    Raises:
      InputError: no sweep, an unknown key, values that are no list or of unequal number, a value that does not fit.
    """
    plain = {name: value for name, value in written.items() if name != _GROUP}
    given = dict(written.items()).get(_GROUP)
    if given is not None and not isinstance(given, Written):
        raise InputError(f"config key 'sweep' = {given!r} is no group; a sweep has {', '.join(_PARTS)}")
    group = dict(given.items()) if given else {}
    if "rows" in group:
        group = _of_rows(group, plain)
    if strange := [name for name in group if name not in _PARTS]:
        raise InputError(f"unknown config key 'sweep.{strange[0]}'; a sweep has {', '.join(_PARTS)}")
    lists = {part: dict(_lists(group.get(part) or {}, f"{_GROUP}.{part}")) for part in ("grid", "zip")}
    seeds, others = group.get("seeds", 1), []
    for name, text in overrides:
        head, _, rest = name.partition(".")
        part, _, key = rest.partition(".")
        if head != _GROUP:
            others.append((name, text))
        elif part == "seeds" and not key:
            seeds = int(text) if text.isdecimal() else text
        elif part in lists and key:
            lists[part][key] = text.split(",")
        else:
            raise InputError(f"unknown config key {name!r}; set sweep.seeds, sweep.grid.KEY or sweep.zip.KEY")
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise InputError(f"config key 'sweep.seeds' = {seeds!r} is no number of seeds; it must be at least 1")
    if given := [(key, text) for key, text in others if text != dict(_ALONE).get(key, text)]:
        raise InputError(f"--config.{given[0][0]}={given[0][1]}: {_FIXED[given[0][0]]}")
    varied = (*lists["zip"], *lists["grid"])
    if not varied:
        raise InputError("this configuration varies nothing; give sweep.grid or sweep.zip, or use fedrsclip train")
    if twice := [key for key in lists["zip"] if key in lists["grid"]]:
        raise InputError(f"config key {twice[0]!r} stands in sweep.grid and in sweep.zip; leave one")
    for key in varied:
        if key in _FIXED:
            raise InputError(f"config key {key!r} cannot be varied; {_FIXED[key]}")
        if said := [text for name, text in others if name == key]:
            raise InputError(
                f"--config.{key}={said[0]}: the sweep varies {key}; set its values by --config.sweep."
                f"{'grid' if key in lists['grid'] else 'zip'}.{key}=A,B"
            )
    base = resolve(Config, plain, [*others, *_ALONE])
    labels = group.get("labels") or ()
    if not isinstance(labels, (list, tuple)) or not all(isinstance(label, str) and label for label in labels):
        raise InputError(f"config key 'sweep.labels' = {labels!r} are no names; give a list of texts, one a row of zip")
    rows = []
    for label, values in _combined(lists["zip"], lists["grid"], labels):
        runs = tuple(_with(plain, others, values, base.seed + number) for number in range(seeds))
        rows.append(Row(label, {key: _typed(runs[0], key) for key in values}, runs))
    if len({row.label for row in rows}) < len(rows):
        raise InputError("two rows of the sweep are alike; leave out values that repeat")
    return Grid(base, varied, tuple(rows), _left_out(resolve(Config, plain), seeds))


def _of_rows(group: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The group `sweep` from what a sweep's folder keeps of it.

    Raises:
      InputError: it is no such, or the rows vary a key from which another one may have followed.
    """
    rows = group["rows"]
    sound = isinstance(rows, (list, tuple)) and rows and all(isinstance(row, Written) for row in rows)
    labelled = [dict(row.items()) for row in rows] if sound else [{}]
    names = [*labelled[0]]
    if {*group} != {"rows", "seeds"} or "label" not in names or any([*row] != names for row in labelled):
        raise InputError(
            "config key 'sweep.rows' is written by a sweep into the config.json of its folder, and is not sound here; "
            "give sweep.grid or sweep.zip"
        )
    varied, base = [name for name in names if name != "label"], resolve(Config, plain)
    for name, _, field in keys(Config):
        by = field.metadata["by"][0] if field.metadata["by"] else ""
        share_of = field.metadata["share_of"] if _typed(base, name) else ""  # 0 is no share
        if name not in varied and (other := next((key for key in varied if key in (by, share_of)), None)):
            raise InputError(
                f"the rows of this sweep vary {other}, which {name} may have followed, as its config.json does not "
                "tell; give the configuration that it was started with"
            )
    values = {name: tuple(row[name] for row in labelled) for name in varied}
    return {"zip": values, "labels": [row["label"] for row in labelled], "seeds": group["seeds"]}


def _left_out(config: Config, seeds: int) -> str:
    parts, remedies = [], []
    if config.baselines:
        parts.append(f"baselines = {','.join(config.baselines)}")
        names = ",".join(dict.fromkeys((config.method.name, *config.baselines)))
        remedies.append(f"methods are rows by --config.sweep.grid.method.name={names}")
    if config.seeds not in (1, seeds):
        parts.append(f"seeds = {config.seeds}")
        remedies.append(f"seeds by --config.sweep.seeds={config.seeds}")
    return f"a sweep leaves out {' and '.join(parts)} of its configuration; {', and '.join(remedies)}" if parts else ""


def _lists(group: Any, prefix: str, inside: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Keys, dotted or nested, with their values."""
    if not isinstance(group, Written):
        raise InputError(f"config key {prefix!r} = {group!r} is no group of keys; write {prefix}.KEY = (values)")
    for name, values in group.items():
        key = f"{inside}{name}"
        if isinstance(values, Written):
            yield from _lists(values, prefix, f"{key}.")
        elif isinstance(values, (list, tuple)) and values:
            yield key, list(values)
        else:
            raise InputError(f"config key '{prefix}.{key}' = {values!r} is no list of values; give one or more")


def _combined(
    zipped: Mapping[str, Sequence[Any]], grid: Mapping[str, Sequence[Any]], labels: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    short = {key: _shortest(key, [*zipped, *grid]) for key in (*zipped, *grid)}

    def said(key: str, value: Any) -> str:
        return f"{short[key]}={_text(value)}"

    lengths = {key: len(values) for key, values in zipped.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(
            f"lists of sweep.zip are of unequal length: {', '.join(f'{k} {n}' for k, n in lengths.items())}"
        )
    lines = (
        [dict(zip(zipped, values, strict=True)) for values in zip(*zipped.values(), strict=True)] if zipped else [{}]
    )
    if labels and len(labels) != len(lines):
        raise InputError(f"sweep.labels are {len(labels)}, and sweep.zip has {len(lines)} rows; give one a row")
    for number, line in enumerate(lines):
        for values in itertools.product(*grid.values()):
            crossed = dict(zip(grid, values, strict=True))
            named = [labels[number]] if labels else [said(key, value) for key, value in line.items()]
            yield ", ".join([*named, *(said(key, value) for key, value in crossed.items())]), {**line, **crossed}


def _shortest(key: str, keys: Sequence[str]) -> str:
    """A key without its groups, unless another one ends alike."""
    name = key.rpartition(".")[2]
    return name if sum(other.rpartition(".")[2] == name for other in keys) == 1 else key


def _with(
    written: Mapping[str, Any], overrides: Sequence[tuple[str, str]], values: Mapping[str, Any], seed: int
) -> Config:
    """One run's configuration; texts from the command line are read by the key's type."""
    texts = [(key, value if isinstance(value, str) else _text(value)) for key, value in values.items()]
    return resolve(Config, written, [*overrides, *texts, ("seed", str(seed)), *_ALONE])


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _typed(config: Config, key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found
