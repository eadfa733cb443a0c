"""Prompts in the files of other codebases, and in our own.

| format | file | content |
|---|---|---|
| coop | prompt_learner/model.pth.tar-ROUND | ctx [m, d], token_prefix [C, 1, d], token_suffix [C, rest, d] |
| fedotp | prompt_learner/model.pth.tar-ROUND | ctx [2, m, d], shared and private; buffers [2C, ...] |
| fedtpg | prompt_learner/model.pth.tar-ROUND | ctx [m, d] alone, for it is loaded strictly |
| flip | prompt.pth.tar | ctx [1, m, d] alone: matched by name and size |
| safetensors | prompts.safetensors | shared [m, d], private [m, d], as far as there are; metadata |

PyTorch files hold `{"state_dict": ..., "epoch": ROUND}` of tensors and integers alone, so that they load with
`weights_only=True`. Beside those of Dassl's layout a text file `checkpoint` names them. What FedOTP computes from its
two prompts is its own (an optimal transport to patches of an image); certificates compare the two combined as the
run's method does, or, of a run of FedOTP, the mean of the prompts' logits on whole images.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save_file

from fedrsclip_jax.clip import tokenizer
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.export.chosen import Model
from fedrsclip_jax.export.places import place_name
from fedrsclip_jax.export.sequences import sequences
from fedrsclip_jax.files import write_text
from fedrsclip_jax.methods import find_method
from fedrsclip_jax.methods.base import Head, head_of, needs_patches

LEARNER = "prompt_learner"


def check_single(model: Model, kind: str) -> None:
    """Refuses models that are not one text prompt behind which class names stand.

    Raises:
      InputError: names the formats that will do.
    """
    check_prompts(model, kind)
    if model.contexts.shape[0] > 1:
        raise InputError(
            f"--format={kind} holds one prompt, and {model.name} has two, whose {model.combine} are averaged; "
            "use --format=fedotp, safetensors or classifier"
        )
    check_names(model.run.task.words, model.run.task.source.class_names, model.run.config.method.class_position, kind)
    position = model.run.config.method.class_position
    if kind == "fedtpg" and position != "end":
        raise InputError(
            f"--format=fedtpg: FedTPG puts class names at the end, and method.class_position is {position!r}; "
            "use --format=coop"
        )


def check_pair(model: Model, kind: str) -> None:
    """Refuses models without a shared and a private prompt.

    Raises:
      InputError: says what to give instead.
    """
    check_prompts(model, kind)
    assert model.prompts is not None
    if len(model.prompts.present) < 2:
        method = model.run.config.method.name
        remedy = "name a client with --client=K" if method in ("fedrsclip", "fedotp") else "use --format=coop"
        raise InputError(
            f"--format={kind} holds a shared and a private prompt; {model.name} of {method} has one; {remedy}"
        )
    check_names(model.run.task.words, model.run.task.source.class_names, model.run.config.method.class_position, kind)


def check_names(words: Any, names: Sequence[str], position: str, kind: str) -> None:
    """Refuses class names whose tokens the other side parts at another place than ours.

    CoOp's code, from which the others come, reads `name.` as one text and takes as many tokens for the name as it has
    alone, so that a last sign and full stop that are one token stand in front of the context together.

    Args:
      words: the tokenizer.
      position: of the name to the context.
    """
    joined = [name for name in names if not tokenizer.name_and_stop(words, name)[1]]
    if position != "end" and joined:
        raise InputError(
            f"--format={kind}: of the class {joined[0]!r} the last sign and the full stop are one token, which CoOp's "
            f"code does not part where method.class_position = {position!r}; use --format=safetensors or classifier"
        )


def check_prompts(model: Model, kind: str) -> None:
    """Refuses models that are more than text prompts."""
    if model.prompts is None:
        raise _no_prompts(kind, model.run.config.method.name, head_of(model.module))


def check_of_prompts(name: str, kind: str) -> None:
    """Refuses methods that train something else than text prompts, or whose logits do not follow from these."""
    method = find_method(name)
    if not needs_patches(method) and (head_of(method).own_classes or not head_of(method).linear):
        raise _no_prompts(kind, name, head_of(method))


def check_of_linear_head(name: str, kind: str) -> None:
    """Refuses methods whose logits are not weights times one feature of an image, with a bias or without."""
    method = find_method(name)
    if needs_patches(method):
        raise InputError(
            f"--format={kind} reads one feature an image, and {name} reads those of its patches; use --format=fedotp "
            "or safetensors"
        )
    if not head_of(method).linear:
        raise InputError(
            f"--format={kind} holds weights of an image's feature, and logits of {name} are not linear in it; use "
            "`fedrsclip predict`, which needs no export"
        )


def _no_prompts(kind: str, name: str, head: Head) -> InputError:
    remedy = "use --format=classifier" if head.linear else "use `fedrsclip predict`, which needs no export"
    return InputError(f"--format={kind} holds text prompts, and {name} trains something else; {remedy}")


def write_coop(model: Model, folder: Path) -> None:
    prefix, suffix = _buffers(model, model.contexts.shape[1])
    _write_dassl(model, folder, ctx=model.contexts[0], token_prefix=prefix, token_suffix=suffix)


def write_fedotp(model: Model, folder: Path) -> None:
    assert model.prompts is not None
    context = np.stack(list(model.prompts.present.values()))
    prefix, suffix = (np.concatenate([half, half]) for half in _buffers(model, context.shape[1]))
    _write_dassl(model, folder, ctx=context, token_prefix=prefix, token_suffix=suffix)


def write_fedtpg(model: Model, folder: Path) -> None:
    _write_dassl(model, folder, ctx=model.contexts[0])


def write_flip(model: Model, folder: Path) -> None:
    _save_torch(folder / "prompt.pth.tar", model.round, ctx=model.contexts)


def write_safetensors(model: Model, folder: Path) -> None:
    assert model.prompts is not None
    settings = model.run.config.method
    metadata = {
        "format": "fedrsclip prompts 1",
        "method": settings.name,
        "combine": model.combine,
        "class_position": settings.class_position,
        "class_names": json.dumps(model.run.task.source.class_names, ensure_ascii=False),
        "backbone": place_name(model.run.config.backbone),
        "backbone_sha256": model.run.summary["backbone_sha256"],
        "config_sha256": model.run.summary["config_sha256"],
        "round": str(model.round),
        "client": "" if model.client is None else str(model.client),
    }
    path = folder / "prompts.safetensors"
    save_file(
        {name: np.ascontiguousarray(prompt) for name, prompt in model.prompts.present.items()}, path, metadata=metadata
    )
    path.chmod(0o644)  # safetensors leaves it readable for the owner alone


def file_of(kind: str, folder: Path, number: int) -> Path:
    """The file that holds the prompts of an exported folder."""
    names = {"flip": "prompt.pth.tar", "safetensors": "prompts.safetensors"}
    return folder / names.get(kind, f"{LEARNER}/model.pth.tar-{number}")


def _buffers(
    model: Model, context: int
) -> tuple[Float[np.ndarray, "classes 1 width"], Float[np.ndarray, "classes rest width"]]:
    """Embeddings of what stands in front of the context and behind it, where class names are at the end.

    That is how the other side registers them for every class position; it deletes them when it loads.
    """
    task = model.run.task
    tokens, _ = sequences(task.words, task.source.class_names, task.clip_config, context, "end")
    embedded = np.asarray(task.clip.text.token[...], np.float32)[tokens]
    return embedded[:, :1], embedded[:, 1 + context :]


def _write_dassl(model: Model, folder: Path, **state: np.ndarray) -> None:
    name = f"model.pth.tar-{model.round}"
    (folder / LEARNER).mkdir()
    _save_torch(folder / LEARNER / name, model.round, **state)
    write_text(folder / LEARNER / "checkpoint", f"{name}\n")


def _save_torch(path: Path, number: int, **state: np.ndarray) -> None:
    import torch

    tensors = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in state.items()}
    torch.save({"state_dict": tensors, "epoch": number}, path)
