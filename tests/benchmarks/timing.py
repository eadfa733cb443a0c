"""What the benchmarks share: medians of calls measured in turns, the machine's ceiling, tables and a JSON line."""

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_SETTLE = 0.02  # seconds between calls: idle threads of one library spin for some milliseconds and slow the next


def seconds_each(calls: Mapping[str, Callable[[], Any]], repeats: int = 10, warmup: int = 2) -> dict[str, float]:
    """Median seconds of each call until its result is ready.

    The calls take turns, so that what else the machine does falls on all of them alike. What a call returns is waited
    for if it is a tree of JAX arrays; other libraries' calls wait themselves.
    """
    for call in calls.values():
        for _ in range(warmup):
            jax.block_until_ready(call())
    taken = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            time.sleep(_SETTLE)
            began = time.perf_counter()
            jax.block_until_ready(call())
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


def seconds(call: Callable[[], Any], repeats: int = 10, warmup: int = 2) -> float:
    """Median seconds of one call; see `seconds_each`."""
    return seconds_each({"call": call}, repeats, warmup)["call"]


class Products(NamedTuple):
    """Some large matrix products in a row: what to call, and the floating-point operations of a call."""

    call: Callable[[], Any]
    flops: float


def large_products(dtype: str = "float32") -> dict[str, Products]:
    """Matrix products among which one is as fast as this machine gets, by name; through JAX on its first device."""
    on_cpu = jax.default_backend() == "cpu"
    sizes = ((2048, 2048, 2048), (1024, 512, 2048)) if on_cpu else ((8192, 8192, 8192), (16384, 4096, 4096))
    made = {}
    product = jax.jit(jnp.matmul)
    for rows, inner, columns in sizes:
        keys = jax.random.split(jax.random.key(0))
        a = jax.random.normal(keys[0], (rows, inner), dtype)
        b = jax.random.normal(keys[1], (inner, columns), dtype)
        flops = 2.0 * rows * inner * columns
        times = max(1, int((3e10 if on_cpu else 1e13) / flops))
        made[f"product {rows} x {inner} x {columns}"] = Products(partial(_repeat, product, a, b, times), times * flops)
    return made


def _repeat(product: Callable, a: jax.Array, b: jax.Array, times: int) -> list[jax.Array]:
    return [product(a, b) for _ in range(times)]


def ceiling(products: Mapping[str, Products], taken: Mapping[str, float]) -> float:
    """FLOP/s of the fastest, given the seconds of each; measure them in turns with what is held against them."""
    return max(made.flops / taken[name] for name, made in products.items())


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(*packages: str) -> str:
    """One line: date, hardware, load before the run, versions of Python, JAX and `packages`."""
    device = jax.devices()[0]
    kind = _processor() if device.platform == "cpu" else device.device_kind
    parts = [f"{datetime.date.today()}", f"{kind}, {cores()} cores", f"load {os.getloadavg()[0]:.1f}"]
    parts.append(f"Python {platform.python_version()}")
    parts += [f"{name} {importlib.metadata.version(name)}" for name in ("jax", *packages)]
    return "; ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A markdown table; floats to three digits."""

    def cell(value: object) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    lines = [[cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
    print(f"\n{title}\n", flush=True)
    for line in (columns, ["-" * width for width in widths], *lines):
        print("| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |")


def print_record(name: str, **values: object) -> None:
    """The benchmark's last line: one JSON object; floats to four digits."""
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}
    print("\n" + json.dumps({"benchmark": name, **rounded}), flush=True)
