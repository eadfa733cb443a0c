"""The lines of `metrics.jsonl` as TensorBoard's event files, by tensorboardX; step is the round."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedrsclip_jax import distributed
from fedrsclip_jax.errors import InputError, install

FOLDER = "tensorboard"
_NO_LOSS = {"round", "bytes_sent", "silent_rounds", "refused", "accuracy", "images", "loss"}
_NO_LOSS |= {"global", "personalised", "scored", "participants"}


def check_installed() -> None:
    """Refuses `--tensorboard` where the extra is missing."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--tensorboard needs the Python package tensorboardX; run `{install('tensorboard')}`"
        ) from error


class Events:
    """The event file of one run; for use in a `with`. Of several processes, the first writes."""

    def __init__(self, folder: Path | None):
        """
        Args:
          folder: of event files; those that lie there are of an earlier start of the run, and are replaced when there
            is a first line. None writes nothing.
        """
        self._folder = folder if distributed.first() else None
        self._file: Any = None
        self._written = 0

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._file is not None:
            self._file.close()

    def follow(self, lines: Sequence[dict[str, Any]]) -> None:
        """Writes those of a run's lines that are not written yet; they are on disk when this returns.

        Args:
          lines: all of them, as `Ledger.lines`.
        """
        if self._folder is None or len(lines) == self._written:
            return
        if self._file is None:
            self._file = _new_file(self._folder)
        for line in lines[self._written :]:
            self._file.write_event(_event(line))
        self._file.flush()
        self._written = len(lines)


def _new_file(folder: Path) -> Any:
    from tensorboardX.event_file_writer import EventsWriter

    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("events.out.tfevents.*"):
        path.unlink()
    return EventsWriter(str(folder / "events"))


def _event(line: dict[str, Any]) -> Any:
    # Made by protobuf as they are imported, so that a type checker does not see them.
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(line) if value is not None]
    return Event(wall_time=time.time(), step=line["round"], summary=Summary(value=values))


def _scalars(line: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Tags and values; a round in which nobody answered has no loss."""
    yield "accuracy/pooled", line["global"]["accuracy"]
    yield "accuracy/clients_own", line["personalised"]["mean"]
    yield "accuracy/worst_tenth", line["personalised"]["worst_decile"]
    if "participants" in line:
        yield "accuracy/participants_own", line["participants"]["mean"]
    yield "accuracy/training", line.get("accuracy")
    yield "loss/total", line.get("loss")
    yield from ((f"loss/{name}", value) for name, value in line.items() if name not in _NO_LOSS)
    yield "bytes_sent", line["bytes_sent"]
