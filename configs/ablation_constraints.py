"""Do PACL and CMFAC help, and at which weight? Every pair of weights, paired by seed.

Choices are made on validation images: `eval.split` says so, and the test images are not looked at. Expected on the
drawn scenes: 77 % of the clients' own images with both weights at zero, all rows with PACL up to 0.1 within 1.2 points
of that, and 2 to 5 points less with PACL at 1.

Method: FedRSCLIP from its published description, equations ours. 16 settings x 5 seeds = 80 runs as a few programs.

    fedrsclip sweep --config=configs/ablation_constraints.py --workdir=runs/constraints
    fedrsclip sweep --config=configs/ablation_constraints.py:aid --config.backbone=runs/aid_clip --workdir=runs/aid_grid
"""

from pathlib import Path

from ml_collections import ConfigDict

from fedrsclip_jax.config import load_file


def get_config(federation: str = "quickstart") -> ConfigDict:
    """`federation` names the configuration beside this one whose clients train, such as `aid`."""
    config = load_file(str(Path(__file__).with_name(f"{federation}.py")))
    config.eval.every = config.rounds
    config.eval.split = "validation"
    if federation == "quickstart":
        config.local.learning_rate = 0.03  # FedRSCLIP's, as configs/ablation_rows.py:rates found it

    config.sweep = ConfigDict()
    config.sweep.seeds = 5
    config.sweep.grid = ConfigDict()
    config.sweep.grid.method = ConfigDict()
    config.sweep.grid.method.pacl_weight = (0.0, 0.1, 0.3, 1.0)
    config.sweep.grid.method.cmfac_weight = (0.0, 0.2, 0.5, 1.0)
    return config
