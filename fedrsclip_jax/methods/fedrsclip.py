"""FedRSCLIP (Lin et al. 2025, arXiv:2501.02461): a shared and a private text prompt, held together by PACL and tied to
images by CMFAC.

H. Lin, C. Zhang, D. Hong, K. Dong and C. Wen, "FedRSClip: Federated Learning for Remote Sensing Scene Classification
Using Vision-Language Models". That there are two prompts, two constraints and 2,048 transmitted numbers
is published; the equations are ours. With text features t_c of unit norm, image features f_i and s = exp(logit_scale):

    logits(i, c) = s/2 (f_i . t_c(P_s) + f_i . t_c(P_k))
    PACL         = 1 - mean_c t_c(P_s) . t_c(P_k)
    CMFAC        = 1 - mean_i 1/2 (f_i . t_{y_i}(P_s) + f_i . t_{y_i}(P_k))
    loss         = CE + pacl_weight PACL + cmfac_weight CMFAC
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.clip.model import unit
from fedrsclip_jax.config import MethodConfig
from fedrsclip_jax.methods.base import (
    Batch,
    Head,
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


class FedRSCLIP(nnx.Module):
    """Dual prompts; `combine`, `pacl` and `cmfac` of the configuration choose among the variants."""

    head = Head(linear=True)

    def __init__(
        self,
        config: MethodConfig,
        backbone: Backbone,
        key: PRNGKeyArray,
        start: Float[Array, "context width"] | None = None,
    ):
        # Only what chooses the program is kept: anything else in the module's structure would recompile it.
        self.combine, self.pacl, self.cmfac = config.combine, config.pacl, config.cmfac
        # Independent draws: equal starts with averaged logits would get equal gradients and a PACL of zero.
        shared, private = jax.random.split(key)
        self.shared = Shared(draw_prompt(config, backbone, shared, start))
        self.private = Private(draw_prompt(config, backbone, private, start))

    def loss(
        self, batch: Batch, backbone: Backbone, weights: Weights
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        texts = self._texts(backbone)
        logits = self._logits(batch.features, texts, backbone)
        ce = cross_entropy(logits, batch)
        pacl = self._pacl(texts)
        cmfac = self._cmfac(batch, texts, backbone)
        loss = ce + weights.pacl * pacl + weights.cmfac * cmfac
        return loss, {"ce": ce, "pacl": pacl, "cmfac": cmfac, "accuracy": accuracy(logits, batch)}

    def global_logits(self, features: Float[Array, "batch embed"], backbone: Backbone) -> Float[Array, "batch classes"]:
        return backbone.scale * cosines(features, backbone.encode(self.shared[...]))

    def personal_logits(
        self, features: Float[Array, "batch embed"], backbone: Backbone
    ) -> Float[Array, "batch classes"]:
        return self._logits(features, self._texts(backbone), backbone)

    def _texts(self, backbone: Backbone) -> Float[Array, "prompts classes embed"]:
        """Text features of P_s, P_k and, where they are joined in one sequence, of both."""
        shared, private = self.shared[...], self.private[...]
        alone = backbone.encode(jnp.stack([shared, private]))
        if self.combine != "concat":
            return alone
        return jnp.concatenate([alone, backbone.encode(jnp.concatenate([shared, private]))[None]])

    def _logits(self, features, texts, backbone: Backbone) -> Float[Array, "batch classes"]:
        if self.combine == "logits":
            # The mean of the logits is the logits of the mean feature, left unnormalised.
            return backbone.scale * cosines(features, jnp.mean(texts, axis=0))
        if self.combine == "features":
            return backbone.scale * cosines(features, unit(jnp.mean(texts, axis=0)))
        return backbone.scale * cosines(features, texts[2])

    def _pacl(self, texts) -> Float[Array, ""]:
        if self.pacl == "tokens":
            return jnp.mean((self.shared[...] - self.private[...]) ** 2)
        return 1 - jnp.mean(jnp.sum(texts[0] * texts[1], axis=-1))

    def _cmfac(self, batch: Batch, texts, backbone: Backbone) -> Float[Array, ""]:
        each = jnp.stack([cosines(batch.features, text) for text in texts[:2]])
        if self.cmfac == "cosine":
            return 1 - masked_mean(of_label(jnp.mean(each, axis=0), batch), batch.mask)
        return jnp.mean(jax.vmap(lambda c: _symmetric_infonce(c, batch, backbone.scale))(each))


def _symmetric_infonce(
    cosines: Float[Array, "batch classes"], batch: Batch, scale: Float[Array, ""]
) -> Float[Array, ""]:
    """Symmetric InfoNCE between the batch's images and the text features of their classes.

    Row i of the batch pairs image i with the text of class y_i; pairs of the same class are positives.
    """
    logits = scale * cosines[:, batch.labels]  # [image, text of row]
    both = batch.mask[:, None] & batch.mask[None]
    same = ((batch.labels[:, None] == batch.labels[None]) & both).astype(jnp.float32)
    target = same / jnp.maximum(jnp.sum(same, axis=1, keepdims=True), 1)

    def one_way(rows):
        log_p = jax.nn.log_softmax(jnp.where(both, rows, -1e9), axis=1)
        return -masked_mean(jnp.sum(jnp.where(both, target * log_p, 0.0), axis=1), batch.mask)

    return 0.5 * (one_way(logits) + one_way(logits.T))
