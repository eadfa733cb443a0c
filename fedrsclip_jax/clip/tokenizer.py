"""Class names and captions as token ids, through Hugging Face tokenizers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from fedrsclip_jax.clip.attention import EVEN_TOKENS, has_fused_attention
from fedrsclip_jax.clip.model import CLIPConfig
from fedrsclip_jax.clip.suffixes import Suffixes, pack
from fedrsclip_jax.errors import InputError


def load_tokenizer(folder: Path, config: CLIPConfig) -> Any:
    """The tokenizer of a CLIP folder (`tokenizer.json`, or `vocab.json` with `merges.txt`).

    Raises:
      InputError: there is none, it cannot be read, or it is not the one that the weights were trained with.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise InputError(f"backbone: {folder} has no tokenizer.json (nor vocab.json); download the whole folder")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"backbone: the tokenizer of {folder} cannot be read ({reason}); download it again") from error
    # An id beyond the table would be clamped to its last row without a word.
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    if len(tokenizer) > config.vocabulary or ends != (config.sos_id, config.eos_id):
        raise InputError(
            f"backbone: the tokenizer of {folder} has {len(tokenizer)} tokens and start and end {ends}, but its "
            f"config.json says {config.vocabulary} and {(config.sos_id, config.eos_id)}; it belongs to another model"
        )
    return tokenizer


def words(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text without the start and end tokens."""
    return tokenizer(text, add_special_tokens=False).input_ids


def tokenize(
    tokenizer: Any, texts: Sequence[str], config: CLIPConfig, *, truncate: bool = False
) -> Int[np.ndarray, "texts length"]:
    """`[SOS] text [EOS]` per row, padded with EOS to the longest.

    Raises:
      InputError: a text is longer than the tower reads, unless `truncate`.
    """
    rows = [words(tokenizer, text) for text in texts]
    room = config.positions - 2
    for text, row in zip(texts, rows, strict=True):
        if len(row) > room and not truncate:
            raise InputError(f"text {text!r} has {len(row)} tokens; this CLIP reads at most {room}; shorten it")
    rows = [row[:room] for row in rows]
    out = np.full((len(rows), max(map(len, rows)) + 2), config.eos_id, np.int32)
    out[:, 0] = config.sos_id
    for i, row in enumerate(rows):
        out[i, 1 : 1 + len(row)] = row
    return out


def name_and_stop(tokenizer: Any, name: str, position: str = "end") -> tuple[list[int], list[int]]:
    """Tokens of a class name, and those of the full stop that ends the prompt.

    OpenAI's vocabulary has tokens for two signs, so that a name that ends in one may share its last token with the full
    stop, as `)` does in `).`. Where the context stands between name and full stop, these are two tokens; where the name
    is at the `end`, name and full stop are read as one text, as in CoOp, and the second part may be empty.

    Args:
      position: of the name to the context: `end`, `middle` or `front`.
    """
    ids, together = words(tokenizer, name), words(tokenizer, f"{name}.")
    if together[:-1] == ids:
        return ids, together[-1:]
    # As it stands behind a word: alone, some tokenizers would put a space in front of it.
    return (together, []) if position == "end" else (ids, words(tokenizer, "a.")[-1:])


def suffixes(
    tokenizer: Any,
    class_names: Sequence[str],
    config: CLIPConfig,
    context: int,
    prompts: int = 1,
    position: str = "end",
) -> Suffixes:
    """Tokens of `name . [EOS]` per class, for `prompts` contexts of `context` tokens each.

    Args:
      position: where names stand to the context; see `name_and_stop`.

    Raises:
      InputError: the longest class and the context do not fit into the tower.
    """
    rows = [[*ids, *stop] for ids, stop in (name_and_stop(tokenizer, name, position) for name in class_names)]
    longest = int(np.argmax([len(row) for row in rows]))
    needed = 1 + prompts * context + len(rows[longest]) + 1
    if needed > config.positions:
        room = (config.positions - 2 - len(rows[longest])) // prompts
        remedy = f"use at most {room}" if room > 0 else "give the class a shorter name"
        twice = f"{prompts} x " if prompts > 1 else ""
        raise InputError(
            f"method.context_tokens: {twice}{context} in front of {class_names[longest]!r} make {needed} tokens; this "
            f"CLIP reads {config.positions}; {remedy}"
        )
    before, multiple_of = 1 + prompts * context, EVEN_TOKENS if has_fused_attention() else 1
    return pack([[*row, config.eos_id] for row in rows], before=before, multiple_of=multiple_of)
