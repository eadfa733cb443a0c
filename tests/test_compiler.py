"""The compiler's options for the frozen towers: known to this JAX or left out, and without influence on results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedrsclip_jax.clip import compiler


@pytest.fixture
def forgetful():
    """The answer is kept for the life of a process; here it is asked for anew, before and after."""
    compiler.tower_options.cache_clear()
    yield
    compiler.tower_options.cache_clear()


def test_products_are_the_same_to_rounding():
    x, w = jax.random.normal(jax.random.key(0), (2, 96, 96))
    tuned = jax.jit(jnp.matmul, compiler_options=compiler.tower_options())(x, w)
    # 96 products of size one are summed in another order.
    np.testing.assert_allclose(tuned, np.asarray(x) @ np.asarray(w), rtol=0, atol=1e-4)


def test_an_option_that_this_jax_does_not_know_is_left_out(monkeypatch, forgetful):
    monkeypatch.setattr(compiler, "_EIGEN_PRODUCTS", {"xla_cpu_no_such_option": "1"})
    assert compiler.tower_options() == {}


def test_accelerators_are_left_alone(monkeypatch, forgetful):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler.tower_options() == {}
