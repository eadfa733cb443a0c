"""Time that goes into compiling, kept apart from time that goes into running."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

_total = 0.0  # one a process, as JAX's listeners are


def _listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
    """JAX reports tracing, lowering and compiling of every program it builds."""
    global _total
    if event.startswith("/jax/core/compile/"):
        _total += duration_secs


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextmanager
def measure(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Adds the body's seconds to `phase`; what JAX spends on building programs goes to `compile`."""
    began, before = time.perf_counter(), _total
    yield
    compiling = min(_total - before, time.perf_counter() - began)
    seconds["compile"] += compiling
    seconds[phase] += time.perf_counter() - began - compiling


def keep_on_disk() -> None:
    """Keeps compiled programs between processes: where JAX_COMPILATION_CACHE_DIR says, or beside the feature cache.

    There each kind of processor has a folder of its own; see `processor`.
    """
    from fedrsclip_jax.processor import programs_dir

    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):  # JAX has read it already
        return
    jax.config.update("jax_compilation_cache_dir", str(programs_dir()))
