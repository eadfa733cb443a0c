"""How several processes find each other: what the environment says of them, and the wait until all are there.

Variables of the environment; without the first there is one process:
  FEDRSCLIP_PROCESSES    how many, or `auto`: as Slurm says, or else as JAX finds out (TPU pods, GKE, Open MPI)
  FEDRSCLIP_PROCESS      number of this one, from 0
  FEDRSCLIP_COORDINATOR  HOST:PORT of the first, with a port that is free there
  FEDRSCLIP_WAIT         seconds to wait for the others, by default 300
"""

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from fedrsclip_jax.errors import InputError

PROCESSES, PROCESS, COORDINATOR = "FEDRSCLIP_PROCESSES", "FEDRSCLIP_PROCESS", "FEDRSCLIP_COORDINATOR"
WAIT = "FEDRSCLIP_WAIT"

_SAY_EVERY = 30.0  # seconds between two lines that say who is waited for
_FAREWELL = 10  # seconds that a process waits for the others at its end, where it came out of step with them


def plan(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`, or None where one process is all there is.

    Raises:
      InputError: a variable is missing or makes no sense.
    """
    if alone(environment):
        return None
    written = environment[PROCESSES]
    if written == "auto":
        return _of_slurm(environment) if "SLURM_STEP_NODELIST" in environment else {}
    processes = _number(PROCESSES, written, 1, None)
    process = _number(PROCESS, environment.get(PROCESS, ""), 0, processes - 1)
    address = environment.get(COORDINATOR, "")
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise InputError(f"{COORDINATOR} = {address!r} is no HOST:PORT of the first process, such as node001:8476")
    found = _at(address, processes, process)
    if host in ("localhost", "127.0.0.1"):
        found["coordinator_bind_address"] = address  # or the service would listen to the network
    return found


def alone(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether there are no other processes: nobody has said so, or Slurm has started a single task."""
    written = environment.get(PROCESSES, "")
    return written in ("", "1") or (written == "auto" and environment.get("SLURM_STEP_NUM_TASKS") == "1")


def patience(environment: Mapping[str, str]) -> int:
    """Seconds to wait for the other processes.

    Raises:
      InputError: the variable is no number of seconds.
    """
    return _number(WAIT, environment.get(WAIT) or "300", 1, None)


def meet(arguments: Mapping[str, Any], seconds: int) -> None:
    """Initialises JAX with the other processes; says every half minute who is waited for.

    Ends this process with one line and exit code 1 where the others are not there after `seconds`, as JAX's own wait,
    which cannot be ended from Python, would abort it with a stack instead.

    Raises:
      ValueError, RuntimeError: as JAX says.
    """
    import jax

    if "coordinator_address" in arguments:
        with suppress(AttributeError):  # a version without that warning
            jax.config.update("jax_check_proxy_envs", False)  # `bypass_proxy` has done what it asks for
    failures: list[BaseException] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                **arguments, initialization_timeout=seconds + 60, shutdown_timeout_seconds=_FAREWELL
            )
        except BaseException as error:
            failures.append(error)

    address = arguments.get("coordinator_address", "")
    number = arguments.get("num_processes")
    who = f"{number} processes" + (f" at {address}" if address else "") if number else "the other processes"
    # A daemon, so that Ctrl-C ends the wait.
    waiting, began = threading.Thread(target=initialize, daemon=True), time.monotonic()
    waiting.start()
    while waiting.is_alive():
        left = began + seconds - time.monotonic()
        try:
            waiting.join(max(min(_SAY_EVERY, left), 0))
        except KeyboardInterrupt:
            _end("interrupted", 130)
        if not waiting.is_alive():
            break
        if time.monotonic() - began >= seconds:
            _end(f"{who} did not meet within {seconds} s; see which did not start, or set {WAIT} to more seconds", 1)
        # Of processes that have reached the first, that one speaks.
        if arguments.get("process_id") == 0 or not _answers(address):
            _say(f"waiting for {who}, {time.monotonic() - began:.0f} of {seconds} s ({WAIT})")
    if failures:
        raise failures[0]


def bypass_proxy(environment: MutableMapping[str, str], address: str) -> None:
    """Lets processes reach the first without a proxy, which would have them wait for each other in vain."""
    host = address.rpartition(":")[0]
    proxies = [name for name in environment if name.lower() in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")]
    if not (host and proxies):
        return
    for name in ("no_proxy", "NO_PROXY"):
        spared = [word for word in environment.get(name, "").split(",") if word]
        if host not in spared:
            environment[name] = ",".join([host, *spared])


def _at(address: str, processes: int, process: int) -> dict[str, Any]:
    return {
        "coordinator_address": address,
        "num_processes": processes,
        "process_id": process,
        "cluster_detection_method": "deactivate",
    }


def _of_slurm(environment: Mapping[str, str]) -> dict[str, Any]:
    """As Slurm says of the step that this process is a task of; the port follows from job and step."""
    # The first of `node001`, `node001,host2`, `node[001,007-015],host2` or `node[1-2]-ib`.
    first = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\]([^,\[]*))?", environment["SLURM_STEP_NODELIST"])
    host = "".join(part or "" for part in first.groups()) if first else ""
    job, step = (_number(name, environment.get(name, "0"), 0, None) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = 61440 + (16 * job + step) % 4096  # above those that Linux gives away by itself
    tasks = _number("SLURM_NTASKS", environment.get("SLURM_NTASKS", ""), 1, None)
    found = _at(f"{host}:{port}", tasks, _number("SLURM_PROCID", environment.get("SLURM_PROCID", ""), 0, tasks - 1))
    a_host = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")  # such as `1(x2)` or `2,1`
    if any(count != "1" for count in re.sub(r"\(x\d+\)", "", a_host).split(",")):
        found["local_device_ids"] = [_number("SLURM_LOCALID", environment.get("SLURM_LOCALID", "0"), 0, None)]
    return found


def _number(name: str, written: str, low: int, high: int | None) -> int:
    try:
        number = int(written)
    except ValueError:
        number = low - 1
    if number < low or (high is not None and number > high):
        among = f"a number from {low}" + (f" to {high}" if high is not None else "")
        raise InputError(f"{name} = {written!r} is not {among}")
    return number


def _answers(address: str) -> bool:
    """Whether somebody listens there."""
    host, _, port = address.rpartition(":")
    with suppress(OSError, ValueError), socket.create_connection((host, int(port)), timeout=2):
        return True
    return False


def _say(line: str) -> None:
    print(f"fedrsclip: {line}", file=sys.stderr, flush=True)


def _end(line: str, code: int) -> None:
    _say(line)
    os._exit(code)  # a thread is still in JAX's wait
