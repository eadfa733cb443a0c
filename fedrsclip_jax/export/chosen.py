"""What is exported, or asked for predictions: the federation's model, or one client's."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.clip.precision import in_full
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.finished import FinishedRun, Restored
from fedrsclip_jax.methods.base import Private, Shared, cosines, needs_patches
from fedrsclip_jax.prompts import Prompts

_FEWEST_ROWS = 32  # features are filled up to that or a power of two: each number of rows would be compiled for


@dataclass(frozen=True)
class Model:
    """One model of a finished run.

    Attributes:
      run: where it comes from.
      round: of the checkpoint.
      client: whose it is; None is the federation's.
      drawn: whether the client ever took part; its private prompt is its initial draw otherwise.
      prompts: those that its logits come from; None where the method has other variables than text prompts.
      backbone, module: what computes its logits.
    """

    run: FinishedRun
    round: int
    client: int | None
    drawn: bool
    prompts: Prompts | None
    backbone: Backbone
    module: Any

    @property
    def name(self) -> str:
        return "the federation's model" if self.client is None else f"the model of client {self.client}"

    @property
    def combine(self) -> str:
        """How prompts become logits: `single`, or `method.combine` where there are two."""
        both = self.prompts is not None and len(self.prompts.present) == 2
        if both and self.grid is not None:
            return "logits"
        return self.run.config.method.combine if both else "single"

    @property
    def contexts(self) -> Float[np.ndarray, "prompts context width"]:
        """The contexts that are put in front of class names, shared before private; joined ones are one."""
        assert self.prompts is not None
        there = list(self.prompts.present.values())
        return np.concatenate(there)[None] if self.combine == "concat" else np.stack(there)

    @property
    def grid(self) -> int | None:
        """Patches along a side of an image that it reads; None of a method that reads whole images alone."""
        return self.run.task.patch_grid(self.run.config.method) if needs_patches(self.module) else None

    def logits(self, features: Float[np.ndarray, "images features"]) -> Float[np.ndarray, "images classes"]:
        """By the method's own definition; where there is a `grid`, features of patches follow those of each image."""
        count = len(features)
        rows = max(_FEWEST_ROWS, 1 << max(count - 1, 0).bit_length())
        filled = features[np.minimum(np.arange(rows), count - 1)] if count else features
        return logits_of(self.module, self.client is None, self.backbone, filled)[:count]

    def exported_logits(self, features: Float[np.ndarray, "images embed"]) -> Float[np.ndarray, "images classes"]:
        """What an export stands for: `logits`; where there is a `grid`, the mean of its prompts' on whole images."""
        if self.grid is None:
            return self.logits(features)
        texts = jnp.mean(self.backbone.encode(jnp.asarray(self.contexts)), axis=0)
        return np.asarray(self.backbone.scale * cosines(jnp.asarray(features), texts))


def choose(run: FinishedRun, restored: Restored, client: int | None) -> Model:
    """The federation's model, or the one of `client`.

    Raises:
      InputError: there is no such client, or the method has no such model.
    """
    module = choose_module(run.config.method.name, restored, client)
    _, shared, private = nnx.split(module, Shared, Private)
    drawn = client is None or bool(restored.population.has(np.array([client]))[0])
    prompts = _prompts(shared, private if client is not None else None, restored.backbone.text.width)
    return Model(run, restored.round, client, drawn, prompts, restored.backbone, module)


def choose_module(method: str, restored: Restored, client: int | None) -> Any:
    """The module whose logits are the federation's, or those of `client`.

    Args:
      method: its name, for messages.

    Raises:
      InputError: there is no such client, or the method has no such model.
    """
    clients = restored.population.size
    if client is not None and not 0 <= client < clients:
        raise InputError(f"--client={client}: the run has clients 0 to {clients - 1}")
    module = restored.module(client or 0)
    _, shared, private = nnx.split(module, Shared, Private)
    if client is None and not jax.tree.leaves(shared):
        raise InputError(f"{method} has no model of the federation; name a client with --client=K")
    if client is not None and not jax.tree.leaves(private):
        raise InputError(f"{method} has no private prompts: each client has the federation's model; leave --client out")
    return module


def logits_of(
    module: Any, of_federation: bool, backbone: Backbone, features: Float[np.ndarray, "images embed"]
) -> Float[np.ndarray, "images classes"]:
    """By the method's own definition: from the shared variables alone, or with private ones."""
    graph, state = nnx.split(module)
    return np.asarray(_logits(graph, of_federation, state, jnp.asarray(features), backbone))


@partial(jax.jit, static_argnums=(0, 1))
def _logits(graph, of_federation: bool, state, features, backbone: Backbone) -> Float[Array, "images classes"]:
    module = nnx.merge(graph, state)
    with in_full():
        return (module.global_logits if of_federation else module.personal_logits)(features, backbone)


def _prompts(shared: Any, private: Any, width: int) -> Prompts | None:
    """The variables as prompts, if they are text prompts and nothing else."""
    found = {}
    for owner, state in (("shared", shared), ("private", private)):
        flat = {} if state is None else {tuple(path): leaf[...] for path, leaf in nnx.to_flat_state(state)}
        if any(path != (owner,) or leaf.ndim != 2 or leaf.shape[1] != width for path, leaf in flat.items()):
            return None
        found[owner] = np.asarray(flat[(owner,)]) if flat else None
    return Prompts(**found)
