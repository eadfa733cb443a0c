"""Prompts that come from elsewhere: another run's, files of CoOp, FedOTP, Flip and our own, as what a run starts from.

A file is read as tensors and numbers alone (`weights_only=True`); nothing in it is executed. A run keeps what it read
in its own folder: the private prompt of a client never drawn stays that of the start, whatever becomes of the file.
"""

import hashlib
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from safetensors import safe_open
from safetensors.numpy import save

from fedrsclip_jax import distributed
from fedrsclip_jax.checkpoint import FOLDER, Checkpoints
from fedrsclip_jax.clip.model import CLIPConfig
from fedrsclip_jax.config import Config
from fedrsclip_jax.errors import InputError, install
from fedrsclip_jax.files import write_bytes

KEPT = "initial_prompts.safetensors"


class Prompts(NamedTuple):
    """Text prompts in fp32, of the federation and of one client; either may be missing.

    Attributes:
      shared: what the server keeps; also the one prompt of a file that holds a single one.
      private: what a client keeps.
    """

    shared: Float[np.ndarray, "context width"] | None = None
    private: Float[np.ndarray, "context width"] | None = None

    @property
    def present(self) -> dict[str, np.ndarray]:
        """Those that there are, by name, shared before private."""
        return {name: prompt for name, prompt in zip(self._fields, self, strict=True) if prompt is not None}

    @property
    def digest(self) -> str:
        """sha256 over the fp32 numbers of those that there are, with their names."""
        sha = hashlib.sha256()
        for name, prompt in self.present.items():
            sha.update(name.encode() + np.ascontiguousarray(prompt, "<f4").tobytes())
        return sha.hexdigest()


def imported(config: Config, clip: CLIPConfig) -> Prompts:
    """The prompts of `init_from`, which fit the run; none where it is empty.

    Raises:
      InputError: the file cannot be read, or its prompts are not of the run's number of tokens and width.
    """
    if not config.init_from:
        return Prompts()
    if config.method.context_init:
        raise InputError(
            f"method.context_init = {config.method.context_init!r} and init_from = {config.init_from!r} both say what "
            "prompts start from; give one of them"
        )
    prompts = read(config.init_from)
    for prompt in prompts.present.values():
        tokens, width = prompt.shape
        what = f"init_from: {config.init_from.partition(':')[2]} holds a prompt of {tokens} tokens"
        if width != clip.text.width:
            raise InputError(
                f"{what} of width {width}; the text tower of {config.backbone} is {clip.text.width} wide; give a "
                "prompt of the same backbone"
            )
        if tokens > clip.positions - 3:
            raise InputError(
                f"{what}; this CLIP reads {clip.positions} with start, class name and end; give a shorter prompt"
            )
        if tokens != config.method.context_tokens:
            raise InputError(f"{what}; set method.context_tokens = {tokens} (it is {config.method.context_tokens})")
    return prompts


def keep(prompts: Prompts, folder: Path) -> None:
    """Writes into a run's folder what the run starts from."""
    if prompts.present:
        # safetensors writes memory as it lies, whatever the strides.
        write_bytes(folder / KEPT, save({name: np.ascontiguousarray(p) for name, p in prompts.present.items()}))
    elif distributed.first():
        (folder / KEPT).unlink(missing_ok=True)  # of an earlier start that had some


def kept(folder: Path, digest: str | None) -> Prompts:
    """What the run of a folder started from.

    Args:
      digest: that it had; None where the run did not write it down.

    Raises:
      InputError: it is not there any more, or is something else.
    """
    prompts = Prompts()
    with suppress(InputError):  # which would speak of `init_from`
        prompts = _safetensors(folder / KEPT)
    if prompts.digest != digest:
        what = "no longer holds" if (folder / KEPT).exists() else "is gone; it held"
        raise InputError(
            f"--workdir: {folder / KEPT} {what} the prompts that the run started from; copy it again from where the "
            "run was trained, or train the run anew"
        )
    return prompts


def starting_from(prompts: Prompts, make: Callable[..., nnx.Module]) -> Callable[..., nnx.Module]:
    """A method of which every module starts from given prompts, without noise, instead of its draw.

    The shared prompt goes to the federation's, the private one to every client's. A method with prompts of one kind
    takes the one of that kind, or the one there is; what a file does not hold is drawn as ever, and so are variables
    that are no prompts (of an adapter, say): a method's prompts are its attributes `shared` and `private`.
    """
    if not prompts.present:
        return make

    def made(*arguments) -> nnx.Module:
        module = make(*arguments)
        kinds = [kind for kind in ("shared", "private") if hasattr(module, kind)]
        for kind, own, other in (("shared", *prompts), ("private", *prompts[::-1])):
            prompt = other if own is None and kinds == [kind] else own
            if prompt is not None and kind in kinds:
                getattr(module, kind)[...] = jnp.asarray(prompt)
        return module

    return made


def read(spec: str) -> Prompts:
    """The prompts of `FORMAT:FILE`, or of `run:FOLDER`.

    Raises:
      InputError: an unknown format, no such file, or one that holds something else.
    """
    kind, _, name = spec.partition(":")
    if kind not in READERS or not name:
        forms = ", ".join(f"{k}:{'FOLDER' if k == 'run' else 'FILE'}" for k in READERS)
        raise InputError(f"init_from = {spec!r} is not known; write {forms}")
    path = Path(name).expanduser()
    if kind != "run" and not path.is_file():
        inside = sorted((path / "prompt_learner").glob("model*.pth.tar*")) if path.is_dir() else []
        remedy = f"give {inside[-1]}" if inside else "give the file of a prompt"
        raise InputError(f"init_from: {path} is {'a folder' if path.is_dir() else 'no file'}; {remedy}")
    prompts = READERS[kind](path)
    if not all(np.isfinite(prompt).all() for prompt in prompts.present.values()):
        raise InputError(f"init_from: {path} holds numbers that are not finite; give the prompt of a sound run")
    return prompts


def _coop(path: Path) -> Prompts:
    context = _context(path)
    if context.ndim == 2:
        return Prompts(context)
    remedies = {1: f"write flip:{path}", 2: f"write fedotp:{path} if it is FedOTP's"}
    remedy = remedies.get(context.shape[0], "contexts of single classes have no place here")
    raise InputError(f"init_from: ctx in {path} has shape {list(context.shape)}; CoOp's is [tokens, width]; {remedy}")


def _fedotp(path: Path) -> Prompts:
    context = _context(path)
    if context.ndim == 3 and context.shape[0] == 2:
        return Prompts(context[0], context[1])
    raise InputError(
        f"init_from: ctx in {path} has shape {list(context.shape)}; FedOTP's is [2, tokens, width], shared and "
        f"private; write coop:{path} or flip:{path} for a single prompt"
    )


def _flip(path: Path) -> Prompts:
    context = _context(path)
    if context.ndim == 3 and context.shape[0] == 1:
        return Prompts(context[0])
    raise InputError(
        f"init_from: ctx in {path} has shape {list(context.shape)}; Flip's is [1, tokens, width]; write coop:{path} "
        f"for [tokens, width], fedotp:{path} for [2, tokens, width]"
    )


def _safetensors(path: Path) -> Prompts:
    try:
        with safe_open(path, framework="flax") as file:
            held = set(file.keys()) & set(Prompts._fields)
            found = {name: np.asarray(file.get_tensor(name)) for name in held}
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"init_from: {path} cannot be read as safetensors ({reason}); export it again") from error
    if not found:
        raise InputError(f"init_from: {path} holds neither `shared` nor `private`; give what `fedrsclip export` wrote")
    for name, prompt in found.items():
        if prompt.ndim != 2 or str(prompt.dtype) not in WIDENED:
            raise InputError(
                f"init_from: {name} in {path} is {prompt.dtype} of shape {list(prompt.shape)}; a prompt is "
                f"[tokens, width] of {', '.join(WIDENED)}"
            )
    return Prompts(**{name: prompt.astype(np.float32) for name, prompt in found.items()})


def _run(path: Path) -> Prompts:
    """The shared prompt of a run's last checkpoint; private prompts are its clients' own, and not handed on."""
    if not (path / FOLDER).is_dir():
        raise InputError(f"init_from: {path} holds no checkpoints; give the --workdir of a run that has saved one")
    with Checkpoints(path) as checkpoints:
        shared = checkpoints.restore().shared
    if len(shared) != 1 or shared[0].ndim != 2:
        raise InputError(f"init_from: the run in {path} has no shared prompt; give one of fedrsclip or promptfl")
    return Prompts(np.asarray(shared[0], np.float32))


WIDENED = ("float32", "float16", "bfloat16")
READERS: dict[str, Callable[[Path], Prompts]] = {
    "coop": _coop,
    "fedotp": _fedotp,
    "flip": _flip,
    "safetensors": _safetensors,
    "run": _run,
}


def _context(path: Path) -> np.ndarray:
    """`ctx` of a PyTorch file, alone or in a `state_dict`, of the prompt learner or the whole model; in fp32."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"init_from: {path} needs PyTorch to be read; run `{install('torch')}`, or give a prompt as "
            "safetensors:FILE"
        ) from error
    try:
        written: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"init_from: {path} is no PyTorch file, or holds more than tensors and numbers, which is not loaded; if "
            "you trust it, keep its prompt alone: torch.save({'state_dict': {'ctx': CTX}}, FILE)"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"init_from: {path} cannot be read ({reason}); copy or export it again") from error
    state = written.get("state_dict", written) if isinstance(written, dict) else None
    named = [
        value
        for name, value in (state.items() if isinstance(state, dict) else ())
        if isinstance(name, str) and (name == "ctx" or name.endswith("prompt_learner.ctx"))
    ]
    if len(named) != 1:
        raise InputError(
            f"init_from: {path} holds {len(named) or 'no'} tensors called ctx where one is due; keep its prompt alone: "
            "torch.save({'state_dict': {'ctx': CTX}}, FILE)"
        )
    (context,) = named
    dtype = str(getattr(context, "dtype", type(context).__name__)).removeprefix("torch.")
    if dtype not in WIDENED:
        raise InputError(f"init_from: ctx in {path} is {dtype}; save it as a tensor of {', '.join(WIDENED)}")
    try:
        array = context.detach().to(torch.float32).numpy().copy()
    except Exception as error:  # sparse, nested, without numbers: what a tensor may be instead of an array
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"init_from: ctx in {path} is no dense tensor ({reason}); save it dense, ctx.to_dense()"
        ) from error
    if not 2 <= array.ndim <= 3:
        raise InputError(
            f"init_from: ctx in {path} has shape {list(array.shape)}; save it as [tokens, width], or [prompts, tokens, "
            "width]"
        )
    return array
