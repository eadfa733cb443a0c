"""Whether a class of one's own is a method, found out before an image is encoded; see `base.Method`."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.config import MethodConfig
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.methods.base import Batch, Private, Shared, Weights

_ANSWERS = ("global_logits", "personal_logits")
_ROWS = 3  # of the batch of shapes that a method is tried on


def name_of(method: Any) -> str:
    """What to call a method that is a class."""
    return getattr(method, "__name__", type(method).__name__)


def check_class(method: Any) -> None:
    """Refuses what cannot be a method, as far as it can be seen without a backbone.

    Raises:
      InputError: it is no class of `nnx.Module`, or has not all that is asked of a method.
    """
    if isinstance(method, nnx.Module):
        raise InputError(f"method: an object of {type(method).__name__} is given; give the class itself")
    if not inspect.isclass(method) and callable(method):
        return  # makes a module in its own way, which `check_module` looks at
    if not (inspect.isclass(method) and issubclass(method, nnx.Module)):
        raise InputError(f"method: {method!r} is neither a name nor a class; give a class of flax.nnx.Module")
    missing = [name for name in ("loss", *_ANSWERS) if not callable(getattr(method, name, None))]
    if missing:
        raise InputError(
            f"method: {name_of(method)} has no {' and no '.join(missing)}; a method has loss, global_logits and "
            "personal_logits, as methods/base.py says"
        )
    try:
        inspect.signature(method.__init__).bind("self", "config", "backbone", "key", "start")
    except TypeError as error:
        raise InputError(
            f"method: {name_of(method)} cannot be made from (config, backbone, key, start): {error}; give its __init__ "
            "these four arguments"
        ) from error


def check_module(
    method: Callable[..., Any], settings: MethodConfig, backbone: Backbone, start: Any, features: int
) -> None:
    """Refuses a method whose variables or answers are not as the engine needs them; only shapes are computed.

    Args:
      method: a class that passed `check_class`.
      settings, backbone, start: what the engine makes its module from.
      features: numbers of an image.

    Raises:
      InputError: something that it computes has another form, or fails.
    """
    name, classes = name_of(method), backbone.num_classes

    def tried(what: str, call: Callable[[], Any]) -> Any:
        try:
            return nnx.eval_shape(call)
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), "")
            raise InputError(f"method: {what} of {name} fails ({type(error).__name__}: {reason}); mend it") from error

    def made() -> Any:
        return method(settings, backbone, jax.random.key(0), start)

    variables = nnx.to_flat_state(nnx.state(tried("__init__", made)))
    for path, variable in variables:
        if not issubclass(variable.type, (Shared, Private)):
            raise InputError(
                f"method: variable {'.'.join(map(str, path))!r} of {name} is {variable.type.__name__}, and nobody "
                "would own it; make it frs.Shared (averaged by the server) or frs.Private (stays with its client)"
            )
    if not variables:
        raise InputError(f"method: {name} has nothing to train; give it variables frs.Shared or frs.Private")
    images = jnp.zeros((_ROWS, features))
    batch = Batch(images, jnp.zeros(_ROWS, jnp.int32), jnp.ones(_ROWS, bool))
    weights = Weights(*(jnp.asarray(value) for value in (0.0, 0.0, 1.0, 0.5)))
    given = tried("loss", lambda: made().loss(batch, backbone, weights))
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], dict)):
        raise InputError(
            f"method: loss of {name} returns {_said(given)}; return two things, the scalar to descend and figures to "
            "report, such as `return loss, {'accuracy': frs.accuracy(logits, batch)}`"
        )
    for what, value in (("the loss", given[0]), *((f"figure {key!r}", value) for key, value in given[1].items())):
        if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise InputError(f"method: {what} that {name} returns is {_said(value)}; it must be a scalar of floats")
    for answer in _ANSWERS:
        logits = tried(answer, lambda answer=answer: getattr(made(), answer)(images, backbone))
        if getattr(logits, "shape", None) != (_ROWS, classes):
            raise InputError(
                f"method: {answer} of {name} gives {_said(logits)} for {_ROWS} images of {classes} classes; it must "
                f"be an array of shape ({_ROWS}, {classes})"
            )


def _said(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"an array of shape {shape} and type {value.dtype}"
