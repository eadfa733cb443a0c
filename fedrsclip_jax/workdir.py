"""The folder of a run: whether it is new or can be gone on with, and who may write into it."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from fedrsclip_jax import __version__, distributed, formats, lock
from fedrsclip_jax.config import FOLLOWS, Config, to_dict
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.files import PARTIAL, check_can_be_made, make_folder

# What may change from one start of a run to the next: how far it goes, what is looked at and kept, the machine, and
# which other runs stand beside it.
FREE = ("rounds", "seeds", "baselines", "eval.every", "checkpoint.", "spmd.")
# Where things lie and how they are found; that they are the same things is told by their digests.
PLACES = ("backbone", "data.source", "data.tfds_dir", "data.merge", "data.layout")

STUDY = "study.json"  # what a folder was last started with: its own configuration, with all seeds and baselines


def check(workdir: Path) -> None:
    """Refuses a folder that holds something other than a run, and one that cannot be made."""
    if not distributed.first():
        return
    if workdir.exists():
        leftovers = (lock.FILE, PARTIAL, STUDY)  # of a start that was killed before it wrote anything
        strange = not workdir.is_dir() or any(not path.name.startswith(leftovers) for path in workdir.iterdir())
        if strange and not (workdir / "config.json").is_file():
            raise InputError(
                f"--workdir: {workdir} is not an empty folder, and holds no run that could go on; name a new one, so "
                "that nothing is overwritten"
            )
    check_can_be_made(workdir)


@contextmanager
def claim(workdir: Path, say: Callable[[str], None] = lambda said: None) -> Iterator[None]:
    """The folder, made where it is missing, for one run alone; if nothing was written, nothing is left of it.

    Args:
      say: is told from which dead process it was taken over, if any.

    Raises:
      InputError: another run writes there, or it cannot be made; on all processes.
    """
    with ExitStack() as stack:
        with distributed.together():
            if distributed.first():
                missing = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
                stack.callback(_remove_empty, missing)
                make_folder(workdir)
                if dead := stack.enter_context(lock.hold(workdir)):
                    say(f"{workdir}: taken over from {dead}, which is dead")
                stack.callback(_forget_study, workdir)
        yield


def own_configuration(workdir: Path) -> dict[str, Any] | None:
    """What the run or comparison of a folder was last started with; None where there is none.

    Raises:
      InputError: it is a sweep, or its records cannot be read.
    """
    first = formats.read(workdir / "config.json") if (workdir / "config.json").is_file() else None
    if first is not None and "sweep" in first:
        raise InputError(f"--workdir: {workdir} holds a sweep; go on with it by fedrsclip sweep and its --config")
    if (workdir / STUDY).is_file():  # alone where a start was killed while it encoded
        return formats.read(workdir / STUDY, "config")["config"]
    if first is None:
        return None
    if (workdir / "comparison.json").is_file():  # of a version that kept no study
        whole = formats.read(workdir / "comparison.json", "config")["config"]
        first |= {key: whole[key] for key in ("seeds", "baselines")}
    return first


def check_same(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    digests: Mapping[str, tuple[str | None, str]],
    allowed: Sequence[str],
    version: str,
) -> list[str]:
    """Refuses to go on with a run as another one.

    Args:
      before, now: configurations, nested as `config.json` holds them; a key that is younger than the run had its
        default.
      digests: by name of what they are of, as the run had it, if it wrote it down, and as it is now.
      allowed: keys and names that may differ nevertheless.
      version: of the package that wrote `before`.

    Returns:
      What differs and is allowed to.

    Raises:
      InputError: something differs that neither `FREE` nor `allowed` lets.
    """
    defaults = dict(_leaves(to_dict(Config())))
    said = defaults | dict(_leaves(before))
    old, new = {**said}, defaults | dict(_leaves(now))
    for leaves in (old, new):
        if leaves["data.split_seed"] == FOLLOWS:
            leaves["data.split_seed"] = leaves["seed"]
    differ = {
        key: f"{key} = {new.get(key)!r} (it was {old.get(key)!r})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(FREE) and key not in PLACES
    }
    differ |= {name: f"{name} (another digest)" for name, (was, is_now) in digests.items() if was != is_now}
    for key in allowed:
        if key not in differ and key not in old and key not in digests:
            raise InputError(
                f"--allow-changed: no key {key!r}; name what differs: "
                f"{', '.join(differ) or 'nothing does, leave the flag out'}"
            )
    left = [key for key in differ if key not in allowed]
    if left:
        keys = [key for key in left if key in defaults and key not in digests]
        # Where nobody asked for another value, a default has changed or a flag was left out.
        unasked = len(keys) == len(left) and all(new[key] == defaults[key] for key in keys)
        remedy = _remedy(left, " ".join(as_flag(key, said[key]) for key in keys), unasked)
        whose = f"the run is of fedrsclip_jax {version}, and this is {__version__}; " if version != __version__ else ""
        raise InputError(f"--workdir holds another run: {'; '.join(differ[key] for key in left)}; {whose}{remedy}")
    return [*differ]


def _remedy(left: Sequence[str], keep: str, unasked: bool) -> str:
    """How to go on where `left` differs.

    Args:
      keep: flags that keep what the run has.
      unasked: whether all values are defaults; then there is no reason to change them in the middle of a run.
    """
    if unasked:
        return f"go on with what it has, by {keep}, or name a new folder"
    keep = f"go on with what it has, by {keep}, " if keep else ""
    return f"name a new folder, {keep}or go on with what is changed: --allow-changed={','.join(left)}"


def as_flag(key: str, value: Any) -> str:
    """A key as the command line sets it."""
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    return shlex.quote(f"--config.{key}={str(value).lower() if isinstance(value, bool) else value}")


def _forget_study(workdir: Path) -> None:
    if not (workdir / "config.json").is_file():  # nothing was saved that could go on
        (workdir / STUDY).unlink(missing_ok=True)


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):  # one is not empty any more: something was written
        for folder in folders:
            folder.rmdir()


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
