"""What setup.cfg cannot say: where the configurations go, and a README that holds on an index page."""

import re
from pathlib import Path

from setuptools import find_packages, setup


def index_page(readme: str) -> str:
    """The README without what leads to files of the repository: such links are their text, such pictures are left out.

    Comments, which say how a block of commands is tested, are left out as well.
    """
    readme = re.sub(r"<!--.*?-->\n?", "", readme, flags=re.DOTALL)
    readme = re.sub(r"!\[[^]]*\]\((?!https?://)[^)]*\)\n*", "", readme)
    return re.sub(r"(?<!!)\[([^]]*)\]\((?!https?://)[^)]*\)", r"\1", readme)


setup(
    # `configs` stands at the top of the repository, to be read and copied, and inside the package once installed.
    packages=[*find_packages(include=["fedrsclip_jax*"]), "fedrsclip_jax.configs"],
    package_dir={"fedrsclip_jax.configs": "configs"},
    long_description=index_page((Path(__file__).parent / "README.md").read_text(encoding="utf-8")),
)
