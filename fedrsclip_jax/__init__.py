"""Federated prompt learning of CLIP for remote-sensing scene classification, simulated at scale in JAX.

In a notebook: `import fedrsclip_jax as frs`; the names below are made in `interface.py`, `ingredients.py` and
`methods/base.py`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedrsclip_jax.errors import InputError
    from fedrsclip_jax.ingredients import load_backbone, load_config, load_images, make_clients, make_method
    from fedrsclip_jax.interface import Federation, Round
    from fedrsclip_jax.methods.base import (
        Batch,
        Private,
        Shared,
        Weights,
        accuracy,
        cosines,
        cross_entropy,
        draw_prompt,
        masked_mean,
        of_label,
    )

__version__ = "0.2.0"
__all__ = [
    "Batch",
    "Federation",
    "InputError",
    "Private",
    "Round",
    "Shared",
    "Weights",
    "accuracy",
    "cosines",
    "cross_entropy",
    "draw_prompt",
    "load_backbone",
    "load_config",
    "load_images",
    "make_clients",
    "make_method",
    "masked_mean",
    "of_label",
]
_PLACES = {
    "interface": ("Federation", "Round"),
    "ingredients": ("load_backbone", "load_config", "load_images", "make_clients", "make_method"),
    "errors": ("InputError",),
}


def __getattr__(name: str) -> Any:
    """The names of the interface on demand (PEP 562), so that the command line starts without JAX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = next((place for place, names in _PLACES.items() if name in names), "methods.base")
    return getattr(importlib.import_module(f"{__name__}.{place}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
