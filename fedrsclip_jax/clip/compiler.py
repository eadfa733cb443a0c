"""How programs that run the frozen towers are compiled."""

from functools import cache

import jax

# XLA's CPU backend hands matrix products to YNNPACK, which brings the weights into order anew in each product. For
# some hundred rows Eigen's products, which this leaves in place, are a sixth faster, provided that no matrix is read
# the wrong way round (see `transformer.frozen_product`); sums stay with YNNPACK.
_EIGEN_PRODUCTS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


@cache
def tower_options() -> dict[str, str]:
    """`compiler_options` of `jax.jit` for programs whose time goes into the frozen towers.

    Empty on accelerators, and where this JAX does not know the option. Not for programs that train a tower: their
    backward products become slower. Starts JAX's backend.
    """
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=_EIGEN_PRODUCTS).lower(0.0).compile()
    except Exception:  # whatever a JAX raises that does not know it
        return {}
    return dict(_EIGEN_PRODUCTS)
