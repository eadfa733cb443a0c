"""Backbone and images by the names that others know: what is passed on says nothing of this machine's folders."""

from pathlib import Path

from fedrsclip_jax.data.sources import split_spec


def place_name(place: str) -> str:
    """A backbone or folder as others know it: of a path on this machine, its last part."""
    path = Path(place).expanduser()
    return path.resolve().name if path.is_dir() or path.is_absolute() else place


def source_name(spec: str) -> str:
    """`data.source` as others know it: of each folder, its last part."""
    parts = [part.partition(":") for part in split_spec(spec)]
    return ",".join(
        f"{kind}{colon}{Path(name).expanduser().resolve().name if kind == 'folder' else name}"
        for kind, colon, name in parts
    )
