"""Federated prompt learning of CLIP for remote-sensing scene classification, simulated at scale in JAX.

In a notebook: `import fedrsclip_jax as frs`; the names below are those of `fedrsclip_jax/interface.py`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedrsclip_jax.interface import (
        Federation,
        Round,
        load_backbone,
        load_config,
        load_images,
        make_clients,
        make_method,
    )

__version__ = "0.1.0"
__all__ = [
    "Federation",
    "Round",
    "load_backbone",
    "load_config",
    "load_images",
    "make_clients",
    "make_method",
]


def __getattr__(name: str) -> Any:
    """The names of the interface on demand (PEP 562), so that the command line starts without JAX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fedrsclip_jax import interface

    return getattr(interface, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
