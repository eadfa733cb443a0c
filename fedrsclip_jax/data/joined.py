"""Several sources as one: each keeps its images, and is a domain of its own; class names that mean the same are merged.

A federation of institutions that use different sensors and name their classes differently
(`partition.kind=domain`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fedrsclip_jax.data.sources import ImageSource, remarks_of, sides_of
from fedrsclip_jax.errors import InputError

SHIPPED_MERGE = Path(__file__).resolve().parent.parent / "assets" / "class_names" / "merged.txt"


class Joined:
    """The images of several sources, one source after another.

    Attributes:
      class_names: those of the first source, then what each further one adds; see `ImageSource` for the others.
      domain_names, domains: the sources; their own domains are not told apart.
      sides: of the splits that the sources bring; see `sources.sides_of`.
      remarks: those of the sources.
      origins: what each class is called in each source, None where a source lacks it: [class][source].
    """

    def __init__(
        self,
        parts: Sequence[ImageSource],
        specs: Sequence[str],
        same: Mapping[str, str] | None = None,
        classes: str = "union",
    ):
        """
        Args:
          specs: the sources as `data.source` names them.
          same: name -> name that is used for it; see `read_merge`.
          classes: `union`, or `intersection`: images of classes that a source lacks are left out.

        Raises:
          InputError: a source is given twice, two classes of one source would be merged, or too few are common.
        """
        if twice := [spec for i, spec in enumerate(specs) if spec in specs[:i]]:
            raise InputError(f"data.source names {twice[0]} twice; give each source once")
        self.domain_names = _short(specs)
        merged = [_merged(part.class_names, same or {}, spec) for part, spec in zip(parts, specs, strict=True)]
        names = list(dict.fromkeys(name for of_part in merged for name in of_part))
        if classes == "intersection":
            names = [name for name in names if all(name in of_part for of_part in merged)]
            if len(names) < 2:
                raise InputError(
                    f"data.classes=intersection leaves {len(names)} of the classes of {', '.join(self.domain_names)}; "
                    "use union, or say which names mean the same in a file, --config.data.merge=FILE"
                )
        self.class_names = tuple(names)
        self.origins = [
            [
                part.class_names[of_part.index(name)] if name in of_part else None
                for part, of_part in zip(parts, merged, strict=True)
            ]
            for name in names
        ]
        labels, domains, rows = [], [], []
        for number, (part, of_part) in enumerate(zip(parts, merged, strict=True)):
            numbers = np.array([names.index(name) if name in names else -1 for name in of_part], np.int32)
            label = numbers[part.labels]
            kept = np.flatnonzero(label >= 0)
            labels.append(label[kept])
            domains.append(np.full(len(kept), number, np.int32))
            rows.append(kept)
        self.labels, self.domains = np.concatenate(labels), np.concatenate(domains)
        self._parts, self._rows = parts, np.concatenate(rows)
        of_parts = [sides_of(part) for part in parts]
        self.sides = None
        if any(sides is not None for sides in of_parts):
            self.sides = np.concatenate(
                [
                    np.full(len(kept), -1, np.int8) if sides is None else sides[kept]
                    for sides, kept in zip(of_parts, rows, strict=True)
                ]
            )
        self.remarks = [remark for part in parts for remark in remarks_of(part)]
        self._digests: list[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digests(self) -> list[str]:
        """Those of the sources; read when first asked for."""
        if self._digests is None:
            digests = [part.digests for part in self._parts]
            places = zip(self.domains.tolist(), self._rows.tolist(), strict=True)
            self._digests = [digests[part][row] for part, row in places]
        return self._digests

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        return self._parts[self.domains[i]].image(int(self._rows[i]))

    def name(self, i: int) -> str:
        return self._parts[self.domains[i]].name(int(self._rows[i]))


def read_merge(path: str | Path = "") -> dict[str, str]:
    """Which name is used for which, from lines `name = same = same too`; by default from the shipped file.

    Raises:
      InputError: the file cannot be read, a line has no `=`, or a name stands in two lines.
    """
    file = Path(path).expanduser() if path else SHIPPED_MERGE
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error.__class__.__name__
        raise InputError(f"data.merge={path} cannot be read ({reason}); give a text file in UTF-8") from error
    used: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        names = [" ".join(name.split()).lower() for name in line.partition("#")[0].split("=")]
        if names == [""]:
            continue
        if len(names) < 2 or "" in names:
            raise InputError(f"data.merge={file} line {number}: {line.strip()!r}; write: freeway = highway")
        for name in names:
            if name in used:
                raise InputError(f"data.merge={file} line {number}: {name!r} stands in it twice; put it into one line")
            used[name] = names[0]
    return used


def _merged(names: Sequence[str], same: Mapping[str, str], spec: str) -> list[str]:
    merged = [same.get(name.lower(), name.lower()) for name in names]
    for i, name in enumerate(merged):
        if name in merged[:i]:
            raise InputError(
                f"{spec} tells {names[merged.index(name)]!r} and {names[i]!r} apart, which data.merge takes for the "
                "same; give a file without that line, --config.data.merge=FILE"
            )
    return merged


def _short(specs: Sequence[str]) -> tuple[str, ...]:
    """A folder's last name, a set's name, or the whole where that is not enough to tell them apart."""
    short = [
        Path(spec.partition(":")[2]).name if spec.startswith("folder:") else spec.split(":", 1)[-1] for spec in specs
    ]
    return tuple(name if short.count(name) == 1 and name else spec for name, spec in zip(short, specs, strict=True))
