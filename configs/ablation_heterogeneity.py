"""Who leads where: methods by how uneven the clients are (Dirichlet alpha), and how many they are.

With the same images for more clients each has fewer of them. Two prompts stand without and with the constraints. On the
drawn scenes every method has its own step size, as in configs/ablation_rows.py: chosen at alpha 0.1 with 10 clients.
Expected, 5 seeds: FedRSCLIP leads PromptFL by 20 to 27 points at alpha 0.1 and by -2 to 2 at 10, and local CoOp by
-1 to 1 everywhere.

    fedrsclip sweep --config=configs/ablation_heterogeneity.py --workdir=runs/heterogeneity
"""

from pathlib import Path

from ml_collections import ConfigDict

from fedrsclip_jax.config import load_file

# label, method, PACL's weight, CMFAC's weight, the client's step size on scenes
ROWS = (
    ("PromptFL", "promptfl", 0.0, 0.0, 0.03),
    ("local CoOp", "local_coop", 0.0, 0.0, 0.01),
    ("shared + private", "fedrsclip", 0.0, 0.0, 0.01),
    ("FedRSCLIP", "fedrsclip", 0.1, 0.5, 0.03),
)


def get_config(federation: str = "quickstart") -> ConfigDict:
    """`federation` names the configuration beside this one whose clients train, such as `aid`."""
    config = load_file(str(Path(__file__).with_name(f"{federation}.py")))
    config.eval.every = config.rounds

    labels, methods, pacl, cmfac, rates = zip(*ROWS, strict=True)
    config.sweep = ConfigDict()
    config.sweep.seeds = 5
    config.sweep.labels = labels
    config.sweep.zip = ConfigDict()
    config.sweep.zip.method = ConfigDict({"name": methods, "pacl_weight": pacl, "cmfac_weight": cmfac})
    if federation == "quickstart":
        config.sweep.zip.local = ConfigDict({"learning_rate": rates})
    config.sweep.grid = ConfigDict()
    config.sweep.grid.partition = ConfigDict({"alpha": (0.1, 0.5, 10.0), "clients": (5, 10, 20)})
    return config
