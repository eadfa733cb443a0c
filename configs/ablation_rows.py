"""What each part of FedRSCLIP adds: one part more a row, on equal partitions, with zero-shot CLIP above them.

Rows: the shared prompt alone (PromptFL), the private one alone (local CoOp, nothing is sent), both, both with PACL,
with CMFAC, with both constraints (FedRSCLIP), and centralised (one client that has all images).

    fedrsclip sweep --config=configs/ablation_rows.py --workdir=runs/rows
"""

from ml_collections import ConfigDict

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


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.backbone = "tiny"
    config.rounds = 50

    config.data = ConfigDict()
    config.data.source = "scenes"

    config.partition = ConfigDict()
    config.partition.kind = "dirichlet"
    config.partition.alpha = 0.1

    config.local = ConfigDict()
    config.local.learning_rate = 0.1

    config.eval = ConfigDict()
    config.eval.every = 50

    labels, methods, pacl, cmfac, clients = zip(*ROWS, strict=True)
    config.sweep = ConfigDict()
    config.sweep.seeds = 5
    config.sweep.labels = labels
    config.sweep.zip = ConfigDict()
    config.sweep.zip.method = ConfigDict({"name": methods, "pacl_weight": pacl, "cmfac_weight": cmfac})
    config.sweep.zip.partition = ConfigDict({"clients": clients})
    return config
