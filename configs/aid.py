"""FedRSCLIP on real aerial photographs: AID, 30 classes, ten clients with very uneven classes, three seeds.

Data: AID (Xia et al. 2017), the half that configs/pretrain_aid.py has not seen. Backbone: the small CLIP that
configs/pretrain_aid.py trains, or any CLIP by name or folder.

Method: FedRSCLIP from its published description, equations ours; baselines PromptFL (arXiv:2208.11625) and local CoOp
(arXiv:2109.01134). Expected on the clients' own images, 3 seeds: zero-shot 62 %, PromptFL 63 %, local CoOp 82 %,
FedRSCLIP 80 to 81 %. Time: five minutes on 2 cores.

    fedrsclip pretrain --config=configs/pretrain_aid.py --workdir=runs/aid_clip
    fedrsclip train --config=configs/aid.py --config.backbone=runs/aid_clip --workdir=runs/aid
"""

from ml_collections import ConfigDict


def get_config(arg: str = "../shared/data/aid") -> ConfigDict:
    """`arg` is the folder of AID: `--config=configs/aid.py:PATH`."""
    config = ConfigDict()
    config.seed = 0
    config.seeds = 3
    config.baselines = ("promptfl", "local_coop")
    config.backbone = "runs/aid_clip"
    config.rounds = 50

    config.data = ConfigDict()
    config.data.source = f"folder:{arg}"
    config.data.half = "federate"
    config.data.half_seed = 0

    config.partition = ConfigDict()
    config.partition.kind = "dirichlet"
    config.partition.clients = 10
    config.partition.alpha = 0.1

    config.local = ConfigDict()
    config.local.learning_rate = 0.01

    config.eval = ConfigDict()
    config.eval.every = 10
    return config
