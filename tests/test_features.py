"""The feature cache: computed once, resumed, published whole, and the same whoever asks."""

import errno
import json
import logging
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from fedrsclip_jax.data.features import augment, default_cache_dir, encode
from fedrsclip_jax.errors import InputError

KEY = {"weights": "abc", "preprocess": "64 px"}
PICTURES = np.random.default_rng(0).integers(0, 256, (23, 20, 24, 3), dtype=np.uint8)


class Source:
    """Random pictures; those in `bad` cannot be read."""

    def __init__(self, count: int = 23, bad: tuple[int, ...] = ()):
        self.class_names, self.domain_names = ("a", "b"), ("all",)
        self.labels = (np.arange(count) % 2).astype(np.int32)
        self.domains = np.zeros(count, np.int32)
        self.digests = [f"{i:04x}" for i in range(count)]
        self.bad = bad

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int) -> np.ndarray:
        if i in self.bad:
            raise InputError(f"cannot read image {self.name(i)}; --config.data.skip_unreadable=True")
        return PICTURES[i]

    def name(self, i: int) -> str:
        return f"picture_{i}.jpg"


class Encoder:
    """Means of the channels and of the upper left corner; counts pictures, and stops after some batches."""

    def __init__(self, stop_after: int | None = None):
        self.batches: list[int] = []
        self.stop_after = stop_after

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        if len(self.batches) == self.stop_after:
            raise KeyboardInterrupt
        self.batches.append(len(pictures))
        return np.stack([[*p.mean((0, 1)), p[:5, :5].mean(), 1.0] for p in pictures]).astype(np.float32)


def run(cache: Path, encoder=None, source=None, **options):
    defaults = {"key": KEY, "views": 1, "seed": 0, "batch_size": 4}
    source = Source() if source is None else source
    return encode(source, encoder or Encoder(), cache_dir=cache, **(defaults | options))


def entries(cache: Path) -> list[Path]:
    return sorted(p for p in cache.iterdir() if p.is_dir())


def refusal(*needles: str):
    """An InputError of one line that names each of these."""
    return pytest.raises(InputError, check=lambda e: "\n" not in str(e) and all(n in str(e) for n in needles))


def test_encoded_once_then_read_memory_mapped(tmp_path):
    encoder, seen = Encoder(), []
    first = run(tmp_path, encoder, progress=lambda done, total: seen.append((done, total)))
    assert encoder.batches == [4, 4, 4, 4, 4, 3]
    assert seen[-1] == (23, 23)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert np.array_equal(first.plain, Encoder()(list(PICTURES)))
    assert first.plain.dtype == np.float32
    assert first.readable.all()
    (entry,) = entries(tmp_path)
    assert sorted(os.listdir(entry)) == ["features.npy", "key.json", "readable.npy"]
    encoder, reports = Encoder(), len(seen)
    again = run(tmp_path, encoder, progress=lambda done, total: seen.append((done, total)))
    assert encoder.batches == []
    assert len(seen) == reports, "what is in the cache is no work"
    assert isinstance(again.plain, np.memmap)
    assert not again.plain.flags.writeable
    assert np.array_equal(again.plain, first.plain)
    assert len(again.views) == 1
    assert again.views[0] is again.plain


def test_every_part_of_the_key_counts_and_nothing_else(tmp_path):
    run(tmp_path)
    changed = [{"key": KEY | {"weights": "abd"}}, {"source": Source(22)}]
    for number, options in enumerate(changed, start=2):
        encoder = Encoder()
        run(tmp_path, encoder, **options)
        assert encoder.batches
        assert len(entries(tmp_path)) == number
    encoder, renamed = Encoder(), Source()
    renamed.class_names, renamed.labels = ("c",), np.zeros(23, np.int32)
    run(tmp_path, encoder, skip_unreadable=True, batch_size=7, seed=5)  # the plain view has no seed
    run(tmp_path, encoder, source=renamed)  # as another table of merged names makes it
    assert encoder.batches == []


def test_views_are_augmented_deterministic_and_cached_one_by_one(tmp_path):
    encoder, seen = Encoder(), []
    made = run(tmp_path / "a", encoder, views=3, progress=lambda done, total: seen.append((done, total)))
    assert len(made.views) == 3
    assert sum(encoder.batches) == 4 * 23  # plain, for testing, and three views
    assert seen[-1] == (92, 92)
    arrays = [made.plain, *made.views]
    for i in range(4):
        for j in range(i):
            assert (arrays[i] != arrays[j]).any(axis=1).all()  # no image is the same in two views
    more = []
    run(tmp_path / "a", Encoder(), views=4, progress=lambda done, total: more.append((done, total)))
    assert (more[0], more[-1]) == ((92, 115), (115, 115)), "the first three and the plain one were there"
    encoder = Encoder()
    fewer = run(tmp_path / "a", encoder, views=2)
    assert encoder.batches == []
    assert np.array_equal(fewer.views[1], made.views[1])
    elsewhere = run(tmp_path / "b", views=3, batch_size=9)
    assert all(np.array_equal(a, b) for a, b in zip(made.views, elsewhere.views, strict=True))
    other = run(tmp_path / "a", views=2, seed=1)
    assert not np.array_equal(other.views[0], made.views[0])


def test_augment_crops_and_flips():
    column, row = np.meshgrid(np.arange(24), np.arange(20))
    picture = np.stack([10 * column, 10 * row, 0 * row], axis=-1).astype(np.uint8)
    flips, extents = set(), []
    for i in range(60):
        crop = augment(picture, np.random.default_rng(i))
        assert (crop.shape, crop.dtype) == ((20, 20, 3), np.uint8)
        across, down = crop[..., 0].mean(axis=0), crop[..., 1].mean(axis=1)
        flips.add((across[0] > across[-1], down[0] > down[-1]))
        extents.append((np.ptp(across) / 230) * (np.ptp(down) / 190))
    assert len(flips) == 4
    assert 0.4 < min(extents) < 0.6  # half of the area at least, less a pixel at the borders
    assert max(extents) > 0.85
    assert augment(np.zeros((1, 3, 3), np.uint8), np.random.default_rng(0)).shape == (1, 1, 3)


@pytest.mark.parametrize("stop_after", [1, 5])  # before the first record of progress, and after it
def test_an_interrupted_encoding_resumes(tmp_path, stop_after):
    whole = run(tmp_path / "whole")
    encoder = Encoder(stop_after)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", encoder)
    assert [p.suffix for p in entries(tmp_path / "cut")] == [".partial"]
    encoder = Encoder()
    made = run(tmp_path / "cut", encoder)
    assert sum(encoder.batches) == 23 - 4 * stop_after
    assert np.array_equal(made.plain, whole.plain)
    assert [p.suffix for p in entries(tmp_path / "cut")] == [""]


def test_a_partial_folder_that_does_not_fit_is_thrown_away(tmp_path):
    whole = run(tmp_path / "whole")
    for name, damage in {"features.npy": b"", "progress.json": b"{", "readable.npy": b"\x93NUMPY"}.items():
        cache = tmp_path / name
        with pytest.raises(KeyboardInterrupt):
            run(cache, Encoder(2))
        (entries(cache)[0] / name).write_bytes(damage)
        encoder = Encoder()
        assert np.array_equal(run(cache, encoder).plain, whole.plain)
        assert sum(encoder.batches) == 23


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def other_key(path: Path) -> None:
    record = json.loads(path.read_text())
    record["identity"]["key"]["weights"] = "other"
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("features.npy", shorten),
        ("features.npy", flip_last_byte),
        ("features.npy", Path.unlink),
        ("features.npy", lambda path: np.save(path, np.zeros((22, 5), np.float32))),
        ("readable.npy", flip_last_byte),
        ("key.json", other_key),
        ("key.json", shorten),
    ],
)
def test_a_damaged_entry_is_computed_anew_with_one_warning(tmp_path, caplog, name, damage):
    before = np.array(run(tmp_path).plain)
    damage(entries(tmp_path)[0] / name)
    encoder = Encoder()
    with caplog.at_level(logging.WARNING):
        again = run(tmp_path, encoder)
    assert sum(encoder.batches) == 23
    assert np.array_equal(again.plain, before)
    (record,) = caplog.records
    assert "damaged" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_an_unreadable_image_is_named_and_nothing_published(tmp_path):
    with refusal("picture_13.jpg", "--config.data.skip_unreadable=True"):
        run(tmp_path, source=Source(bad=(13,)))
    assert [p.suffix for p in entries(tmp_path)] == [".partial"]
    encoder = Encoder()
    made = run(tmp_path, encoder, Source(bad=(13,)), skip_unreadable=True)
    assert encoder.batches == [4, 4, 3]  # the 12 before it are not encoded twice; batches keep their size
    assert np.flatnonzero(~made.readable).tolist() == [13]
    assert not made.plain[13].any()
    assert made.plain[12].any()


def test_an_unreadable_image_in_the_cache_is_still_refused(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run(tmp_path, source=Source(bad=(2, 13)), skip_unreadable=True, views=2)
    assert sum("picture_13.jpg" in record.getMessage() for record in caplog.records) == 3  # once a view
    encoder = Encoder()
    with refusal("picture_2.jpg", "--config.data.skip_unreadable=True"):
        run(tmp_path, encoder, Source(bad=(2, 13)))
    assert encoder.batches == []
    assert len(entries(tmp_path)) == 3


def test_refused(tmp_path):
    with refusal("data.views=0"):
        run(tmp_path, views=0)
    with refusal("no images"):
        run(tmp_path, source=Source(0))
    (tmp_path / "file").write_text("x")
    with refusal(str(tmp_path / "file"), "FEDRSCLIP_CACHE"):
        run(tmp_path / "file" / "cache")
    with pytest.raises(ValueError, match="2-D"):
        run(tmp_path, lambda pictures: np.zeros(len(pictures)))
    with pytest.raises(ValueError, match="images 0 to 3 are not finite"):
        run(tmp_path, lambda pictures: np.full((len(pictures), 5), np.nan))
    assert not [p for p in entries(tmp_path) if p.suffix != ".partial"]


@pytest.fixture(params=["flock", "no flock"])
def system(request, monkeypatch) -> None:
    """With the system's locks, and as on a file system that has none."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    if request.param == "no flock":
        monkeypatch.setattr("fcntl.flock", refuse)


def test_two_at_once_encode_once(tmp_path, system):
    """Two threads hold two locks of two open files, as two processes would."""
    encoder, made = Encoder(), []
    threads = [threading.Thread(target=lambda: made.append(run(tmp_path, encoder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(encoder.batches) == 23
    assert len(made) == 4
    assert all(np.array_equal(m.plain, made[0].plain) for m in made)
    assert not [*tmp_path.glob("*.lock")]


def _encode_and_die(cache: Path) -> None:
    class Dies(Encoder):
        def __call__(self, pictures):
            if len(self.batches) == 5:
                os._exit(9)  # no chance to record anything, nor to give the lock back
            return super().__call__(pictures)

    run(cache, Dies())


def test_the_work_of_a_dead_process_is_taken_over(tmp_path, system):
    process = multiprocessing.get_context("spawn").Process(target=_encode_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    encoder = Encoder()
    made = run(tmp_path, encoder)
    assert sum(encoder.batches) == 23 - 16  # it had recorded four batches of its five
    assert np.array_equal(made.plain, Encoder()(list(PICTURES)))


def test_what_is_used_says_when(tmp_path):
    run(tmp_path)
    (key,) = tmp_path.glob("*/key.json")
    os.utime(key, (1e9, 1e9))
    run(tmp_path)
    assert key.stat().st_atime > 1.5e9
    assert key.stat().st_mtime == 1e9, "it is not written anew"


def test_default_cache_dir(monkeypatch):
    monkeypatch.setenv("FEDRSCLIP_CACHE", "~/elsewhere")
    assert default_cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("FEDRSCLIP_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "fedrsclip"
