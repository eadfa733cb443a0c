"""What a method is: a module whose trainable variables say who owns them.

The engine never names a method. It splits a module by `Shared` and `Private`; the first subtree is
averaged by the server, the second stays with its client. A method with only one of the two is as good.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.clip.precision import FULL
from fedrsclip_jax.config import MethodConfig

PROMPT_STD = 0.02


class Shared(nnx.Param):
    """A variable of the federation: sent up as a change, averaged, sent down."""


class Private(nnx.Param):
    """A variable of one client: it never leaves."""


class Batch(NamedTuple):
    """One step's images of one client.

    Attributes:
      features: unit-norm image features; of a method that needs patches, each row goes on with those of its patches.
      labels: classes.
      mask: False on padding rows, which change nothing.
    """

    features: Float[Array, "batch features"]
    labels: Int[Array, " batch"]
    mask: Bool[Array, " batch"]


class Weights(NamedTuple):
    """Weights of the loss terms, and the temperature of a contrastive one.

    Traced, so that a sweep over them compiles nothing anew.
    """

    pacl: Float[Array, ""] | float
    cmfac: Float[Array, ""] | float
    contrastive: Float[Array, ""] | float = 1.0
    temperature: Float[Array, ""] | float = 0.5


@dataclasses.dataclass(frozen=True)
class Head:
    """How a method's logits follow from the feature of an image, and of which classes.

    The defaults promise nothing, so that a method that says nothing is never exported as something it is not.

    Attributes:
      linear: logits(i, c) = s f_i . w_c + b_c for every feature f_i, so that weights and bias say all about a model.
      bias: b_c may differ from zero.
      own_classes: the variables are of each class, so that the method cannot be asked of classes it was not trained on.
    """

    linear: bool = False
    bias: bool = False
    own_classes: bool = False


@runtime_checkable
class Method(Protocol):
    """A module made by `METHODS[name](config, backbone, key, context)`, of variables `Shared` and `Private`.

    A class attribute `head` says what its logits are, such as `head = Head(linear=True)`; see `head_of`.
    """

    def loss(
        self, batch: Batch, backbone: Backbone, weights: Weights
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The scalar that a client descends, and figures to report (each a mean over the batch)."""
        ...

    def global_logits(self, features: Float[Array, "batch embed"], backbone: Backbone) -> Float[Array, "batch classes"]:
        """Logits of the federation's model, from the shared variables alone."""
        ...

    def personal_logits(
        self, features: Float[Array, "batch embed"], backbone: Backbone
    ) -> Float[Array, "batch classes"]:
        """Logits of one client's model, from shared and private variables."""
        ...


def head_of(method: Any) -> Head:
    """What a method, as a class or a module, says of its logits; where it says nothing, `Head()`.

    `per_class = True` is an older way to say that its variables are of each class.
    """
    head = getattr(method, "head", Head())
    return dataclasses.replace(head, own_classes=True) if getattr(method, "per_class", False) else head


def needs_patches(method: Any) -> bool:
    """Whether a method reads features of patches, which it says by a class attribute `patches = True`."""
    return getattr(method, "patches", False)


def draw_prompt(
    config: MethodConfig, backbone: Backbone, key: PRNGKeyArray, start: Float[Array, "context width"] | None
) -> Float[Array, "context width"]:
    """A new prompt in fp32: N(0, 0.02^2), around the embedded words of `context_init` where there are any."""
    noise = PROMPT_STD * jax.random.normal(key, (config.context_tokens, backbone.text.width))
    return noise if start is None else start + noise


def masked_mean(values: Float[Array, " batch"], mask: Bool[Array, " batch"]) -> Float[Array, ""]:
    """Mean over the real rows; 0 where there is none."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask, dtype=values.dtype), 1)


def cross_entropy(logits: Float[Array, "batch classes"], batch: Batch) -> Float[Array, ""]:
    """Mean negative log-likelihood of the batch's labels."""
    return -masked_mean(of_label(jax.nn.log_softmax(logits), batch), batch.mask)


def product(left: Float[Array, "rows inner"], right: Float[Array, "inner columns"]) -> Float[Array, "rows columns"]:
    """`left @ right` in full single precision, of which accelerators make less unless told."""
    return jnp.matmul(left, right, precision=FULL)


def cosines(
    features: Float[Array, "batch embed"], texts: Float[Array, "classes embed"]
) -> Float[Array, "batch classes"]:
    """f_i . t_c in full single precision: CLIP scales them by 100."""
    return product(features, texts.T)


def of_label(values: Float[Array, "batch classes"], batch: Batch) -> Float[Array, " batch"]:
    """Each row's entry of its own class. By a product, since the gradient of indexing is a slow scatter on CPUs."""
    return jnp.sum(values * jax.nn.one_hot(batch.labels, values.shape[1]), axis=1)


def accuracy(logits: Float[Array, "batch classes"], batch: Batch) -> Float[Array, ""]:
    """Share of the batch's real rows whose largest logit is the label's."""
    right = (jnp.argmax(logits, axis=1) == batch.labels).astype(jnp.float32)
    return masked_mean(right, batch.mask)
