"""All methods side by side on the quickstart's federation, each with the rate that suits it, and zero-shot CLIP above.

Rates were chosen on validation images, by

    fedrsclip sweep --config=configs/baselines.py:rates --workdir=runs/rates

and the methods are compared on test images by

    fedrsclip sweep --config=configs/baselines.py --workdir=runs/baselines

FedOTP sees an image as 4 x 4 patches. Fine-tuned PromptFL ends with two local passes of each client by itself.
Expected on the clients' own images, 10 seeds: zero-shot 50 %, PromptFL 55 %, FedOTP 61 %, linear probe 65 %, FedCLIP
70 %, PromptFL fine-tuned 71 %, FedPGP 80 %, local CoOp and FedRSCLIP 81 %.
"""

from pathlib import Path

from ml_collections import ConfigDict

from fedrsclip_jax.config import load_file

RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # no winner stands at an end
# label, method, the client's step size, passes of fine-tuning; the rates are what `:rates` found best
ROWS = (
    ("PromptFL", "promptfl", 0.03, 0),
    ("PromptFL, fine-tuned", "promptfl", 0.03, 2),
    ("local CoOp", "local_coop", 0.01, 0),
    ("FedPGP", "fedpgp", 0.003, 0),
    ("FedOTP", "fedotp", 0.03, 0),
    ("FedCLIP", "fedclip", 1.0, 0),
    ("linear probe", "linear_probe", 0.03, 0),
    ("FedRSCLIP", "fedrsclip", 0.03, 0),
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg` is empty, or `rates` to look for the step sizes on validation images."""
    if arg not in ("", "rates"):
        raise ValueError(f"configs/baselines.py:{arg}: leave {arg!r} out, or give `rates`")
    config = load_file(str(Path(__file__).with_name("quickstart.py")))
    config.eval.every = config.rounds
    config.method = ConfigDict({"patch_grid": 4})
    rows = ROWS
    if arg == "rates":
        config.eval.split = "validation"
        rows = [
            (f"{label} at {rate:g}", name, rate, 0) for label, name, _, passes in ROWS if not passes for rate in RATES
        ]
    labels, methods, rates, passes = zip(*rows, strict=True)
    config.sweep = ConfigDict()
    config.sweep.seeds = 3 if arg == "rates" else 10
    config.sweep.labels = labels
    config.sweep.zip = ConfigDict()
    config.sweep.zip.method = ConfigDict({"name": methods})
    config.sweep.zip.local = ConfigDict({"learning_rate": rates})
    config.sweep.zip.eval = ConfigDict({"finetune_epochs": passes})
    return config
