"""Fed-UCMerced of the benchmark Fed-RSIC: FedRSCLIP on UC Merced with CLIP ViT-B/16.

Data: UC Merced Land Use (Yang and Newsam 2010, doi:10.1145/1869790.1869829), 21 classes, 2,100 images of 256 x 256
pixels, which the first command downloads (317 MB).

Method: FedRSCLIP from its published description, equations ours; baselines PromptFL (arXiv:2208.11625) and local CoOp
(arXiv:2109.01134). Protocol: stratified 80/20 split, a client's test images in the proportions of its own classes, all
clients in each of 50 rounds of one local epoch, three seeds with a partition each. The splits and settings of the paper
were not available to us. Expected: not known, as we have not run it on these images. Time: not measured;
each image passes once through ViT-B/16, and the nine runs are about 24,000 client steps together.

    fedrsclip data --name=uc_merced --output=clients.png
    fedrsclip train --config=configs/fed_ucmerced.py:clients=10,partition=dirichlet:0.1 --workdir=runs/fed_ucmerced
"""

from ml_collections import ConfigDict

from fedrsclip_jax import fed_rsic


def get_config(arg: str = "") -> ConfigDict:
    """`arg` is `clients=5|10|20,partition=iid|dirichlet:0.5|dirichlet:0.1|classes:N`, or one of them."""
    return fed_rsic.config("uc_merced", arg)
