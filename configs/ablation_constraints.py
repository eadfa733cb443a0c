"""Do PACL and CMFAC help, and at which weight? Every pair of weights on the quickstart's federation, paired by seed.

Choices are made on validation images: `eval.split` says so, and the test images are not looked at.

Method: FedRSCLIP from its published description, equations ours. 16 settings x 5 seeds = 80 runs as a few programs.

    fedrsclip sweep --config=configs/ablation_constraints.py --workdir=runs/constraints
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.backbone = "tiny"
    config.rounds = 50

    config.data = ConfigDict()
    config.data.source = "scenes"

    config.partition = ConfigDict()
    config.partition.kind = "dirichlet"
    config.partition.clients = 10
    config.partition.alpha = 0.1

    config.local = ConfigDict()
    config.local.learning_rate = 0.1

    config.eval = ConfigDict()
    config.eval.every = 50
    config.eval.split = "validation"

    config.sweep = ConfigDict()
    config.sweep.seeds = 5
    config.sweep.grid = ConfigDict()
    config.sweep.grid.method = ConfigDict()
    config.sweep.grid.method.pacl_weight = (0.0, 0.1, 0.3, 1.0)
    config.sweep.grid.method.cmfac_weight = (0.0, 0.2, 0.5, 1.0)
    return config
