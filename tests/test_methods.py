"""The losses against the equations of their modules, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedrsclip_jax.errors import InputError
from fedrsclip_jax.methods import METHODS, find_method
from fedrsclip_jax.methods.base import Batch, Private, Shared, Weights
from fedrsclip_jax.methods.fedotp import transport
from tests import toy
from tests.conftest import REPOSITORY

WEIGHTS = Weights(jnp.float32(0.3), jnp.float32(0.5))


@pytest.fixture(scope="module")
def frozen(tiny_folder):
    return toy.backbone(tiny_folder)


@pytest.fixture(scope="module")
def batch():
    return batch_for("fedrsclip")


def batch_for(name: str) -> Batch:
    data = toy.dataset_for(name)
    return Batch(data.features[0, :6], data.labels[:6], jnp.asarray([True, True, True, True, False, True]))


def method(name: str, frozen, **overrides):
    config = toy.settings(**{"method.name": name, **overrides}).method
    return METHODS[name](config, frozen, jax.random.key(4))


# Compiled whole: one program a test is far quicker than a program an operation.
encode = jax.jit(lambda frozen, context: frozen.encode(context))
loss_of = jax.jit(lambda module, batch, frozen, weights: module.loss(batch, frozen, weights))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def norm(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_hand(module, frozen, batch, combine, pacl, cmfac):
    """CE, PACL and CMFAC of FedRSCLIP over the real rows."""
    real = np.asarray(batch.mask)
    f, y, s = np.asarray(batch.features)[real], np.asarray(batch.labels)[real], float(frozen.scale)
    shared, private = module.shared[...], module.private[...]
    ts, tk = np.asarray(encode(frozen, shared)), np.asarray(encode(frozen, private))
    logits = {
        "logits": s / 2 * (f @ ts.T + f @ tk.T),
        "features": s * f @ norm((ts + tk) / 2).T,
        "concat": s * f @ np.asarray(encode(frozen, jnp.concatenate([shared, private]))).T,
    }[combine]
    ce = -np.log(softmax(logits)[np.arange(len(y)), y]).mean()
    aligned = {
        "features": 1 - (ts * tk).sum(axis=1).mean(),
        "tokens": float(np.mean((np.asarray(shared) - np.asarray(private)) ** 2)),
    }[pacl]

    def contrastive(t):
        sims = s * f @ t[y].T
        same = (y[:, None] == y[None]) / (y[:, None] == y[None]).sum(axis=1, keepdims=True)
        one, other = (-(same * np.log(softmax(m))).sum(axis=1).mean() for m in (sims, sims.T))
        return (one + other) / 2

    tied = {
        "cosine": 1 - 0.5 * ((f * ts[y]).sum(axis=1) + (f * tk[y]).sum(axis=1)).mean(),
        "contrastive": (contrastive(ts) + contrastive(tk)) / 2,
    }[cmfac]
    return ce, aligned, tied


@pytest.mark.parametrize(
    ("combine", "pacl", "cmfac"),
    [
        ("logits", "features", "cosine"),
        ("features", "tokens", "contrastive"),
        ("concat", "features", "contrastive"),
        ("concat", "tokens", "cosine"),
    ],
)
def test_fedrsclip_is_its_equations(frozen, batch, combine, pacl, cmfac):
    switches = {"method.combine": combine, "method.pacl": pacl, "method.cmfac": cmfac}
    module = method("fedrsclip", frozen, **switches)
    loss, figures = loss_of(module, batch, frozen, WEIGHTS)
    ce, aligned, tied = by_hand(module, frozen, batch, combine, pacl, cmfac)
    np.testing.assert_allclose([figures["ce"], figures["pacl"], figures["cmfac"]], [ce, aligned, tied], rtol=1e-4)
    assert float(loss) == pytest.approx(ce + 0.3 * aligned + 0.5 * tied, rel=1e-4)


@pytest.mark.parametrize("combine", ["logits", "features", "concat"])
@pytest.mark.parametrize("term", ["ce", "pacl", "cmfac"])
def test_both_prompts_have_a_gradient_from_every_term(frozen, batch, combine, term):
    module = method("fedrsclip", frozen, **{"method.combine": combine})
    graph, shared, private = nnx.split(module, Shared, Private)
    gradients = jax.jit(jax.grad(lambda p: nnx.merge(graph, *p).loss(batch, frozen, WEIGHTS)[1][term]))(
        (shared, private)
    )
    assert all(float(jnp.abs(leaf).max()) > 1e-7 for leaf in jax.tree.leaves(gradients))


def test_prompts_start_apart(frozen):
    """Equal starts would get equal gradients, and PACL would be zero until the first average."""
    module = method("fedrsclip", frozen)
    shared, private = np.asarray(module.shared[...]), np.asarray(module.private[...])
    assert np.abs(shared - private).max() > 0.01
    assert 0.01 < np.concatenate([shared, private]).std() < 0.03  # N(0, 0.02^2), 256 numbers


def test_words_to_start_from(frozen):
    config = toy.settings().method
    start = jnp.ones((4, 32))
    module = METHODS["fedrsclip"](config, frozen, jax.random.key(0), start)
    np.testing.assert_allclose(module.shared[...], 1.0, atol=0.1)
    assert float(jnp.abs(module.shared[...] - module.private[...]).max()) > 0.001


@pytest.mark.parametrize("name", sorted(METHODS))
def test_padding_rows_change_neither_loss_nor_gradient(frozen, name):
    batch = batch_for(name)
    graph, shared, private = nnx.split(method(name, frozen), Shared, Private)

    @jax.jit
    def value(batch):
        def loss(prompts):
            return nnx.merge(graph, *prompts).loss(batch, frozen, WEIGHTS)[0]

        return jax.value_and_grad(loss)((shared, private))

    garbage = batch._replace(
        features=batch.features.at[4].set(7.0), labels=batch.labels.at[4].set((batch.labels[4] + 1) % 3)
    )
    short = Batch(*(jnp.delete(part, 4, axis=0) for part in batch))
    for other in (garbage, short):
        for a, b in zip(jax.tree.leaves(value(batch)), jax.tree.leaves(value(other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_batch_of_padding_alone_is_finite(frozen, name):
    batch = batch_for(name)
    graph, shared, private = nnx.split(method(name, frozen), Shared, Private)
    empty = batch._replace(mask=jnp.zeros(6, bool))
    gradients = jax.jit(jax.grad(lambda p: nnx.merge(graph, *p).loss(empty, frozen, WEIGHTS)[0]))((shared, private))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))


def test_what_each_method_shares(frozen):
    def sizes(name):
        _, shared, private = nnx.split(method(name, frozen), Shared, Private)
        return tuple(sum(leaf.size for leaf in jax.tree.leaves(part)) for part in (shared, private))

    prompt = 4 * 32
    assert sizes("fedrsclip") == (prompt, prompt)
    assert sizes("promptfl") == (prompt, 0)
    assert sizes("local_coop") == (0, prompt)
    assert sizes("fedotp") == (prompt, prompt)
    assert sizes("fedpgp") == (prompt, 4 * 2 + 2 * 32), "of rank 2"
    classes, embed = frozen.zero_shot.shape
    assert sizes("fedclip") == (2 * (embed**2 + embed), 0)
    assert sizes("linear_probe") == (classes * embed + classes, 0)


def test_global_and_personal_models(frozen, batch):
    promptfl, local = method("promptfl", frozen), method("local_coop", frozen)
    np.testing.assert_array_equal(
        promptfl.global_logits(batch.features, frozen), promptfl.personal_logits(batch.features, frozen)
    )
    zero_shot = frozen.scale * (batch.features @ frozen.zero_shot.T)  # scaled last: a product of unit vectors first
    np.testing.assert_array_equal(local.global_logits(batch.features, frozen), zero_shot)
    both = method("fedrsclip", frozen)
    alone = frozen.scale * batch.features @ encode(frozen, both.shared[...]).T
    # Compiled whole and operation by operation: fp32 rounding of features, times the scale of about 14.
    np.testing.assert_allclose(both.global_logits(batch.features, frozen), alone, atol=1e-5)


def test_fedpgp_is_its_equations(frozen, batch):
    module = method("fedpgp", frozen, **{"method.rank": "2"})
    np.testing.assert_array_equal(
        module.personal_logits(batch.features, frozen), module.global_logits(batch.features, frozen)
    )
    module.up[...] = 0.3 * jax.random.normal(jax.random.key(8), (2, 32))
    weights = Weights(jnp.float32(0), jnp.float32(0), jnp.float32(0.7), jnp.float32(0.2))
    loss, figures = loss_of(module, batch, frozen, weights)
    shared = module.shared[...]
    ts, tk = (np.asarray(encode(frozen, p)) for p in (shared, shared + module.down[...] @ module.up[...]))
    real = np.asarray(batch.mask)
    f, y = np.asarray(batch.features)[real], np.asarray(batch.labels)[real]
    ce = -np.log(softmax(float(frozen.scale) * f @ tk.T)[np.arange(len(y)), y]).mean()
    pull = np.exp((ts * np.asarray(frozen.zero_shot)).sum(axis=1).mean() / 0.2)
    push = np.exp((ts * tk).sum(axis=1).mean() / 0.2)
    contrastive = -np.log(pull / (pull + push))
    np.testing.assert_allclose([figures["ce"], figures["contrastive"]], [ce, contrastive], rtol=1e-4)
    assert float(loss) == pytest.approx(ce + 0.7 * contrastive, rel=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_fedpgps_factors_start_at_the_scale_of_a_prompt_that_is_trained_itself(frozen, rank):
    """A step of V against the gradient G moves P_k by U U^T G: by G on average over clients, whatever the rank."""
    context, width = 4, 32
    config = toy.settings(**{"method.name": "fedpgp", "method.rank": str(rank)}).method
    draw = jax.jit(jax.vmap(lambda key: nnx.split(METHODS["fedpgp"](config, frozen, key), Shared, Private)[2]))
    private = draw(jax.random.split(jax.random.key(0), 2000))
    down, up = np.asarray(private["down"][...]), np.asarray(private["up"][...])
    assert down.shape == (2000, context, rank)
    assert up.shape == (2000, rank, width)
    assert not up.any()
    moved = np.einsum("kir,kjr->kij", down, down)
    # An entry of the mean has a deviation of at most (2 / 2000)^1/2 = 0.03.
    np.testing.assert_allclose(moved.mean(axis=0), np.eye(context), atol=0.15)
    assert down.std() == pytest.approx(rank**-0.5, rel=0.05)


def test_the_prompt_of_a_fedpgp_client_who_was_never_drawn_is_the_shared_one(frozen, batch):
    """Of whatever the others have made of it."""
    module = method("fedpgp", frozen)
    module.shared[...] = 0.5 * jax.random.normal(jax.random.key(5), module.shared.shape)
    np.testing.assert_array_equal(
        module.personal_logits(batch.features, frozen), module.global_logits(batch.features, frozen)
    )


def test_fedclip_starts_as_zero_shot_and_is_its_equations(frozen, batch):
    module = method("fedclip", frozen)
    zero_shot = frozen.scale * batch.features @ frozen.zero_shot.T
    np.testing.assert_allclose(module.global_logits(batch.features, frozen), zero_shot, atol=0.02)
    module.outer[...] = jax.random.normal(jax.random.key(8), module.outer.shape)
    module.inner[...] = jax.random.normal(jax.random.key(9), module.inner.shape)
    f = np.asarray(batch.features)
    attention = softmax(np.tanh(f @ np.asarray(module.inner[...])) @ np.asarray(module.outer[...]))
    by_hand = float(frozen.scale) * norm(attention * f) @ np.asarray(frozen.zero_shot).T
    np.testing.assert_allclose(module.global_logits(batch.features, frozen), by_hand, rtol=1e-4, atol=1e-4)


def plan_by_hand(cost, epsilon, mass, iterations):
    """One image's and class's transport, in the plain domain and double precision."""
    kernel = np.exp(-np.asarray(cost, np.float64) / epsilon)
    patches, prompts = kernel.shape
    v = np.ones(prompts)
    for _ in range(iterations):
        u = 1 / patches / (kernel @ v)
        u = u if mass == 1 else np.minimum(u, 1)
        v = mass / prompts / (kernel.T @ u)
    return u[:, None] * kernel * v


@pytest.mark.parametrize("mass", [1.0, 0.6])
def test_transport_keeps_its_sums_and_is_a_plain_loop(mass):
    cost = np.random.default_rng(0).uniform(0.2, 1.4, (3, 9, 2)).astype(np.float32)
    plan = np.asarray(transport(jnp.asarray(cost), 0.1, mass, 60))
    np.testing.assert_allclose(plan.sum(axis=1), mass / 2, rtol=1e-5)
    given = plan.sum(axis=2)
    assert given.max() <= 1 / 9 * 1.01, "no patch gives more than it has, up to what iterations leave open"
    if mass == 1:
        np.testing.assert_allclose(given, 1 / 9, rtol=1e-4)
    else:
        assert given.min() < 0.5 / 9, "who fits neither prompt gives less"
    for own, by_hand in zip(plan, (plan_by_hand(c, 0.1, mass, 60) for c in cost), strict=True):
        np.testing.assert_allclose(own, by_hand, rtol=1e-4, atol=1e-7)
    tiny = transport(jnp.asarray(cost), 0.001, mass, 60)  # exp(-1400) is zero in any float
    assert bool(jnp.isfinite(tiny).all())


def test_fedotp_is_its_equations(frozen):
    batch = batch_for("fedotp")
    module = method("fedotp", frozen, **{"method.transport_mass": "0.7", "method.transport_iterations": "9"})
    shared, private = module.shared[...], module.private[...]
    texts = np.stack([np.asarray(encode(frozen, prompt)) for prompt in (shared, private)])
    patches = np.asarray(batch.features).reshape(6, 5, 16)[:, 1:]

    def logits(texts):
        similar = np.einsum("ijd,pcd->icjp", patches, texts)
        plans = [[plan_by_hand(1 - s, 0.1, 0.7, 9) for s in image] for image in similar]
        return float(frozen.scale) / 0.7 * (np.asarray(plans) * similar).sum(axis=(2, 3))

    np.testing.assert_allclose(module.personal_logits(batch.features, frozen), logits(texts), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(module.global_logits(batch.features, frozen), logits(texts[:1]), rtol=1e-4, atol=1e-4)
    whole = method("fedotp", frozen, **{"method.transport_mass": "1"})
    mean = float(frozen.scale) * patches.mean(axis=1) @ texts[0].T
    np.testing.assert_allclose(whole.global_logits(batch.features, frozen), mean, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_transport_is_its_plan():
    """The envelope theorem, by finite differences of the entropic objective, which the plan minimises."""
    cost = np.random.default_rng(1).uniform(0.2, 1.4, (5, 2))

    def objective(cost):
        plan = plan_by_hand(cost, 0.1, 1.0, 500)
        return (plan * cost).sum() + 0.1 * (plan * (np.log(plan) - 1)).sum()

    plan, numeric, step = np.asarray(transport(jnp.asarray(cost, jnp.float32), 0.1, 1.0, 500)), np.zeros((5, 2)), 1e-5
    for at in np.ndindex(5, 2):
        change = np.zeros((5, 2))
        change[at] = step
        numeric[at] = (objective(cost + change) - objective(cost - change)) / (2 * step)
    np.testing.assert_allclose(plan, numeric, atol=1e-5)


def test_a_linear_probe_knows_nothing_at_first(frozen, batch):
    loss, _ = loss_of(method("linear_probe", frozen), batch, frozen, WEIGHTS)
    assert float(loss) == pytest.approx(np.log(frozen.zero_shot.shape[0]), rel=1e-5)


def test_weights_scale_their_terms(frozen, batch):
    module = method("fedrsclip", frozen)
    plain, figures = loss_of(module, batch, frozen, Weights(jnp.float32(0), jnp.float32(0)))
    assert float(plain) == pytest.approx(float(figures["ce"]))


@pytest.mark.parametrize("position", ["front", "middle"])
def test_class_positions_give_other_models(tiny_folder, frozen, batch, position):
    other = toy.backbone(tiny_folder, position)
    module = method("promptfl", frozen)
    difference = module.global_logits(batch.features, other) - module.global_logits(batch.features, frozen)
    assert float(jnp.abs(difference).max()) > 1e-4


def test_methods_are_small_files():
    """The promise of the design: a method is one file of under 100 lines, but for FedRSCLIP with its variants."""
    import inspect

    for name in set(METHODS) - {"fedrsclip"}:
        assert len(inspect.getsource(inspect.getmodule(METHODS[name])).splitlines()) < 100


def test_unknown_method_names_the_nearest():
    with pytest.raises(InputError, match=r"method\.name: unknown method 'fedrsclp'; did you mean 'fedrsclip'\?"):
        find_method("fedrsclp")


def test_the_readme_shows_promptfl_as_it_is():
    text = (REPOSITORY / "fedrsclip_jax" / "methods" / "promptfl.py").read_text()
    assert f"```python\n{text}```" in (REPOSITORY / "README.md").read_text()
