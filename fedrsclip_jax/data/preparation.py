"""Data sets of TensorFlow Datasets made ready to be read without TensorFlow: downloaded, checked, as array_record."""

import contextlib
import importlib.util
import io
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from fedrsclip_jax.data.published import published
from fedrsclip_jax.data.tfds import find_builder, manual_folder
from fedrsclip_jax.errors import InputError, install

_ANSWER_SECONDS = 20


def prepare(name: str, data_dir: str | Path | None = None, *, quiet: bool = False) -> None:
    """Prepares a set as TFDS spells it, unless it is prepared already.

    Needs TensorFlow, and in TFDS's folder for manual downloads what no program can download.

    Args:
      data_dir: where to; by default TFDS's own folder.
      quiet: no progress on standard error.

    Raises:
      InputError: the set is unknown, has to be downloaded by hand, does not come or is not what was published, or
        TensorFlow is not installed.
    """
    if find_builder(name, data_dir).info.splits:
        return
    builder = find_builder(name, data_dir, file_format="array_record")
    manual = manual_folder(builder)
    _check_downloads(name, manual)
    # TFDS needs the second one too, and says so for old versions of Python only.
    for package in ("tensorflow", "importlib_resources"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"preparing tfds:{name} needs {package}; {install('tfds')}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    import tensorflow_datasets as tfds

    if quiet:
        tfds.disable_progress_bar()
    settings = tfds.download.DownloadConfig(manual_dir=str(manual), try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(io.StringIO() if quiet else sys.stderr):
            builder.download_and_prepare(download_config=settings)
    except InputError:
        raise
    except Exception as error:  # of the network, the disk, the unpacker or the code of the set's author
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        remedy = known.instructions(manual) if (known := published(name)) else "see the page of the set in TFDS"
        raise InputError(f"tfds:{name} cannot be prepared ({first.rstrip(':')}); {remedy}") from error


def _check_downloads(name: str, manual: Path) -> None:
    """Refuses at once what TFDS would find out after minutes of trying, or after loading TensorFlow."""
    known = published(name)
    if known is None:
        return
    if name.partition(":")[0] == "optimal31":
        from fedrsclip_jax.data.optimal31 import class_folders

        class_folders(manual)
    elif known.unpacked:
        if not any((manual / known.unpacked).glob("*/*.jpg")):
            raise InputError(f"tfds:{name} is not in {manual}; {known.instructions(manual)}")
    elif not (manual / known.file).exists():
        try:
            request = urllib.request.Request(known.page, method="HEAD")
            urllib.request.urlopen(request, timeout=_ANSWER_SECONDS).close()
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise InputError(
                f"tfds:{name} cannot be downloaded ({reason}); {known.instructions(manual)}, or try again later"
            ) from error
