"""Token sequences with gaps for a context, as other codebases build them: `[SOS] context name . [EOS]`, padded."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from fedrsclip_jax.clip import tokenizer
from fedrsclip_jax.clip.model import CLIPConfig

PADDING = 0  # OpenAI's tokenizer fills the rest of a sequence with this id


class Sequences(NamedTuple):
    """Whole sequences, one a class.

    Attributes:
      tokens: ids, `PADDING` in the gaps.
      gaps: where the context stands.
    """

    tokens: Int[np.ndarray, "classes positions"]
    gaps: Bool[np.ndarray, "classes positions"]


def sequences(words: Any, class_names: Sequence[str], config: CLIPConfig, context: int, position: str) -> Sequences:
    """Sequences as long as the tower reads.

    Args:
      words: the tokenizer.
      context: tokens of the context.
      position: of the class name: `end`, `middle` (half of the context, rounded down, in front of it) or `front`.
    """
    before = {"end": context, "middle": context // 2, "front": 0}[position]
    tokens = np.full((len(class_names), config.positions), PADDING, np.int64)
    gaps = np.zeros(tokens.shape, bool)
    for row, name in enumerate(class_names):
        ids, stop = tokenizer.name_and_stop(words, name, position)
        gap = [PADDING] * context
        line = [config.sos_id, *gap[:before], *ids, *gap[before:], *stop, config.eos_id]
        tokens[row, : len(line)] = line
        gaps[row, 1 : 1 + before] = True
        gaps[row, 1 + before + len(ids) : 1 + len(ids) + context] = True
    return Sequences(tokens, gaps)
