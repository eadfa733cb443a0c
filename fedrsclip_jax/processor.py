"""The kind of this machine's processor, for which programs are compiled.

Programs lie in a folder for each kind: those of one may use instructions that another does not have, and a cache in a
home folder is seen by all hosts of a cluster.
"""

import hashlib
import platform
import re
from contextlib import suppress
from pathlib import Path

from fedrsclip_jax.data.features import default_cache_dir

PROGRAMS = "xla"
_CPU = Path("/proc/cpuinfo")
# Of the flags that Linux tells of a processor, those of instructions that a compiler chooses from.
_INSTRUCTIONS = ("sse", "ssse", "avx", "amx", "fma", "bmi", "f16c", "asimd", "sve", "bf16", "fphp")


def processor() -> str:
    """A name for the kind of this machine's processor: its model, and a digest of the instructions that it has."""
    model = instructions = ""
    with suppress(OSError):
        told: dict[str, str] = {}
        for line in _CPU.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            told.setdefault(name.strip().lower(), value.strip())
        model = told.get("model name") or told.get("cpu part", "")
        flags = told.get("flags") or told.get("features", "")
        instructions = " ".join(sorted(flag for flag in flags.split() if flag.startswith(_INSTRUCTIONS)))
    model = model or platform.processor() or "processor"
    slug = re.sub(r"[^a-z0-9]+", "_", f"{platform.machine()} {model}".lower()).strip("_")[:48]
    digest = hashlib.sha256(f"{platform.machine()}:{model}:{instructions}".encode()).hexdigest()[:8]
    return f"{slug}-{digest}"


def programs_dir() -> Path:
    """Where programs that this machine's processor can run are kept."""
    return default_cache_dir() / PROGRAMS / processor()
