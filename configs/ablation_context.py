"""How long a context, where the class name stands, and how the two prompts are joined; chosen on validation images.

Expected on the drawn scenes: 67, 74, 77 and 77 % with 1, 2, 4 and 8 tokens, and 74 to 76 % in the other rows.

fedrsclip sweep --config=configs/ablation_context.py --workdir=runs/context
"""

from pathlib import Path

from ml_collections import ConfigDict

from fedrsclip_jax.config import load_file


def get_config(federation: str = "quickstart") -> ConfigDict:
    """`federation` names the configuration beside this one whose clients train, such as `aid`."""
    config = load_file(str(Path(__file__).with_name(f"{federation}.py")))
    config.eval.every = config.rounds
    config.eval.split = "validation"
    if federation == "quickstart":
        config.local.learning_rate = 0.03  # FedRSCLIP's, as configs/ablation_rows.py:rates found it

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
