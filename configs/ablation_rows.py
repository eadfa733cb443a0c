"""What each part of FedRSCLIP adds: one part more a row, on equal partitions, with zero-shot CLIP above them.

Rows: the shared prompt alone (PromptFL), the private one alone (local CoOp, nothing is sent), both, both with PACL,
with CMFAC, with both constraints (FedRSCLIP), and centralised (one client that has all images).

    fedrsclip sweep --config=configs/ablation_rows.py --workdir=runs/rows
    fedrsclip sweep --config=configs/ablation_rows.py:aid --config.backbone=runs/aid_clip --workdir=runs/aid_rows
"""

from pathlib import Path

from ml_collections import ConfigDict

from fedrsclip_jax.config import load_file

# label, method, PACL's weight, CMFAC's weight, clients
ROWS = (
    ("shared only (PromptFL)", "promptfl", 0.0, 0.0, 10),
    ("private only (local CoOp)", "local_coop", 0.0, 0.0, 10),
    ("shared + private", "fedrsclip", 0.0, 0.0, 10),
    ("shared + private + PACL", "fedrsclip", 0.1, 0.0, 10),
    ("shared + private + CMFAC", "fedrsclip", 0.0, 0.5, 10),
    ("shared + private + both (FedRSCLIP)", "fedrsclip", 0.1, 0.5, 10),
    ("centralised (K = 1)", "fedrsclip", 0.1, 0.5, 1),
)


def get_config(federation: str = "quickstart") -> ConfigDict:
    """`federation` names the configuration beside this one whose clients train, such as `aid`."""
    config = load_file(str(Path(__file__).with_name(f"{federation}.py")))
    config.eval.every = config.rounds

    labels, methods, pacl, cmfac, clients = zip(*ROWS, strict=True)
    config.sweep = ConfigDict()
    config.sweep.seeds = 5
    config.sweep.labels = labels
    config.sweep.zip = ConfigDict()
    config.sweep.zip.method = ConfigDict({"name": methods, "pacl_weight": pacl, "cmfac_weight": cmfac})
    config.sweep.zip.partition = ConfigDict({"clients": clients})
    return config
