"""The methods, by the name that `method.name` takes: one file each."""

import difflib

from fedrsclip_jax.errors import InputError
from fedrsclip_jax.methods.fedclip import FedCLIP
from fedrsclip_jax.methods.fedotp import FedOTP
from fedrsclip_jax.methods.fedpgp import FedPGP
from fedrsclip_jax.methods.fedrsclip import FedRSCLIP
from fedrsclip_jax.methods.linear_probe import LinearProbe
from fedrsclip_jax.methods.local_coop import LocalCoOp
from fedrsclip_jax.methods.promptfl import PromptFL

METHODS = {
    "fedrsclip": FedRSCLIP,
    "promptfl": PromptFL,
    "local_coop": LocalCoOp,
    "fedpgp": FedPGP,
    "fedotp": FedOTP,
    "fedclip": FedCLIP,
    "linear_probe": LinearProbe,
}
# As people write them, with the row that needs no method.
TITLES = {
    "zero_shot": "zero-shot",
    "promptfl": "PromptFL",
    "local_coop": "local CoOp",
    "fedpgp": "FedPGP",
    "fedotp": "FedOTP",
    "fedclip": "FedCLIP",
    "linear_probe": "linear probe",
    "fedrsclip": "FedRSCLIP",
}
# Keys of the group `method` that each method reads, beside its name.
_PROMPT = ("context_tokens", "context_init", "class_position")
READS = {
    "fedrsclip": (*_PROMPT, "combine", "pacl", "cmfac", "pacl_weight", "cmfac_weight"),
    "promptfl": _PROMPT,
    "local_coop": _PROMPT,
    "fedpgp": (*_PROMPT, "rank", "contrastive_weight", "temperature"),
    "fedotp": (*_PROMPT, "transport_epsilon", "transport_iterations", "transport_mass", "patch_grid"),
    "fedclip": (),
    "linear_probe": (),
}


def find_method(name: str, key: str = "method.name"):
    """The class of a method; an unknown name is an InputError that lists the known ones."""
    if name in METHODS:
        return METHODS[name]
    if "," in name and set(name.split(",")) <= METHODS.keys():
        raise InputError(
            f"{key}: {name!r} are several methods; name one, and the others by --config.baselines, or use fedrsclip "
            f"sweep with --config.sweep.grid.method.name={name}"
        )
    near = difflib.get_close_matches(name, METHODS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{key}: unknown method {name!r}{hint} (known: {', '.join(METHODS)})")
