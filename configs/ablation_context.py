"""How long a context, where the class name stands, and how the two prompts are joined; chosen on validation images.

fedrsclip sweep --config=configs/ablation_context.py --workdir=runs/context
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

    # One key at a time, around the defaults, which are the first row.
    rows = [(4, "end", "logits")]
    rows += [(tokens, "end", "logits") for tokens in (1, 2, 8)]
    rows += [(4, position, "logits") for position in ("middle", "front")]
    rows += [(4, "end", combine) for combine in ("features", "concat")]
    tokens, positions, combines = zip(*rows, strict=True)
    config.sweep = ConfigDict()
    config.sweep.seeds = 5
    config.sweep.zip = ConfigDict()
    config.sweep.zip.method = ConfigDict({"context_tokens": tokens, "class_position": positions, "combine": combines})
    return config
