"""FedRSCLIP on images of one's own: a folder with a folder a class, ten clients with very uneven classes, three seeds.

Data: any folder of class folders, jpg, png or tif. Names of classes are what CLIP reads, and a file classnames.txt in
the folder says them in English words (`fedrsclip data --name=folder:PATH` shows them). Backbone: CLIP ViT-B/16, which
the first run downloads (600 MB); a CLIP of one's own, from configs/pretrain_aid.py:PATH, or a folder by
--config.backbone=FOLDER, with step sizes of 0.01 to 0.1 by --config.local.learning_rate.

Method: FedRSCLIP from its published description, equations ours; baselines PromptFL (arXiv:2208.11625) and local CoOp
(arXiv:2109.01134). Expected: not known, as it depends on the images. Time: --dry-run measures it.

    fedrsclip train --config=configs/folder.py:photographs --dry-run
    fedrsclip train --config=configs/folder.py:photographs --workdir=runs/photographs
"""

from ml_collections import ConfigDict


def get_config(arg: str = "photographs") -> ConfigDict:
    """`arg` is the folder: `--config=configs/folder.py:PATH`."""
    config = ConfigDict()
    config.seed = 0
    config.seeds = 3
    config.baselines = ("promptfl", "local_coop")
    config.backbone = "openai/clip-vit-base-patch16"
    config.rounds = 50

    config.data = ConfigDict()
    config.data.source = f"folder:{arg}"

    config.partition = ConfigDict()
    config.partition.kind = "dirichlet"
    config.partition.clients = 10
    config.partition.alpha = 0.1

    config.local = ConfigDict()
    config.local.epochs = 1
    config.local.batch_size = 32
    config.local.learning_rate = 0.002

    config.eval = ConfigDict()
    config.eval.every = 10
    return config
