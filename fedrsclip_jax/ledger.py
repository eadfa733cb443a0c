"""What a run has counted so far; saved with every checkpoint, so that a resumed run counts on."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedrsclip_jax import formats
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.federated.engine import Done
from fedrsclip_jax.files import write_text

METRICS = "metrics.jsonl"
TRAINING = "training.jsonl"

_ACCURACIES = {"global": "accuracy", "personalised": "mean"}


@dataclass
class Ledger:
    """The books of one run.

    Attributes:
      round: rounds done; 0 is the initial draw.
      steps: local steps of all clients together.
      bytes_sent: up, by all clients together.
      silent_rounds: in which no update counted, so that nothing changed.
      wasted: sum over rounds of the share of lane-steps without work.
      figures: of the last round's loss; None each if nobody answered.
      refused: (round, client) of updates that were not finite, since the last line.
      refused_updates: how many there were in all.
      lines: of `metrics.jsonl`, one an evaluation.
      training: of `training.jsonl`, one a round: figures of the loss; those of rounds before older versions stopped
        are missing.
      of_others: lines at the beginning whose personal models are those of other clients than in the lines that follow:
        older versions scored the virtual clients that any round of the run would draw.
      starts: after which round, and with what each start of the run began; see `provenance`.
      seconds: wall-clock time by phase.
    """

    round: int = 0
    steps: int = 0
    bytes_sent: int = 0
    silent_rounds: int = 0
    wasted: float = 0.0
    figures: dict[str, float | None] = field(default_factory=dict)
    refused: list[tuple[int, int]] = field(default_factory=list)
    refused_updates: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)
    training: list[dict[str, Any]] = field(default_factory=list)
    of_others: int = 0
    starts: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("encode", "compile", "train", "evaluate"), 0.0)
    )

    def enter(self, rounds: Sequence[Done], bytes_per_client: int) -> None:
        """Counts some rounds, in their order."""
        for done in rounds:
            self.round += 1
            self.steps += done.steps
            self.bytes_sent += (done.answered + len(done.refused)) * bytes_per_client
            self.silent_rounds += done.answered == 0
            self.wasted += done.wasted
            self.figures = dict(done.figures) if done.answered else dict.fromkeys(done.figures)
            self.training.append({"round": self.round, **self.figures})
            self.refused += [(self.round, client) for client in done.refused]
            self.refused_updates += len(done.refused)

    @property
    def best(self) -> int | None:
        """The round of the line whose personal models scored best on their clients, the first of equals."""
        return max(self._comparable, key=lambda line: line["personalised"]["mean"], default={"round": None})["round"]

    def set_apart_of_others(self) -> None:
        """Sets `of_others`, for virtual clients: lines of older versions do not say of which clients they are."""
        self.of_others = next((n for n, line in enumerate(self.lines) if "scored" in line), len(self.lines))

    @property
    def _comparable(self) -> list[dict[str, Any]]:
        """Lines on the same clients: those since `of_others`, or all where there is none yet."""
        return self.lines[self.of_others :] or self.lines

    @property
    def has_line(self) -> bool:
        """Whether there is a line for the present round."""
        return bool(self.lines) and self.lines[-1]["round"] == self.round

    def write_line(self, scores: dict[str, Any]) -> None:
        """A line for an evaluation after the present round: of its losses, of all counts so far, of its scores."""
        self.lines.append(
            {
                "round": self.round,
                **self.figures,
                "bytes_sent": self.bytes_sent,
                "silent_rounds": self.silent_rounds,
                "refused": [{"round": number, "client": client} for number, client in self.refused],
                **scores,
            }
        )
        self.refused = []

    def last(self, shares: bool = True, lines: int = 5) -> dict[str, dict[str, float] | None]:
        """Mean and standard deviation of the accuracies of the last evaluations, or of as many as there are.

        Args:
          shares: whether there is a model of the federation; if not, `global` is None.
        """

        def told(name: str) -> dict[str, float]:
            values = [value for _, value in self._course(name)][-lines:]
            return {"mean": statistics.fmean(values), "std": statistics.pstdev(values), "evaluations": len(values)}

        return {name: told(name) if shares or name != "global" else None for name in _ACCURACIES}

    def bytes_to(self, accuracy: float, zero_shot: dict[str, float], shares: bool = True) -> dict[str, int | None]:
        """Bytes sent up to the first evaluation with at least this accuracy; None where there was none.

        Args:
          zero_shot: accuracy of zero-shot CLIP under the same names, `global` and `personalised`. It costs no byte,
            so an accuracy that it already has needs 0 bytes.
          shares: whether there is a model of the federation; if not, `global` is None.
        """

        def sent(name: str) -> int | None:
            course = [(0, zero_shot[name]), *self._course(name)]
            return next((sent for sent, value in course if value >= accuracy), None)

        return {name: sent(name) if shares or name != "global" else None for name in _ACCURACIES}

    def _course(self, name: str) -> list[tuple[int, float]]:
        lines = self._comparable if name == "personalised" else self.lines
        return [(line["bytes_sent"], line[name][_ACCURACIES[name]]) for line in lines]

    def write_lines(self, folder: Path) -> None:
        """Writes `metrics.jsonl` and `training.jsonl`."""
        write_text(folder / TRAINING, "".join(_written(line) for line in self.training))
        write_text(folder / METRICS, "".join(_written(line) for line in self.lines))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Ledger":
        """What `to_dict` gave, after a way through JSON."""
        return cls(**{**record, "refused": [(number, client) for number, client in record["refused"]]})


def _written(line: dict[str, Any]) -> str:
    return json.dumps({**line, "format": formats.FORMAT}, allow_nan=False) + "\n"


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """What `metrics.jsonl` of a run holds, a line an evaluation; `InputError` where it cannot be read."""
    return _read(folder / METRICS)


def read_training(folder: Path) -> list[dict[str, Any]]:
    """Figures of the loss, a line a round; those at evaluations alone where an older version wrote the folder."""
    return (_read(folder / TRAINING) if (folder / TRAINING).is_file() else []) or read_lines(folder)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"--workdir: {path} cannot be read ({error}); give a sound run") from error
    return [dict(formats.upgrade("line", line, path)) for line in lines]
