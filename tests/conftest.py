"""What all tests share: eight virtual devices, strict arithmetic, shapes checked at run time, a tiny CLIP."""

import os
import sys
from collections import Counter
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

# The tests compile some five thousand programs and run most of them for an instant, so that compiling takes three times
# as long as everything else. They are compiled with few optimisations, those of processes that are started here too,
# and in tests marked `optimised` with more; with --nightly, or where FEDRSCLIP_TESTS_OPTIMISED says so, as for users.
if "--nightly" in sys.argv:
    os.environ["FEDRSCLIP_TESTS_OPTIMISED"] = "1"
if not os.environ.get("FEDRSCLIP_TESTS_OPTIMISED"):
    flags = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
    if version("jaxlib").startswith("0.10."):  # newer ones have no such flag, and end at a flag that they do not know
        flags += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Every compiled program is kept on disk, for all files and workers of the tests and all processes that they start, as
# most of the time would go into compiling the same small programs. They are kept by program, flags and versions.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).resolve().parents[1] / ".cache" / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# One thread a worker for PyTorch: workers share the cores, and idle threads of OpenMP wait by spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import jaxtyping
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Mixed types and silently added axes are how wrong arithmetic passes unnoticed.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Shapes in annotations are checked on every call in the tests, and cost users nothing. The hook has to be in
# place before the package is first imported, so the package is imported only inside fixtures here.
# (PEP 484's numeric tower: an int is welcome where a float is asked for.)
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
jaxtyping.install_import_hook("fedrsclip_jax", CHECKER)

TINY_CAPTIONS = (
    "an aerial photo of a dense forest in winter.",
    "a satellite photo of a storage tank beside a river.",
    "a hazy aerial image of a harbor with boats.",
    "a bright satellite image of a baseball diamond.",
)


def xla_flags(devices: int) -> str:
    """`XLA_FLAGS` of a process that is started here, with some devices; of two equal flags the last one counts."""
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"


def pytest_addoption(parser):
    parser.addoption("--nightly", action="store_true", help="run soak tests as well, which take minutes each")


def pytest_collection_modifyitems(config, items):
    # Files with the most long tests come first, so that no process is left with one of them at the end.
    of_file = Counter(item.path for item in items)
    long = Counter(item.path for item in items if item.get_closest_marker("long"))
    items.sort(
        key=lambda item: (
            -long[item.path],
            -of_file[item.path],
            item.path,
            item.get_closest_marker("optimised") is not None,  # together, as programs are compiled anew for them
        )
    )
    if not config.getoption("--nightly"):
        soak = pytest.mark.skip(reason="a soak test, which --nightly runs")
        for item in items:
            if item.get_closest_marker("nightly"):
                item.add_marker(soak)


def pytest_runtest_setup(item):
    """Before any fixture: how programs of this test, and of processes that it starts, are compiled."""
    fast = not os.environ.get("FEDRSCLIP_TESTS_OPTIMISED") and item.get_closest_marker("optimised") is None
    if jax.config.read("jax_disable_most_optimizations") != fast:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", fast)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(fast))


@pytest.fixture(scope="session", autouse=True)
def feature_cache(tmp_path_factory):
    """The feature cache of all tests, and of processes that they start: a fresh folder."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDRSCLIP_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module", autouse=True)
def programs_end_with_their_file():
    """Compiled programs are dropped after each file: each maps memory, and Linux allows a process 65,530 maps."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A folder in Hugging Face layout: a CLIP of random weights, a tokenizer fitted to a few captions, settings.

    Width 32, 2 layers of 4 heads, 16 joint channels, 77 positions, pictures of 32 pixels in patches of 8. Nothing in it
    is left at an initial zero or one, so that a bias or a layer normalisation cannot be forgotten unnoticed.
    For reading only: a test that changes files copies it first.
    """
    from flax import nnx

    from fedrsclip_jax.clip.huggingface import save_clip
    from fedrsclip_jax.clip.model import CLIP, CLIPConfig
    from fedrsclip_jax.clip.preprocess import save_preprocess
    from fedrsclip_jax.clip.transformer import TowerConfig
    from fedrsclip_jax.config import TowersConfig
    from fedrsclip_jax.pretrain import fit_tokenizer

    folder = tmp_path_factory.mktemp("backbone") / "tiny_random_clip"
    fitted = fit_tokenizer(TINY_CAPTIONS, TowersConfig(vocabulary=320, positions=77))
    tower = TowerConfig(width=32, layers=2, heads=4, mlp_width=64)
    config = CLIPConfig(
        text=tower,
        vision=tower,
        embed=16,
        vocabulary=len(fitted),
        positions=77,
        image_size=32,
        patch_size=8,
        sos_id=fitted.bos_token_id,
        eos_id=fitted.eos_token_id,
    )
    graph, weights = nnx.split(CLIP(config, rngs=nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(weights)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    save_clip(nnx.merge(graph, jax.tree.unflatten(tree, leaves)), config, folder)
    fitted.save_pretrained(folder)
    save_preprocess(folder, config.image_size)
    return folder


@pytest.fixture(scope="session")
def clip_tokenizer_folder() -> Path:
    """OpenAI's tokenizer; not part of the repository, so a clone without it skips."""
    folder = REPOSITORY.parent / "shared" / "clip-tokenizer"
    if not folder.is_dir():
        pytest.skip("OpenAI's tokenizer is not in ../shared/clip-tokenizer")
    return folder


@pytest.fixture(scope="session")
def refused():
    """A context in which an InputError is due, of one line that holds all of the given words."""
    from fedrsclip_jax.errors import InputError

    @contextmanager
    def context(*words: object):
        with pytest.raises(InputError) as caught:
            yield
        message = str(caught.value)
        assert len(message.splitlines()) == 1, message
        missing = [word for word in words if str(word) not in message]
        assert not missing, f"{message!r} does not say {missing}"

    return context
