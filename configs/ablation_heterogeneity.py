"""How the lead over PromptFL and local CoOp depends on how uneven the clients are, and how many.

fedrsclip sweep --config=configs/ablation_heterogeneity.py --workdir=runs/heterogeneity
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

    config.local = ConfigDict()
    config.local.learning_rate = 0.1

    config.eval = ConfigDict()
    config.eval.every = 50

    config.sweep = ConfigDict()
    config.sweep.seeds = 5
    config.sweep.grid = ConfigDict()
    config.sweep.grid.method = ConfigDict({"name": ("promptfl", "local_coop", "fedrsclip")})
    config.sweep.grid.partition = ConfigDict({"alpha": (0.1, 0.5, 10.0), "clients": (5, 10, 20)})
    return config
