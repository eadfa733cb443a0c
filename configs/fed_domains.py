"""Data sets as institutions: AID, UC Merced, NWPU-RESISC45 and EuroSAT, each a client with its own sensor and classes.

Natural shift in place of a drawn one: aerial photographs of 0.3 m, pictures of many resolutions from Google Earth, and
Sentinel-2 at 10 m. Class names that mean the same are merged by fedrsclip_jax/assets/class_names/merged.txt, or by a
table of one's own (--config.data.merge=FILE); `fedrsclip data` shows what was merged.

Data: AID (Xia et al. 2017, arXiv:1608.05167), a folder a class, and the others as in configs/fed_ucmerced.py,
fed_nwpu.py and fed_eurosat.py. All have to be downloaded; the first command says what and where to.

Method: FedRSCLIP from its published description, equations ours; baselines PromptFL (arXiv:2208.11625) and local CoOp
(arXiv:2109.01134). Protocol: stratified 80/20 split, each client tested on images of its own source. Expected: not
known, as we have not run it on these images. Time: not measured; each of the 70,600 images passes once through
ViT-B/16, and the nine runs are about 794,000 client steps together.

    fedrsclip data --config=configs/fed_domains.py:AID_FOLDER --output=clients.png
    fedrsclip train --config=configs/fed_domains.py:AID_FOLDER --workdir=runs/fed_domains
"""

from ml_collections import ConfigDict


def get_config(arg: str = "../shared/data/aid") -> ConfigDict:
    """`arg` is the folder of AID."""
    config = ConfigDict()
    config.seed = 0
    config.seeds = 3
    config.baselines = ("promptfl", "local_coop")
    config.backbone = "openai/clip-vit-base-patch16"
    config.rounds = 50

    config.data = ConfigDict()
    config.data.source = f"folder:{arg},tfds:uc_merced,tfds:resisc45,tfds:eurosat/rgb"
    config.data.classes = "union"

    config.partition = ConfigDict()
    config.partition.kind = "domain"
    config.partition.clients = 4  # one a source; 8 are two a source, and so on

    config.local = ConfigDict()
    config.local.epochs = 1
    config.local.batch_size = 32
    config.local.learning_rate = 0.002
    config.local.momentum = 0.9

    config.eval = ConfigDict()
    config.eval.every = 10
    return config
