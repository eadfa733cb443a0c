"""Prompt learners as other codebases have them, in PyTorch: what they register, and how they load a file.

Written for these tests from a description of that behaviour. The text tower is written out here as well, so that
nothing of ours and nothing of transformers' computes the logits that exports are held against.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class TextTower(nn.Module):
    """The text tower of a Hugging Face CLIP over embedded sequences, from its state dictionary."""

    def __init__(self, state: dict[str, torch.Tensor], heads: int, activation: str):
        super().__init__()
        self.state, self.heads = state, heads
        self.activation = {"quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": F.gelu}[activation]
        self.layers = len({name.split(".")[3] for name in state if name.startswith("text_model.encoder.layers.")})

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.state["text_model.embeddings.token_embedding.weight"][tokens]

    def forward(self, embedded: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Unit-norm features [sequences, embed] read at position `end`."""
        length = embedded.shape[1]
        x = embedded + self.state["text_model.embeddings.position_embedding.weight"][:length]
        for i in range(self.layers):
            at = f"text_model.encoder.layers.{i}"
            y = self._norm(x, f"{at}.layer_norm1")
            q, k, v = (self._linear(y, f"{at}.self_attn.{name}_proj") for name in "qkv")
            q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + self._linear(y, f"{at}.self_attn.out_proj")
            y = self.activation(self._linear(self._norm(x, f"{at}.layer_norm2"), f"{at}.mlp.fc1"))
            x = x + self._linear(y, f"{at}.mlp.fc2")
        x = self._norm(x, "text_model.final_layer_norm")[torch.arange(len(x)), end]
        return F.normalize(x @ self.state["text_projection.weight"].T, dim=-1)

    def _norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-5)

    def _linear(self, x, name):
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])


class PromptLearner(nn.Module):
    """CoOp's, and with a leading axis of prompts FedOTP's and Flip's: a parameter `ctx` and two buffers."""

    def __init__(
        self, names: Sequence[str], words: Any, tower: TextTower, context: tuple[int, ...], position: str, length: int
    ):
        super().__init__()
        tokens = context[-2]
        self.prompts = 1 if len(context) == 2 else context[0]
        self.classes, self.position = len(names), position
        (placeholder, *_), sos, eos = split(words, "x"), words.bos_token_id, words.eos_token_id
        rows = [split(words, f"{name}.") for name in names]
        self.name_lengths = [len(split(words, name)) for name in names]
        ids = torch.zeros(len(names), length, dtype=torch.long)
        for i, row in enumerate(rows):
            line = [sos, *[placeholder] * tokens, *row, eos]
            ids[i, : len(line)] = torch.tensor(line)
        self.ids = ids.repeat(self.prompts, 1)
        self.end = torch.tensor([1 + tokens + len(row) for row in rows]).repeat(self.prompts)
        self.ctx = nn.Parameter(torch.randn(context) * 0.02)
        embedded = tower.embed(self.ids)
        self.register_buffer("token_prefix", embedded[:, :1])
        self.register_buffer("token_suffix", embedded[:, 1 + tokens :])

    def forward(self) -> torch.Tensor:
        """Embedded sequences, all classes of one prompt after another."""
        ctx = self.ctx if self.ctx.dim() == 3 else self.ctx[None]
        ctx = ctx[:, None].expand(-1, self.classes, -1, -1).flatten(0, 1)
        before = {"end": ctx.shape[1], "middle": ctx.shape[1] // 2, "front": 0}[self.position]
        rows = []
        for i, row in enumerate(ctx):
            name = self.name_lengths[i % self.classes]
            suffix = self.token_suffix[i]
            rows.append(torch.cat([self.token_prefix[i], row[:before], suffix[:name], row[before:], suffix[name:]]))
        return torch.stack(rows)


def split(words: Any, text: str) -> list[int]:
    return words(text, add_special_tokens=False).input_ids


class StrictLearner(nn.Module):
    """FedTPG's CoOp: nothing but `ctx`, in fp32; sequences are built elsewhere."""

    def __init__(self, context: tuple[int, int]):
        super().__init__()
        self.ctx = nn.Parameter(torch.randn(context) * 0.02)


def load_coop(learner: nn.Module, directory: Path, epoch: int):
    """CoOp's way: the file of an epoch, fixed token vectors deleted, the rest not strictly."""
    checkpoint = torch.load(directory / "prompt_learner" / f"model.pth.tar-{epoch}", weights_only=True)
    state = checkpoint["state_dict"]
    assert checkpoint["epoch"] == epoch
    for fixed in ("token_prefix", "token_suffix"):
        if fixed in state:
            del state[fixed]
    return learner.load_state_dict(state, strict=False)


def load_strict(learner: nn.Module, directory: Path, epoch: int):
    """FedTPG's way: every key there, and no other."""
    checkpoint = torch.load(directory / "prompt_learner" / f"model.pth.tar-{epoch}", weights_only=True)
    return learner.load_state_dict(checkpoint["state_dict"])


def load_resumed(learner: nn.Module, directory: Path) -> int:
    """Dassl's way to go on: the text file `checkpoint` names the file; strictly, buffers and all."""
    name = (directory / "prompt_learner" / "checkpoint").read_text().strip("\n")
    checkpoint = torch.load(directory / "prompt_learner" / name, weights_only=True)
    learner.load_state_dict(checkpoint["state_dict"])
    for absent in ("optimizer", "scheduler"):
        assert absent not in checkpoint  # None would be handed to load_state_dict
    return checkpoint["epoch"]


def load_matching(learner: nn.Module, file: Path) -> list[str]:
    """Flip's way: whatever agrees in name and size; gives the names that did, and is silent about the others."""
    checkpoint = torch.load(file, weights_only=True)
    state = checkpoint.get("state_dict", checkpoint)
    own = learner.state_dict()
    matched = {name: value for name, value in state.items() if name in own and own[name].size() == value.size()}
    learner.load_state_dict({**own, **matched})
    return sorted(matched)
