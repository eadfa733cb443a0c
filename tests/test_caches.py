"""What stays on disk between runs: where it lies, what is told of it, and what is deleted."""

import os
import time
from pathlib import Path

import jax
import pytest

from fedrsclip_jax import cli, compilation, processor
from fedrsclip_jax.caches import FEATURES, UNFINISHED, entries, trim
from fedrsclip_jax.data.features import lock_of
from fedrsclip_jax.lock import turn

DAY = 86_400.0
XEON = "processor : 0\nmodel name : Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz\nflags : fpu sse2 avx avx2 avx512f\n"


def used(path: Path, days: float) -> None:
    for file in (path, *path.rglob("*")):
        os.utime(file, (time.time() - days * DAY,) * 2)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Features of three ages, one of them unfinished; programs of this processor, of another, and of older versions."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FEDRSCLIP_CACHE", str(folder))
    for name, days in (("a" * 64, 1), ("b" * 64, 40), ("c" * 64 + ".partial", 50)):
        (folder / name).mkdir(parents=True)
        (folder / name / "features.npy").write_bytes(bytes(8192))
        used(folder / name, days)
    (folder / f"{'a' * 64}.lock").touch()
    used(folder / f"{'a' * 64}.lock", 1)
    for name, days in ((processor.processor(), 2), ("amd-0123abcd", 60)):
        (folder / "xla" / name).mkdir(parents=True)
        (folder / "xla" / name / "jit_f-cache").write_bytes(bytes(4096))
        used(folder / "xla" / name, days)
    (folder / "xla" / "jit_f-cache").write_bytes(bytes(4096))
    (folder / "mine.txt").write_text("not ours")
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_there_by_kind_and_age(cache):
    found = entries(cache)
    assert {entry.group for entry in found} == {
        FEATURES,
        UNFINISHED,
        f"programs of {processor.processor()}",
        "programs of amd-0123abcd",
        "programs of older versions, of any processor",
    }
    ages = [round((time.time() - entry.used) / DAY) for entry in found]
    assert ages == [60, 50, 40, 2, 1, 0]
    assert sum(entry.bytes for entry in found) >= 3 * 8192 + 3 * 4096
    assert entries(cache / "nowhere") == []


def test_what_is_not_used_for_long_is_deleted(cache):
    gone = trim(cache)
    mine = f"xla/{processor.processor()}/jit_f-cache"
    assert names(cache) == {f"{'a' * 64}/features.npy", mine, "mine.txt"}
    assert len(gone) == 4, "three are old, and one is read by no version any more"
    assert not (cache / "xla" / "amd-0123abcd").exists()
    assert trim(cache) == []
    assert [entry.path.name for entry in trim(cache, most=8192)] == ["jit_f-cache"], "the longest unused first"
    trim(cache, days=0)
    assert names(cache) == {"mine.txt"}


def test_features_that_are_being_encoded_stay(cache):
    partial = cache / f"{'c' * 64}.partial"
    with turn(lock_of(partial.with_suffix("")), None) as ours:
        assert ours
        trim(cache, days=0)
        assert partial.is_dir()
    trim(cache, days=0)
    assert not partial.exists()


def test_the_verb_shows_and_trims(cache, capsys):
    assert cli.main(["cache"]) == 0
    out = capsys.readouterr().out
    assert f"programs of {processor.processor()} (this one)" in out
    assert "60 days ago" in out
    assert len(names(cache)) == 8
    assert cli.main(["cache", "--trim"]) == 0
    assert "deleted 4 entries of 0.0 MiB" in capsys.readouterr().out
    assert len(names(cache)) == 3
    for words, said in (
        (["--days=3"], "--days=3 says what to delete; add --trim"),
        (["--trim", "--days=-1"], "--days=-1 is out of range"),
        (["--trim", "--most=nan"], "--most=nan is out of range"),
        (["--config.rounds=3"], "--config.rounds"),
    ):
        assert cli.main(["cache", *words]) == 2
        assert said in capsys.readouterr().err


def test_another_processor_has_another_folder(monkeypatch, tmp_path):
    def named(told: str) -> str:
        (tmp_path / "cpuinfo").write_text(told)
        return processor.processor()

    monkeypatch.setattr(processor, "_CPU", tmp_path / "cpuinfo")
    own = named(XEON)
    assert "intel_r_xeon_r_gold_6230" in own
    assert own == named(XEON.replace("fpu sse2", "sse2 md_clear fpu")), "kernels name other flags, in other orders"
    others = [XEON.replace("6230", "6330"), XEON.replace(" avx512f", "")]
    assert len({own, *map(named, others)}) == 3, "model and instructions count"
    assert named("") != own

    monkeypatch.setenv("FEDRSCLIP_CACHE", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir
    try:
        named(XEON)
        compilation.keep_on_disk()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xla" / own)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
