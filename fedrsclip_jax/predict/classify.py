"""Pictures to classes and probabilities, by one model of a federation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from fedrsclip_jax.clip.preprocess import load_preprocess
from fedrsclip_jax.task import ENCODE_BATCH, Task, image_encoder

MOST_TOP = 3


@dataclass(frozen=True)
class Guess:
    """What a model says of a picture.

    Attributes:
      top: names and probabilities (0 to 1) of the likeliest classes, at most three, likeliest first.
    """

    top: tuple[tuple[str, float], ...]

    @property
    def class_name(self) -> str:
        return self.top[0][0]

    @property
    def probability(self) -> float:
        return self.top[0][1]


class Classify:
    """One model, ready for batches of one size, so that one compilation serves all of them.

    Attributes:
      class_names: in the order of the logits.
      batch: pictures at a time, at most.
    """

    def __init__(self, task: Task, logits: Callable[[np.ndarray], np.ndarray], expected: int, grid: int | None = None):
        """
        Args:
          task: whose CLIP encodes the pictures, prepared as in training.
          logits: [batch, classes] from features [batch, features].
          expected: pictures in all; of fewer than a full batch, the batch is the next power of two.
          grid: patches along a side whose features follow those of a picture; None where `logits` needs none.
        """
        self.class_names = tuple(task.source.class_names)
        self.batch = min(ENCODE_BATCH, 1 << max(expected - 1, 0).bit_length())
        prepare = load_preprocess(task.folder)
        self._encode, self._logits = image_encoder(task.clip, prepare, self.batch, grid), logits

    def probabilities(
        self, pictures: Sequence[UInt8[np.ndarray, "_height _width 3"]]
    ) -> Float[np.ndarray, "pictures classes"]:
        """Softmax of the model's logits, for any number of RGB pictures of any size."""
        blocks = [self._block(pictures[i : i + self.batch]) for i in range(0, len(pictures), self.batch)]
        return np.concatenate([np.zeros((0, len(self.class_names))), *blocks])

    def guesses(self, pictures: Sequence[UInt8[np.ndarray, "_height _width 3"]]) -> list[Guess]:
        """The likeliest classes of each picture."""
        guesses = []
        for row in self.probabilities(pictures):
            best = np.argsort(-row, kind="stable")[:MOST_TOP]
            guesses.append(Guess(tuple((self.class_names[c], float(row[c])) for c in best)))
        return guesses

    def _block(self, pictures) -> np.ndarray:
        features = self._encode(list(pictures))
        filled = features[np.minimum(np.arange(self.batch), len(features) - 1)]
        logits = np.asarray(self._logits(filled), np.float64)[: len(features)]
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)
