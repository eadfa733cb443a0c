"""A small CLIP from one half of AID's aerial photographs, for federating on the other half (configs/aid.py).

Data: AID (Xia et al. 2017), a folder a class. Images of the other half are never opened.

Method: contrastive language-image training (arXiv:2103.00020), captions ours.
Expected: zero-shot 63 % on the 493 images held out of its half (chance 3 %). Time: 31 minutes on 2 cores that had
other work beside.

    fedrsclip pretrain --config=configs/pretrain_aid.py --workdir=runs/aid_clip
"""

from ml_collections import ConfigDict


def get_config(arg: str = "../shared/data/aid") -> ConfigDict:
    """`arg` is the folder of AID: `--config=configs/pretrain_aid.py:PATH`."""
    config = ConfigDict()
    config.seed = 0
    config.epochs = 50
    config.batch_size = 128
    config.learning_rate = 1e-3
    config.weight_decay = 0.1
    config.min_crop = 0.5

    config.data = ConfigDict()
    config.data.source = f"folder:{arg}"
    config.data.half = "pretrain"
    config.data.half_seed = 0
    config.data.image_size = 64

    config.model = ConfigDict()
    config.model.width = 160
    config.model.vision_layers = 5
    config.model.text_layers = 3
    config.model.heads = 5
    config.model.embed = 160
    config.model.patch_size = 8
    return config
