"""What a report shows and a summary does not hold: answers image by image, who owns what, where texts lie."""

import io
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from fedrsclip_jax import distributed, formats
from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.data.sources import ImageSource
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.evaluate import Answers
from fedrsclip_jax.federation import Federation
from fedrsclip_jax.files import replace

FILE = "evidence.npz"
MOST_CLIENTS = 40  # whose images are counted by class
MOST_TEXTS = 4  # clients whose text features are kept
MOST_WRONG, SIDE = 8, 112  # pictures that are kept, and their size in pixels


@dataclass(frozen=True)
class Evidence:
    """Of the last round of one run.

    Attributes:
      truth, guess: of the federation's model on the pooled test images.
      owners: clients whose images are counted.
      train, test: how many images of each class they have.
      zero_shot, shared: text features of each class, of the template and of the shared prompt; of no class where the
        method has no such prompt.
      movers, private: clients, and the text features of their private prompts.
      wrong: positions in `truth` of some wrong answers, the most confident of each confusion.
      pictures: these images, cut to a square.
    """

    truth: Int[np.ndarray, " images"]
    guess: Int[np.ndarray, " images"]
    owners: Int[np.ndarray, " owners"]
    train: Int[np.ndarray, "owners classes"]
    test: Int[np.ndarray, "owners classes"]
    zero_shot: Float[np.ndarray, "classes embed"]
    shared: Float[np.ndarray, "some embed"]
    movers: Int[np.ndarray, " movers"]
    private: Float[np.ndarray, "movers classes embed"]
    wrong: Int[np.ndarray, " wrong"]
    pictures: UInt8[np.ndarray, "wrong side side 3"]

    def save(self, folder: Path) -> None:
        """Writes `evidence.npz`, by the first of several processes."""
        if distributed.first():
            arrays = {field.name: getattr(self, field.name) for field in fields(self)}
            replace(folder / FILE, lambda file: np.savez_compressed(file, format=formats.FORMAT, **arrays))

    @classmethod
    def load(cls, folder: Path) -> "Evidence | None":
        """What a run has kept; None of a run that kept nothing, as older versions did, or nothing that can be read.

        Raises:
          InputError: it is of a newer format.
        """
        try:
            with np.load(io.BytesIO((folder / FILE).read_bytes())) as kept:
                formats.check_number(kept.get("format", 0), folder / FILE)
                return cls(**{field.name: kept[field.name] for field in fields(cls)})
        except InputError:
            raise
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None


def gather(federation: Federation, source: ImageSource, answers: Answers) -> Evidence:
    """Looks at a federation as it stands; of several processes, all have to.

    Args:
      answers: `federation.answers()`.
    """
    pooled = federation.clients.pooled
    truth = federation.labels[pooled]
    wrong = _telling(truth, answers.guess, answers.confidence)
    wrong, pictures = _pictures(source, pooled, wrong)
    # Of a huge population those that took part, whose prompts have moved.
    known = federation.participants
    known = federation.scored if known is None or not len(known) else known
    owners = known[:MOST_CLIENTS]
    train, test = (_by_class(federation, owners, split) for split in ("train", "test"))
    most = np.argsort(-federation.clients.counts(known, "train"), kind="stable")[:MOST_TEXTS]
    movers = np.sort(known[most])
    shared, private = _texts(federation, movers)
    return Evidence(
        truth=truth,
        guess=answers.guess,
        owners=np.asarray(owners),
        train=train,
        test=test,
        zero_shot=np.asarray(federation.backbone.zero_shot, np.float32),
        shared=shared,
        movers=movers[: len(private)],
        private=private,
        wrong=wrong,
        pictures=pictures,
    )


def _telling(
    truth: Int[np.ndarray, " images"], guess: Int[np.ndarray, " images"], confidence: Float[np.ndarray, " images"]
) -> list[int]:
    """Wrong answers, the most confident first, one of each pair of classes."""
    seen, chosen = set(), []
    for at in np.argsort(-confidence, kind="stable"):
        pair = (int(truth[at]), int(guess[at]))
        if pair[0] != pair[1] and pair not in seen:
            seen.add(pair)
            chosen.append(int(at))
        if len(chosen) == MOST_WRONG:
            break
    return chosen


def _pictures(
    source: ImageSource, pooled: Int[np.ndarray, " images"], wrong: Sequence[int]
) -> tuple[Int[np.ndarray, " shown"], UInt8[np.ndarray, "shown side side 3"]]:
    """Those of the images that can still be read, as squares from their middle."""
    shown, pictures = [], []
    for at in wrong:
        with suppress(OSError, InputError):
            image = Image.fromarray(np.asarray(source.image(int(pooled[at]))))
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            shown.append(at)
            pictures.append(np.asarray(square.convert("RGB")))
    return np.asarray(shown, np.int64), np.asarray(pictures, np.uint8).reshape(-1, SIDE, SIDE, 3)


def _by_class(federation: Federation, owners: Int[np.ndarray, " owners"], split: str) -> np.ndarray:
    classes = federation.backbone.zero_shot.shape[0]
    rows, counts = federation.clients.padded(owners, split)
    each = zip(rows, counts, strict=True)
    return np.stack([np.bincount(federation.labels[row[:count]], minlength=classes) for row, count in each])


def _texts(federation: Federation, movers: Int[np.ndarray, " movers"]) -> tuple[np.ndarray, np.ndarray]:
    """Text features of the shared prompt and of some clients' private ones, where a method has such prompts."""
    method, backbone = federation.config.method, federation.backbone
    shape = (method.context_tokens, backbone.text.width)
    classes, embed = backbone.zero_shot.shape
    kept: list[list[np.ndarray | None]] = []
    for client in movers:
        private = jax.tree.map(lambda leaf: leaf[0], federation.population.gather(np.array([client])))
        module = nnx.merge(federation.plan.graph, federation.server.shared, private)
        found = [getattr(module, name, None) for name in ("shared", "private")]
        prompts = [np.asarray(p[...]) if isinstance(p, nnx.Param) else None for p in found]
        kept.append([p if p is not None and p.shape == shape else None for p in prompts])
    first = kept[0][0]
    shared = np.zeros((0, embed), np.float32) if first is None else np.asarray(_encode(backbone, first))
    private = [np.asarray(_encode(backbone, own)) for _, own in kept if own is not None]
    return shared, np.asarray(private, np.float32).reshape(-1, classes, embed)


@jax.jit
def _encode(backbone: Backbone, prompt: Float[Array, "context width"]) -> Float[Array, "classes embed"]:
    return backbone.encode(prompt)
