"""With what, when, where and by which command something was computed."""

import importlib.metadata
import platform
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from fedrsclip_jax import __version__

PACKAGES = ("jax", "jaxlib", "flax", "numpy")
_COMMAND: ContextVar[str | None] = ContextVar("command", default=None)


@contextmanager
def of_command(words: Sequence[str]) -> Iterator[None]:
    """What is computed inside was asked for by this command line."""
    token = _COMMAND.set(shlex.join(["fedrsclip", *words]))
    try:
        yield
    finally:
        _COMMAND.reset(token)


def provenance() -> dict[str, Any]:
    """Versions, date (UTC), host, kind of device, and the command; None where there was none, as in a notebook."""
    import jax

    device = jax.local_devices()[0]
    return {
        "fedrsclip_jax": __version__,
        **{package: importlib.metadata.version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "platform": device.platform,
        "device": device.device_kind,
        "processor": platform.machine(),
        "command": _COMMAND.get(),
    }
