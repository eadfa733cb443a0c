"""Exported prompts run in PyTorch, through transformers' CLIP: the other side of their certificate."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float

from fedrsclip_jax.export.chosen import Model
from fedrsclip_jax.export.layouts import file_of
from fedrsclip_jax.export.pictures import Pictures
from fedrsclip_jax.export.sequences import Sequences, sequences
from fedrsclip_jax.prompts import read


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no reports of transformers, whose loading is no news to whoever exports."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


class TorchCLIP:
    """transformers' CLIP of a folder in fp32, loaded once for all models of an export."""

    def __init__(self, folder: Path):
        with quiet():
            self._clip: Any = transformers.CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
        self._features: dict[int, torch.Tensor] = {}

    def logits(self, texts: torch.Tensor, pictures: Pictures) -> Float[np.ndarray, "images classes"]:
        """scale x image features . text features."""
        if id(pictures) not in self._features:
            pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pictures.pixels, -1, 1)))
            with torch.inference_mode():
                encoded = self._clip.vision_model(pixel_values=pixels).pooler_output
                self._features[id(pictures)] = _unit(self._clip.visual_projection(encoded))
        with torch.inference_mode():
            return (self._clip.logit_scale.exp() * self._features[id(pictures)] @ texts.T).numpy()

    def texts(self, where: Sequences, context: torch.Tensor) -> torch.Tensor:
        """Unit-norm features [classes, embed] of sequences whose gaps are filled with a context."""
        gaps = torch.from_numpy(where.gaps)

        def fill(module, arguments, embedded):
            embedded = embedded.clone()
            embedded[gaps] = context.repeat(len(gaps), 1)
            return embedded

        hook = self._clip.text_model.embeddings.token_embedding.register_forward_hook(fill)
        try:
            with torch.inference_mode():
                encoded = self._clip.text_model(input_ids=torch.from_numpy(where.tokens)).pooler_output
                return _unit(self._clip.text_projection(encoded))
        finally:
            hook.remove()

    def plain(self, tokens: Any) -> torch.Tensor:
        """Unit-norm features of whole sequences."""
        with torch.inference_mode():
            encoded = self._clip.text_model(input_ids=torch.from_numpy(tokens)).pooler_output
            return _unit(self._clip.text_projection(encoded))


def run(kind: str, model: Model, folder: Path, pictures: Pictures, clip: TorchCLIP) -> np.ndarray:
    """Logits of an exported folder of prompts, which are read back from their file."""
    reader = "coop" if kind == "fedtpg" else kind
    prompts = read(f"{reader}:{file_of(kind, folder, model.round)}")
    contexts = [torch.from_numpy(prompt) for prompt in prompts.present.values()]
    combine = "single" if len(contexts) == 1 else model.combine
    if combine == "concat":
        contexts = [torch.cat(contexts)]
    task, position = model.run.task, model.run.config.method.class_position
    where = sequences(task.words, task.source.class_names, task.clip_config, len(contexts[0]), position)
    texts = torch.stack([clip.texts(where, context) for context in contexts]).mean(dim=0)
    return clip.logits(_unit(texts) if combine == "features" else texts, pictures)


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)
