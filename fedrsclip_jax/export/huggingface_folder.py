"""The backbone of a run as a CLIP folder in Hugging Face layout."""

import shutil
from pathlib import Path

import numpy as np

from fedrsclip_jax.clip import tokenizer
from fedrsclip_jax.clip.huggingface import save_clip
from fedrsclip_jax.clip.templates import TEMPLATE, sentence
from fedrsclip_jax.export.pictures import Pictures
from fedrsclip_jax.finished import FinishedRun

# Of the tokenizer and the preprocessing; what a backbone has of these goes with its weights.
COPIED = (
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def write_backbone(run: FinishedRun, folder: Path) -> None:
    """Writes what `transformers.CLIPModel.from_pretrained` loads, in fp32, with tokenizer and preprocessing."""
    save_clip(run.task.clip, run.task.clip_config, folder)
    for name in COPIED:
        if (run.task.folder / name).is_file():
            shutil.copyfile(run.task.folder / name, folder / name)


def zero_shot(run: FinishedRun, pictures: Pictures) -> np.ndarray:
    """Our logits of the pictures for hand-written prompts, one a class: they need both towers and the scale."""
    backbone = run.task.backbone(run.config.method)
    return float(backbone.scale) * pictures.features @ np.asarray(backbone.zero_shot).T


def run_backbone(run: FinishedRun, folder: Path, pictures: Pictures) -> np.ndarray:
    """The same logits of an exported folder in PyTorch, with its own tokenizer."""
    from fedrsclip_jax.clip.huggingface import read_config
    from fedrsclip_jax.export.torch_prompts import TorchCLIP

    clip, config = TorchCLIP(folder), read_config(folder)
    words = tokenizer.load_tokenizer(folder, config)
    texts = [sentence(TEMPLATE, name) for name in run.task.source.class_names]
    return clip.logits(clip.plain(tokenizer.tokenize(words, texts, config).astype(np.int64)), pictures)
