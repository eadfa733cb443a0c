"""One federated run, from a configuration to a folder of results; read it from top to bottom."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedrsclip_jax import compilation, distributed, formats, peers, remarks, workdir
from fedrsclip_jax import config as configuration
from fedrsclip_jax.checkpoint import BEST, FOLDER, Checkpoints, Saved
from fedrsclip_jax.config import Config
from fedrsclip_jax.data.features import Features
from fedrsclip_jax.data.sources import fingerprint
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.evaluate import score_zero_shot
from fedrsclip_jax.events import Events
from fedrsclip_jax.evidence import FILE as EVIDENCE
from fedrsclip_jax.evidence import gather
from fedrsclip_jax.federated.aggregate import ServerPlan
from fedrsclip_jax.federated.aggregate import check as check_aggregator
from fedrsclip_jax.federated.engine import Diverged, Done
from fedrsclip_jax.federation import Federation
from fedrsclip_jax.files import make_folder
from fedrsclip_jax.generalisation import score_beyond
from fedrsclip_jax.interrupt import Interrupt
from fedrsclip_jax.ledger import METRICS, TRAINING, Ledger, read_lines
from fedrsclip_jax.methods import find_method
from fedrsclip_jax.methods.base import head_of, needs_patches
from fedrsclip_jax.predictions import FILE as PREDICTIONS
from fedrsclip_jax.predictions import write_predictions
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.prompts import KEPT, Prompts, imported, keep
from fedrsclip_jax.provenance import provenance
from fedrsclip_jax.task import Task, client_domains, divide, split


def run(
    config: Config,
    task: Task,
    features: Features,
    folder: Path,
    progress: Progress,
    interrupt: Interrupt,
    *,
    allowed: Sequence[str] = (),
    encode_seconds: float = 0.0,
    events: Path | None = None,
) -> dict[str, Any]:
    """Trains, evaluates and saves one run, or goes on with it where it was left.

    Args:
      interrupt: asked after each dispatch whether to save and leave.
      events: folder for TensorBoard's files, if they are wanted.
      Others: see `Run`.

    Returns:
      What `summary.json` says.

    Raises:
      InputError: settings that do not fit the data, the backbone or the earlier start.
      Diverged: prompts or loss are no longer finite; the last sound state is saved, if it is not the first.
      Stopped: as `interrupt` asked; what was done is saved.
    """
    with (
        Run(config, task, features, folder, progress, allowed=allowed, encode_seconds=encode_seconds) as one,
        Events(events) as written,
    ):
        if one.finished is not None:
            progress.say(f"{one.title}: finished before")
            if events is not None:
                written.follow(read_lines(folder))
            return one.finished
        with progress.track(one.title, config.rounds, unit="rounds", done=one.ledger.round, waits="compiling") as bar:
            while one.ledger.round < config.rounds:
                try:
                    with compilation.measure(one.ledger.seconds, "train"):
                        dispatch = one.federation.advance(one.ledger.round + 1, one.pause - one.ledger.round)
                except Diverged as diverged:
                    one.give_up(diverged)
                    raise
                one.enter(dispatch)
                written.follow(one.ledger.lines)
                done = dispatch[-1]
                bar.advance_to(
                    one.ledger.round,
                    loss=done.figures.get("loss", 0.0),
                    training_accuracy=done.figures.get("accuracy", 0.0),
                    clients_per_second=done.clients / max(done.seconds, 1e-9),
                    bytes_sent=one.ledger.bytes_sent,
                )
                stops = max(distributed.exchange(interrupt.exit_code))
                if stops and one.ledger.round < config.rounds:
                    one.save()
                    interrupt.leave(f"{one.title}: saved after round {one.ledger.round} of {config.rounds}", stops)
        summary = one.summarise()
        written.follow(one.ledger.lines)
        return summary


class Run:
    """One run and its books, from a folder that is new or was left to a summary; for use in a `with`.

    Attributes:
      title: for people.
      finished: the summary of an earlier start that came to the end; then there is nothing to do.
      identity: digests of backbone, data, partition and initial prompts.
      federation, ledger: the state, and what was counted so far.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        features: Features,
        folder: Path,
        progress: Progress,
        *,
        allowed: Sequence[str] = (),
        encode_seconds: float = 0.0,
        beside: "Run | None" = None,
        ready: tuple[Federation, Ledger] | None = None,
    ):
        """
        Args:
          task, features: shared by runs on the same data; see `task.load_task` and `task.encode_images`.
          folder: of results; new, empty, or that of an earlier start of this run.
          allowed: what may differ from the earlier start; see `workdir.check_same`.
          encode_seconds: what encoding took, for the summary.
          beside: a run whose images, and backbone where it is the same, are on the devices already.
          ready: a federation that has been trained elsewhere, with its books, which is only to be kept in `folder`.

        Raises:
          InputError: settings that do not fit the data, the backbone or the earlier start.
        """
        self.config, self.task, self.features, self.folder = config, task, features, folder
        self.title = f"{config.method.name}, seed {config.seed}"
        self._progress, self._allowed, self._stack = progress, allowed, ExitStack()
        self._scores: dict[str, Any] = {}
        with distributed.together():
            clients = ready[0].clients if ready else divide(config, task, features.readable)
            self._prompts = imported(config, task.clip_config)
            self.identity = {
                "backbone": task.digest,
                "data": fingerprint(task.images),
                "partition": clients.digest(),
                "initial_prompts": self._prompts.digest,
            }
            self.finished = check_earlier(config, folder, self.identity, allowed)
        if self.finished is not None:
            return
        self._before = {"encode": encode_seconds, "compile": 0.0}
        self._kept = ready and ready[1]
        if ready:
            self.federation = ready[0]
            return
        building: dict[str, float] = {"compile": 0.0, "start": 0.0}
        with compilation.measure(building, "start"):  # how many lanes fit is found out by compiling
            other = beside.federation if beside is not None and beside.finished is None else None
            self.federation = Federation(config, task, features, clients, self._prompts, other)
        self._before["compile"] = building["compile"]

    def __enter__(self) -> "Run":
        if self.finished is not None:
            return self
        with self._stack:
            self._open()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    @property
    def pause(self) -> int:
        """The next round that ends with an evaluation or a checkpoint."""
        steps = [every for every in (self.config.eval.every, self.config.checkpoint.every) if every]
        return min(self.config.rounds, *((self.ledger.round // every + 1) * every for every in steps))

    def enter(self, dispatch: Sequence[Done]) -> None:
        """Counts the rounds of a dispatch, none beyond `pause`; evaluates and saves where it is time to."""
        config, ledger = self.config, self.ledger
        ledger.enter(dispatch, self.federation.traffic.bytes)
        last = ledger.round == config.rounds
        if last or ledger.round % config.eval.every == 0:
            self._evaluate(complete=last)
        if last or (config.checkpoint.every and ledger.round % config.checkpoint.every == 0):
            self._save(self._checkpoints)

    def save(self) -> None:
        """A checkpoint of the present round, on disk when this returns."""
        self._save(self._checkpoints)
        with distributed.together():
            self._checkpoints.wait()

    def give_up(self, diverged: Diverged) -> None:
        """Saves the last sound state, or leaves nothing if that is the first one."""
        self.ledger.enter(diverged.before, self.federation.traffic.bytes)
        if self.ledger.round:
            self.save()
        else:
            _take_back_start(self.folder)

    def summarise(self) -> dict[str, Any]:
        """Writes `summary.json`, after the last round."""
        config, federation, ledger = self.config, self.federation, self.ledger
        target, shares = config.eval.target_accuracy, federation.traffic.params > 0
        zero = {"global": self._zero_shot["accuracy"], "personalised": self._zero_shot["on_clients"]["mean"]}
        if not self._scores:  # the run was left between its last round and its summary, or was to go further once
            self._evaluate(complete=True)
        with compilation.measure(ledger.seconds, "evaluate"):
            beyond = score_beyond(federation, self.task, self.features, self._scores)
        with distributed.together():
            self._checkpoints.wait()
        summary = {
            "method": config.method.name,
            "backbone": config.backbone,
            "dataset": config.data.source,
            "split": config.eval.split,
            "num_classes": len(self.task.source.class_names),
            "class_names": list(self.task.source.class_names),
            "num_clients": federation.clients.num_clients,
            "client_domains": client_domains(config, self.task.source, federation.clients),
            "client_names": list(federation.clients.names) or None,
            "num_scored_clients": int(np.sum(federation.clients.counts(federation.scored, "test") > 0)),
            "num_images": len(self.task.labels),
            "unreadable_images": int(np.sum(~self.features.readable)),
            "rounds": config.rounds,
            "silent_rounds": ledger.silent_rounds,
            "refused_updates": ledger.refused_updates,
            "best_round": ledger.best if config.eval.split == "validation" else None,
            "seed": config.seed,
            "uplink_params_per_client_round": federation.traffic.params,
            "uplink_bytes_per_client_round": federation.traffic.bytes,
            # A client is sent the shared variables that it sends back.
            "downlink_params_per_client_round": federation.traffic.params,
            "downlink_bytes_per_client_round": federation.traffic.bytes,
            "bytes_sent": ledger.bytes_sent,
            "local_steps": ledger.steps,
            "last_evaluations": ledger.last(shares),
            "bytes_to_target": ledger.bytes_to(target, zero, shares) if target else None,
            "bytes_to_accuracy": {f"{tenth / 10}": ledger.bytes_to(tenth / 10, zero, shares) for tenth in range(1, 10)},
            "zero_shot": self._zero_shot,
            **self._scores,
            **beyond,
            "seconds": {phase: round(spent, 3) for phase, spent in ledger.seconds.items()},
            "client_steps_per_second": ledger.steps / max(ledger.seconds["train"], 1e-9),
            "wasted_lane_share": ledger.wasted / config.rounds,
            "devices": federation.plan.mesh.size,
            "processes": jax.process_count(),
            "clients_per_device": federation.lanes,
            "state_sha256": federation.digest(),
            **{f"{name}_sha256": digest for name, digest in self.identity.items()},
            "config_sha256": configuration.digest(config),
            "provenance": {**ledger.starts[-1], "earlier": ledger.starts[:-1]},
        }
        answers = federation.answers()
        found = gather(federation, self.task.source, answers)
        with distributed.together():
            found.save(self.folder)
            write_predictions(federation, self.task.source, answers, self.folder)
            formats.write(self.folder / "summary.json", summary)
        return summary

    def _open(self) -> None:
        """Goes back to the newest checkpoint, or starts the books; then the folder is ours."""
        config, federation, folder = self.config, self.federation, self.folder
        self._checkpoints = self._stack.enter_context(Checkpoints(folder, config.checkpoint.keep))
        peers.remember(self._checkpoints.folder)
        self._best = self._stack.enter_context(Checkpoints(folder, None, BEST))
        with distributed.together():
            saved = self._checkpoints.newest()
            ledger = self.ledger = self._kept or _opened(saved, config, self.identity, folder, self._allowed)
            if saved:
                federation.restore(saved.server(federation.server), saved.population)
            if saved and not ledger.starts:  # a version before 0.2.0, which kept clients that never answered
                federation.population.forget_untrained()
            if federation.participants is not None:
                ledger.set_apart_of_others()
            if saved and not ledger.starts:  # which versions before 0.2.0 did not write down
                ledger.starts.append({"after_round": 0, "fedrsclip_jax": saved.record.version})
            ledger.starts.append({"after_round": 0 if self._kept else ledger.round, **provenance()})
        distributed.check_same({"checkpoint": str(ledger.round)})
        with distributed.together():  # nothing is refused any more
            self._checkpoints.go_on_after(ledger.round)
            self._best.delete_but(ledger.best)
            make_folder(folder)
            for phase, spent in self._before.items():
                ledger.seconds[phase] += spent
            _write_start(config, folder, self.identity, federation, self._prompts, ledger)
        if saved:
            self._progress.say(f"{self.title}: goes on after round {ledger.round}")
        self._zero_shot = score_zero_shot(
            self.features.plain, self.task.labels, federation.clients, federation.scored, federation.backbone
        )
        if (untested := remarks.of_clients(federation.clients, federation.scored, config.seed)) and not saved:
            self._progress.say(untested, once=f"clients of seed {config.seed}")
        if (hint := remarks.of_zero_shot(config, self._zero_shot)) and not saved:
            self._progress.say(hint, once="zero-shot")

    def _evaluate(self, complete: bool) -> None:
        with compilation.measure(self.ledger.seconds, "evaluate"):
            self._scores = self.federation.score(complete=complete)
        if self.ledger.has_line:
            return
        self.ledger.write_line(brief(self._scores))
        with distributed.together():
            self.ledger.write_lines(self.folder)
        if self.config.eval.split == "validation" and self.ledger.best == self.ledger.round:
            self._save(self._best)
            with distributed.together():
                self._best.wait()  # a checkpoint that knows of a best one finds it on disk

    def _save(self, to: Checkpoints) -> None:
        ledger = self.ledger
        record = {"config": configuration.to_dict(self.config), "identity": self.identity, "ledger": ledger.to_dict()}
        with distributed.together():
            to.save(ledger.round, self.federation.server, self.federation.population, record)
            if to is self._checkpoints and len(self._best.rounds()) > 1:
                to.wait()  # once one is on disk that knows of the best, the others can go
                self._best.delete_but(ledger.best)


def check_method(config: Config, name: str, key: str = "method.name") -> None:
    """Refuses a method that is not known, or cannot be scored as the configuration asks; `key` names it."""
    method = find_method(name, key)
    if config.eval.base_to_new and config.eval.finetune_epochs:
        raise InputError(
            f"eval.base_to_new = True with eval.finetune_epochs = {config.eval.finetune_epochs}: models on new classes "
            "are not fine-tuned, and would not be those on base classes; leave out either"
        )
    if config.eval.base_to_new and head_of(method).own_classes:
        raise InputError(
            f"eval.base_to_new = True with {key}: {name} has variables of each class and cannot name others; leave out "
            "either"
        )


def check_settings(config: Config, task: Task) -> dict[str, str]:
    """Refuses what does not fit before the images are encoded, which can take long.

    Returns:
      What is known by then of the run's identity: digests of backbone, data and initial prompts.

    Raises:
      InputError: an unknown method, or one that cannot name the classes to score, patches that do not divide the
        backbone's, more clients a round than there are, an aggregator that cannot do its work on so few, images that
        cannot be divided so, prompts that do not fit the backbone.
    """
    check_method(config, config.method.name)
    if needs_patches(find_method(config.method.name)):
        task.patch_grid(config.method)
    if config.cohort > config.partition.clients:
        raise InputError(
            f"cohort = {config.cohort} of partition.clients = {config.partition.clients}; use at most that, or 0 for "
            "everyone"
        )
    clients = divide(config, task)
    check_aggregator(ServerPlan.of(config), config.cohort or clients.num_clients)
    task.backbone(config.method)
    if task.new is not None:
        split(config, task.new)
        task.of_new_classes().backbone(config.method)
    task.context_start(config.method)
    prompts = imported(config, task.clip_config)
    return {"backbone": task.digest, "data": fingerprint(task.images), "initial_prompts": prompts.digest}


def check_seen(folder: Path) -> None:
    """Refuses to go on in a folder that not every process sees as the first does."""
    rounds = [path.name for path in (folder / FOLDER).glob("*") if path.name.isdecimal()]
    newest = max(rounds, key=int, default="")
    mine = [f"{FOLDER}/{newest}"] if newest else []
    distributed.check_seen(folder, ("config.json", "summary.json", *distributed.exchange(mine)[0]))


def check_earlier(
    config: Config, folder: Path, identity: dict[str, str], allowed: Sequence[str]
) -> dict[str, Any] | None:
    """The summary of an earlier start of this run, if that came to the end that this one is to come to.

    Args:
      identity: digests by name, or as many as are known yet.

    Raises:
      InputError: the folder holds another run, or this one finished with something that is to be changed.
    """
    if not (folder / "config.json").is_file():
        return None
    was = formats.read(folder / "identity.json", *identity) if (folder / "identity.json").is_file() else {}
    digests = {name: (was.get(name, digest), digest) for name, digest in identity.items()}
    before = formats.read(folder / "config.json")
    changed = workdir.check_same(before, configuration.to_dict(config), digests, allowed, before.version)
    if not (folder / "summary.json").is_file():
        return None
    summary = formats.read(folder / "summary.json", "rounds", "seed", "split", "personalised", "global", "zero_shot")
    if summary["rounds"] > config.rounds:
        raise _too_far(config.rounds, summary["rounds"], folder)
    if summary["rounds"] < config.rounds:
        return None
    if changed:
        raise InputError(
            f"--allow-changed={','.join(changed)}: the run in {folder} is finished, and what it found is not of these "
            f"settings; set rounds to more than {config.rounds} to go on with them, or name a new folder"
        )
    return summary


def _too_far(rounds: int, reached: int, folder: Path) -> InputError:
    return InputError(
        f"rounds = {rounds}, but the run in {folder} is at round {reached}; set rounds to at least that, or name a new "
        "folder"
    )


def _opened(
    saved: Saved | None, config: Config, identity: dict[str, str], folder: Path, allowed: Sequence[str]
) -> Ledger:
    """The books of a checkpoint, or new ones.

    Raises:
      InputError: the checkpoint is of another run, or further than this one is to go.
    """
    if saved is None:
        return Ledger()
    was = saved.record
    digests = {name: (was["identity"].get(name), digest) for name, digest in identity.items()}
    workdir.check_same(was["config"], configuration.to_dict(config), digests, allowed, was.version)
    if saved.round > config.rounds:
        raise _too_far(config.rounds, saved.round, folder)
    return Ledger.of(was["ledger"])


def _write_start(
    config: Config,
    folder: Path,
    identity: dict[str, str],
    federation: Federation,
    prompts: Prompts,
    ledger: Ledger,
) -> None:
    """What a run's folder holds from the first round on."""
    formats.write(folder / "config.json", configuration.to_dict(config))
    formats.write(folder / "identity.json", identity)
    keep(prompts, folder)
    if distributed.first():
        federation.clients.save(folder / "partition.npz")
        for name in ("summary.json", PREDICTIONS, EVIDENCE):  # of fewer rounds
            (folder / name).unlink(missing_ok=True)
    ledger.write_lines(folder)


def _take_back_start(folder: Path) -> None:
    """Leaves nothing of a run that has no sound round, so that it may be tried again in the same place."""
    if distributed.first():
        # What says that there is a run goes last: cut off before, this is gone on with.
        for name in (KEPT, "partition.npz", TRAINING, METRICS, "identity.json", "config.json"):
            (folder / name).unlink(missing_ok=True)


def brief(scores: dict[str, Any]) -> dict[str, Any]:
    """What a line of `metrics.jsonl` keeps of the scores."""
    chosen = {"global": ("accuracy", "macro_f1", "ece"), "personalised": ("mean", "std", "worst_decile", "best")}
    brief = {part: {name: scores[part][name] for name in names} for part, names in chosen.items()}
    brief["scored"] = scores["scored"]
    if participants := scores.get("participants"):
        spread = {name: participants[name] for name in chosen["personalised"]}
        brief["participants"] = {"clients": len(participants["clients"]), **spread}
    return brief
