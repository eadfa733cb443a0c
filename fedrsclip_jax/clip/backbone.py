"""What a client needs of the frozen CLIP once images are features: the text tower, the names, the scale."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fedrsclip_jax.clip.model import unit
from fedrsclip_jax.clip.suffixes import Suffixes
from fedrsclip_jax.clip.text import TextTower


class Backbone(nnx.Module):
    """The frozen text side of CLIP, bound to the class names of one task.

    Attributes:
      text: the text tower.
      scale: exp(logit_scale), the factor on cosines before the softmax.
      suffixes: tokens of `name . [EOS]` per class; see `tokenizer.name_and_stop`.
      transposed: on a CPU the text tower's matrices a second time, turned round, which makes gradients faster.
      zero_shot: unit-norm features [classes, embed] of the hand-written template, for the zero-shot row.
      class_position: where the name stands to the context: `end` (behind it, the default), `middle` or `front`.
    """

    def __init__(
        self,
        text: TextTower,
        scale: Float[Array, ""],
        suffixes: Suffixes,
        zero_shot: Float[Array, "classes embed"],
        class_position: str = "end",
    ):
        self.text = text
        self.scale = nnx.data(scale)
        self.suffixes = nnx.data(suffixes)
        self.zero_shot = nnx.data(zero_shot)
        self.class_position = class_position
        # Accelerators read a matrix either way.
        self.transposed = nnx.data(text.transposed() if jax.default_backend() == "cpu" else None)

    @property
    def num_classes(self) -> int:
        """Classes of the task, which are the columns of logits."""
        return self.zero_shot.shape[0]

    def encode(self, contexts: Float[Array, "*prompts context width"]) -> Float[Array, "*prompts classes embed"]:
        """Unit-norm text features of every class behind one context, or behind each of several."""
        together = contexts.reshape(-1, *contexts.shape[-2:])
        if self.class_position == "end":
            features = self.text.prompted(together, self.suffixes, self.transposed)
        else:
            before = {"middle": contexts.shape[-2] // 2, "front": 0}[self.class_position]

            def plain(context):
                return self.text.plain(*interleave(self.text, context, self.suffixes, before), self.transposed)

            features = jax.vmap(plain)(together)
        return unit(features).reshape(*contexts.shape[:-2], *features.shape[1:])


def interleave(
    text: TextTower, context: Float[Array, "context width"], suffixes: Suffixes, before: int
) -> tuple[Float[Array, "classes length width"], Array]:
    """Embeddings of `[SOS] context[:before] name context[before:] . [EOS]` and the position of EOS.

    With `before = len(context)` this is the usual order written out in full, the oracle of `prompted`.
    """
    m = context.shape[0]
    token = text.token[...]
    name_length = suffixes.eos[:, None] - 1  # the full stop is one token and stands before EOS
    rows = suffixes.rows
    at = jnp.arange(m + rows.shape[1])[None]
    in_context = (at < before) | ((at >= before + name_length) & (at < m + name_length))
    slot = jnp.where(at < before, at, at - name_length).clip(0, m - 1)
    word = jnp.where(at < before + name_length, at - before, at - m).clip(0, rows.shape[1] - 1)
    words = token[jnp.take_along_axis(rows, word, axis=1)]
    body = jnp.where(in_context[..., None], context[slot].astype(token.dtype), words)
    first = jnp.broadcast_to(token[text.sos_id], (body.shape[0], 1, body.shape[2]))
    return jnp.concatenate([first, body], axis=1), suffixes.eos + 1 + m
