"""Fed-Optimal of the benchmark Fed-RSIC: FedRSCLIP on Optimal-31 with CLIP ViT-B/16.

Data: Optimal-31 (Wang et al. 2018, doi:10.1109/TGRS.2018.2864987), 31 classes, 1,860 images of 256 x 256 pixels. It has
to be downloaded by hand; the first command says what and where to.

Method: FedRSCLIP from its published description, equations ours; baselines PromptFL (arXiv:2208.11625) and local CoOp
(arXiv:2109.01134). Protocol: stratified 80/20 split, a client's test images in the proportions of its own classes, all
clients in each of 50 rounds of one local epoch, three seeds with a partition each. The splits and settings of the paper
were not available to us. Expected: not known, as we have not run it on these images. Time: not measured;
each image passes once through ViT-B/16, and the nine runs are about 21,000 client steps together.

    fedrsclip data --name=optimal31 --output=clients.png
    fedrsclip train --config=configs/fed_optimal.py:clients=10,partition=dirichlet:0.1 --workdir=runs/fed_optimal
"""

from ml_collections import ConfigDict

from fedrsclip_jax import fed_rsic


def get_config(arg: str = "") -> ConfigDict:
    """`arg` is `clients=5|10|20,partition=iid|dirichlet:0.5|dirichlet:0.1|classes:N`, or one of them."""
    return fed_rsic.config("optimal31", arg)
