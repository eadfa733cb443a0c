"""What each part of FedRSCLIP adds: one part more a row, on equal partitions, with zero-shot CLIP above them.

Rows: the shared prompt alone (PromptFL), the private one alone (local CoOp, nothing is sent), both, both with PACL,
with CMFAC, with both constraints (FedRSCLIP), and centralised (one client that has all images). On the drawn scenes
every row has the step size that suits it, chosen on validation images by the first command. Expected there on the
clients' own images, 10 seeds: zero-shot 50 %, PromptFL 55 %, local CoOp and all rows of two prompts 81 %; pooled, the
shared prompt alone: 49 % of two prompts without the constraints, 53 % with both.

    fedrsclip sweep --config=configs/ablation_rows.py:rates --workdir=runs/row_rates
    fedrsclip sweep --config=configs/ablation_rows.py --workdir=runs/rows
    fedrsclip sweep --config=configs/ablation_rows.py:aid --config.backbone=runs/aid_clip --workdir=runs/aid_rows
"""

from pathlib import Path

from ml_collections import ConfigDict

from fedrsclip_jax.config import load_file

RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # no winner stands at an end
# label, method, PACL's weight, CMFAC's weight, clients, the client's step size on scenes as `:rates` found it
ROWS = (
    ("shared only (PromptFL)", "promptfl", 0.0, 0.0, 10, 0.03),
    ("private only (local CoOp)", "local_coop", 0.0, 0.0, 10, 0.01),
    ("shared + private", "fedrsclip", 0.0, 0.0, 10, 0.01),
    ("shared + private + PACL", "fedrsclip", 0.1, 0.0, 10, 0.01),
    ("shared + private + CMFAC", "fedrsclip", 0.0, 0.5, 10, 0.01),
    ("shared + private + both (FedRSCLIP)", "fedrsclip", 0.1, 0.5, 10, 0.03),
    ("centralised (K = 1)", "fedrsclip", 0.1, 0.5, 1, 0.001),
)


def get_config(arg: str = "quickstart") -> ConfigDict:
    """`arg` names the configuration beside this one whose clients train, such as `aid`; or it is `rates`."""
    federation = "quickstart" if arg == "rates" else arg
    config = load_file(str(Path(__file__).with_name(f"{federation}.py")))
    config.eval.every = config.rounds

    labels, methods, pacl, cmfac, clients, rates = zip(*ROWS, strict=True)
    config.sweep = ConfigDict()
    config.sweep.seeds = 3 if arg == "rates" else 10 if federation == "quickstart" else 5
    config.sweep.labels = labels
    config.sweep.zip = ConfigDict()
    config.sweep.zip.method = ConfigDict({"name": methods, "pacl_weight": pacl, "cmfac_weight": cmfac})
    config.sweep.zip.partition = ConfigDict({"clients": clients})
    if arg == "rates":
        config.eval.split = "validation"
        config.sweep.grid = ConfigDict({"local": ConfigDict({"learning_rate": RATES})})
    elif federation == "quickstart":
        config.sweep.zip.local = ConfigDict({"learning_rate": rates})
    return config
