"""The local Adam against Optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedrsclip_jax.federated.client import Hyper, LocalPlan
from tests import toy


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_steps_are_those_of_optax(name):
    hyper = Hyper.of(toy.settings(**{"local.momentum": "0.8", "local.weight_decay": "0.1"}))
    ours = LocalPlan(1, 4, name).transform(hyper)
    # Numbers and no arrays, as Optax raises them to integer powers, which strict promotion forbids.
    theirs = {
        "adam": optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.1, b1=0.8)),
        "adamw": optax.adamw(0.1, b1=0.8, weight_decay=0.1),
    }[name]
    params = other = {"a": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(4)}
    state, other_state = ours.init(params), theirs.init(other)
    for number in range(5):
        gradient = jax.tree.map(lambda leaf, n=number: jnp.cos(leaf * (n + 1)) + 0.1, params)
        updates, state = ours.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        with jax.numpy_dtype_promotion("standard"):
            updates, other_state = theirs.update(gradient, other_state, other)
        other = optax.apply_updates(other, updates)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    assert float(jnp.max(jnp.abs(params["b"] - 1))) > 0.05
