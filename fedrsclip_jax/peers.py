"""Who of several processes has died, said in one line before JAX notices and aborts with a stack.

Every process keeps a connection to the first, over which nothing goes but a farewell. The system closes a connection
when a process ends, however it ends: one that closes without farewell is a death. The first then tells the others; of
its own death the second tells. Whoever learns of a death ends, as no collective can end any more.
"""

import atexit
import os
import platform
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

_BYE, _ERROR, _DEAD = b"bye\n", b"error\n", b"dead\n"
_GRACE = 5.0  # seconds that the first has to finish a checkpoint that it is writing
_PATIENCE = 10.0  # seconds that who connects has to say who it is; a stranger, such as a scan of ports, says nothing
_NOTICE = 2.0  # seconds within which a death is noticed here, where a collective has failed of it

_checkpoints: Path | None = None
_death, _telling = threading.Event(), threading.Lock()


def remember(checkpoints: Path) -> None:
    """Says where the checkpoints of the present run are, of which the line of a death tells the newest."""
    global _checkpoints
    _checkpoints = checkpoints


def watch(me: int, others: int, host: str, exchange: Callable[[Any], list[Any]]) -> None:
    """Watches the other processes from now on, in a thread; all have to ask.

    Where no connection can be made, as firewalls may have it, nobody is watched.

    Args:
      me: number of this process.
      others: how many there are beside it.
      host: name of the first one's host, as all know it.
      exchange: see `distributed.exchange`.
    """
    listener, secret = None, secrets.token_hex(16)
    if me == 0:
        with suppress(OSError):
            listener = socket.create_server((host, 0))
    port, secret = exchange([listener and listener.getsockname()[1], secret])[0]
    if port is None:
        return
    if listener is not None:
        _Watch(listener, others, secret)
        return
    try:
        first = socket.create_connection((host, port), timeout=10)
        first.settimeout(None)
        first.sendall(f"{secret} {me} {platform.node()}\n".encode())
    except OSError:
        return
    atexit.register(_farewell, [first])
    threading.Thread(target=_follow, args=(first, me), daemon=True).start()


def mourn() -> None:
    """Where a collective has failed of a death, ends this process as that is noticed; else returns soon."""
    if _death.wait(_NOTICE):
        time.sleep(2 * _GRACE)  # the thread that noticed it ends the process


class _Watch:
    """The first process's connections to all others."""

    def __init__(self, listener: socket.socket, others: int, secret: str):
        self._listener, self._others, self._secret = listener, others, secret
        self._peers: list[socket.socket] = []
        atexit.register(_farewell, self._peers)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with self._listener:
            while len(self._peers) < self._others:
                peer, _ = self._listener.accept()
                peer.settimeout(_PATIENCE)
                secret, _, who = _line(peer).decode(errors="replace").partition(" ")
                if secrets.compare_digest(secret.encode(), self._secret.encode()):
                    peer.settimeout(None)
                    self._peers.append(peer)
                    threading.Thread(target=self._attend, args=(peer, who.strip()), daemon=True).start()
                else:
                    peer.close()

    def _attend(self, peer: socket.socket, who: str) -> None:
        said = _line(peer)
        if said == _BYE:
            return
        number, _, host = who.partition(" ")
        with _telling:
            if not _death.is_set():  # else this one ended because of the first death
                _tell(f"process {number} (on {host}) {_fate(said)}")
        for other in self._peers:
            with suppress(OSError):
                other.sendall(_DEAD)
        time.sleep(_GRACE)
        _end()


def _follow(first: socket.socket, me: int) -> None:
    """Waits for the first process's death, or what it has to tell."""
    said = _line(first)
    if said == _BYE:
        return
    if said != _DEAD and me == 1:
        _tell(f"process 0 {_fate(said)}")
    _death.set()
    _end()


def _fate(said: bytes) -> str:
    return "ended with an error, which stands in its output" if said == _ERROR else "died"


def _tell(what: str) -> None:
    rounds: list[int] = []
    if _checkpoints is not None:
        with suppress(OSError):
            rounds = [int(path.name) for path in _checkpoints.iterdir() if path.name.isdecimal()]
    after = f"goes on after round {max(rounds)}" if rounds else "starts anew, as no checkpoint was saved yet"
    _death.set()
    print(f"fedrsclip: {what}; the same command {after}", file=sys.stderr, flush=True)


def _farewell(peers: Iterable[socket.socket]) -> None:
    """At the end of the interpreter; after an unhandled error the others cannot go on either."""
    for peer in peers:
        with suppress(OSError):
            peer.sendall(_ERROR if hasattr(sys, "last_value") else _BYE)
            peer.shutdown(socket.SHUT_WR)


def _end() -> NoReturn:
    with suppress(ValueError, OSError):
        sys.stdout.flush()
    os._exit(1)  # the interpreter's own end would wait for the dead


def _line(peer: socket.socket) -> bytes:
    """Up to the end of a line, or of the connection."""
    read = b""
    with suppress(OSError):
        while not read.endswith(b"\n") and len(read) < 1024 and (more := peer.recv(1)):
            read += more
    return read
