"""What PACL compares and how CMFAC ties text to images: other forms of both constraints, chosen on validation images.

PACL between the two prompts' text features (as defined) or between the prompts' numbers, whose mean square is small, so
that its weights are large; CMFAC as a cosine (as defined) or contrastive over the batch. The first row has neither.
Expected on the drawn scenes: 75 to 77 % in every row, so that no form helps.

    fedrsclip sweep --config=configs/ablation_switches.py --workdir=runs/switches
"""

from pathlib import Path

from ml_collections import ConfigDict

from fedrsclip_jax.config import load_file

# label, what PACL compares, its weight, CMFAC's form, its weight
ROWS = (
    ("shared + private", "features", 0.0, "cosine", 0.0),
    ("PACL of features at 0.1", "features", 0.1, "cosine", 0.0),
    ("PACL of tokens at 1", "tokens", 1.0, "cosine", 0.0),
    ("PACL of tokens at 10", "tokens", 10.0, "cosine", 0.0),
    ("CMFAC as cosine at 0.5", "features", 0.0, "cosine", 0.5),
    ("contrastive CMFAC at 0.1", "features", 0.0, "contrastive", 0.1),
    ("contrastive CMFAC at 0.5", "features", 0.0, "contrastive", 0.5),
)


def get_config(federation: str = "quickstart") -> ConfigDict:
    """`federation` names the configuration beside this one whose clients train, such as `aid`."""
    config = load_file(str(Path(__file__).with_name(f"{federation}.py")))
    config.eval.every = config.rounds
    config.eval.split = "validation"
    if federation == "quickstart":
        config.local.learning_rate = 0.03  # FedRSCLIP's, as configs/ablation_rows.py:rates found it

    labels, pacl, pacl_weights, cmfac, cmfac_weights = zip(*ROWS, strict=True)
    config.sweep = ConfigDict()
    config.sweep.seeds = 5
    config.sweep.labels = labels
    config.sweep.zip = ConfigDict()
    config.sweep.zip.method = ConfigDict(
        {"pacl": pacl, "pacl_weight": pacl_weights, "cmfac": cmfac, "cmfac_weight": cmfac_weights}
    )
    return config
