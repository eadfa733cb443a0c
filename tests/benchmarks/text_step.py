"""One local step at ViT-B/16 size, beside the same step in PyTorch as it is usually written, and the machine's ceiling.

    python -m tests.benchmarks.text_step [--classes 21 31 45] [--contexts 4 16] [--lanes 0] [--dtype float32]

A step is forward, backward to the prompts, and update, on a batch of 32 cached image features; random weights. Ours is
timed as rounds of the engine on one device: the seconds of a round by all steps that its clients take in it, in as many
lanes as the engine chooses; the first method with the largest context in a single lane as well. PyTorch
runs `transformers.CLIPModel` on all 77 tokens of every class (CoOp's way, weights frozen) with as many threads; the
whole step of such code encodes its 32 images again, which is measured by itself and added. What the JSON line names by
classes alone is the first method's with the largest context. `ceiling_share` counts the floating-point operations that
the exact result needs (see `needed_flops`) against the fastest matrix products, measured in turns with the steps.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.clip.model import unit
from fedrsclip_jax.clip.suffixes import Suffixes
from fedrsclip_jax.clip.transformer import TowerConfig
from fedrsclip_jax.federated.client import Dataset
from fedrsclip_jax.federated.engine import Engine
from fedrsclip_jax.memory import keep_freed_pages
from fedrsclip_jax.methods import METHODS
from fedrsclip_jax.methods.base import Batch
from tests.benchmarks import federations, names, openai_sizes, timing
from tests.benchmarks.federations import Rounds

BATCH, RATE, MOMENTUM = 32, 0.002, 0.9
PROMPTS = {"promptfl": 1, "fedrsclip": 2}


def needed_flops(tower: TowerConfig, suffixes: Suffixes, context: int, embed: int) -> float:
    """Operations of the text part of one step for one prompt: products alone, a multiply-add being two.

    Dense layers: each token passes each layer once forward and once backward (to its input; weights take no gradient),
    but in the last block only EOS passes the query, the output and the MLP, and in the first block no gradient reaches
    what stands before queries, keys and values of the names. Attention: the pairs that see each other, twice
    forward and four times backward.
    """
    rows, ends = np.asarray(suffixes.rows).tolist(), np.asarray(suffixes.eos).tolist()
    names_tree = {tuple(row[:end]) for row, eos in zip(rows, ends, strict=True) for end in range(1, eos + 2)}
    nodes, classes, prefix, d = len(names_tree), len(rows), 1 + context, tower.width
    key_value, whole = 2 * d * d, 4 * d * d + 2 * d * tower.mlp_width  # weights of a block
    dense = 2 * (tower.layers - 1) * whole * (prefix + nodes) - 3 * d * d * (nodes + 1)
    dense += 2 * (key_value * (prefix + nodes) + (whole - key_value + d * embed) * classes)
    pairs = prefix * (prefix + 1) / 2 + sum(prefix + len(node) for node in names_tree)
    pairs_of_eos = sum(prefix + eos + 1 for eos in ends)
    return 2.0 * dense + 2.0 * 6 * d * ((tower.layers - 1) * pairs + pairs_of_eos)


def our_rounds(
    method: str, context: int, backbone: Backbone, data: Dataset, clients: int, steps: int, lanes: int
) -> tuple[Rounds, float]:
    """A round in which each of some clients takes `steps` local steps, and the seconds of its compilation.

    It is the engine's own round, with all that goes on around a step. `lanes` as `spmd.clients_per_device`.
    """
    keys = {"method__name": method, "method__context_tokens": context, "spmd__clients_per_device": lanes}
    keys |= {"local__learning_rate": RATE, "local__momentum": MOMENTUM, "local__batch_size": BATCH}
    config = federations.settings(rounds=10**6, eval__every=1, local__epochs=steps, spmd__devices=1, **keys)
    owners = federations.Even(clients, BATCH)
    engine = Engine(config, METHODS[method], backbone, None, owners, lambda rows: data, lambda: data)
    began = time.perf_counter()
    engine.compiled()
    return Rounds(engine, 1), time.perf_counter() - began


def torch_step(model, suffixes: Suffixes, prompts: int, context: int, batch: Batch):
    """The same step in PyTorch: every class a sequence of 77 tokens, a batch of all of them for each prompt.

    Returns the call, and a function from contexts to text features.
    """
    import torch

    tower, classes = model.text_model, suffixes.path.shape[0]
    embed = tower.embeddings.token_embedding
    rows = np.full((classes, model.config.text_config.max_position_embeddings - 1 - context), names.EOS)
    rows[:, : suffixes.path.shape[1]] = np.asarray(suffixes.rows)
    start = embed(torch.full((classes, 1), names.SOS))
    end = embed(torch.tensor(rows))
    read = torch.tensor(np.asarray(suffixes.eos) + 1 + context)
    features, labels = torch.tensor(np.asarray(batch.features)), torch.tensor(np.asarray(batch.labels)).long()
    scale = model.logit_scale.exp()

    def encode(contexts):
        sequences = [torch.cat([start, c.expand(classes, -1, -1), end], dim=1) for c in contexts]
        x = tower.embeddings(inputs_embeds=torch.cat(sequences))
        # Without a mask and with `is_causal` the fastest of PyTorch's attention kernels runs.
        x = tower.encoder(inputs_embeds=x, attention_mask=None, is_causal=True).last_hidden_state
        x = tower.final_layer_norm(x)[torch.arange(len(x)), read.repeat(len(contexts))]
        return torch.nn.functional.normalize(model.text_projection(x), dim=-1).reshape(len(contexts), classes, -1)

    contexts = [
        torch.nn.Parameter(0.02 * torch.randn(context, model.config.text_config.hidden_size)) for _ in range(prompts)
    ]
    optimizer = torch.optim.SGD(contexts, lr=RATE, momentum=MOMENTUM)

    def step():
        texts = encode(contexts)
        loss = torch.nn.functional.cross_entropy(scale * features @ texts.mean(dim=0).T, labels)
        if prompts == 2:
            own = texts[:, labels]
            loss = loss + 0.3 * (1 - (texts[0] * texts[1]).sum(-1).mean()) + 0.5 * (1 - (features * own).sum(-1).mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, encode


def check_same(encode, backbone: Backbone, context: int) -> None:
    """Both sides must be doing the same work."""
    import torch

    prompt = 0.02 * np.random.default_rng(0).normal(size=(1, context, backbone.text.width)).astype(np.float32)
    with torch.no_grad():
        theirs = encode(list(torch.tensor(prompt))).numpy()
    ours = np.asarray(jax.jit(Backbone.encode)(backbone, jnp.asarray(prompt)))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def seconds_of_images(model) -> float:
    """Seconds in which PyTorch encodes one batch of images without a gradient."""
    import torch

    pixels = torch.randn(BATCH, 3, model.config.vision_config.image_size, model.config.vision_config.image_size)

    def encode():
        with torch.no_grad():
            model.get_image_features(pixel_values=pixels)

    return timing.seconds(encode, repeats=3, warmup=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", choices=sorted(names.BY_CLASSES), default=[21, 31, 45])
    parser.add_argument("--contexts", type=int, nargs="+", default=[4, 16], help="context tokens")
    parser.add_argument("--methods", nargs="+", choices=sorted(PROMPTS), default=["promptfl", "fedrsclip"])
    parser.add_argument("--clients", type=int, default=4, help="clients of a round")
    parser.add_argument("--lanes", type=int, default=0, help="clients that step at a time; 0 is the engine's choice")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=2, help="local steps of each client in a round")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each call")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--no-torch", action="store_true")
    arguments = parser.parse_args()

    keep_freed_pages()
    sizes = openai_sizes.config(arguments.layers)
    clip = openai_sizes.clip(sizes, arguments.dtype)
    model = None if arguments.no_torch else openai_sizes.in_torch(clip, sizes)
    packages = ["torch", "transformers"] if model is not None else []
    began = time.perf_counter()
    print(timing.machine(*packages), arguments.dtype, names.tokenizer_line(), sep="; ")

    products = timing.large_products(arguments.dtype)
    images = None if model is None else seconds_of_images(model)
    if images is not None:
        print(f"PyTorch encodes {BATCH} images in {images:.2f} s")

    rng = np.random.default_rng(0)
    rows, record, ceilings = [], {}, []
    for classes in arguments.classes:
        suffixes = names.suffixes(names.BY_CLASSES[classes], max(arguments.contexts))
        backbone = Backbone(clip.text, jnp.asarray(100.0), suffixes, jnp.zeros((classes, sizes.embed)))
        features = unit(jnp.asarray(rng.normal(size=(BATCH, sizes.embed)), jnp.float32))
        batch = Batch(features, jnp.asarray(rng.integers(0, classes, BATCH)), jnp.ones(BATCH, bool))
        data = Dataset(np.tile(batch.features, (1, arguments.clients, 1)), np.tile(batch.labels, arguments.clients))
        calls, compiling, longest = {}, {}, max(arguments.contexts)
        cases = [(method, context, arguments.lanes) for method in arguments.methods for context in arguments.contexts]
        if classes == arguments.classes[0]:
            cases = [*dict.fromkeys([*cases, (arguments.methods[0], longest, 1)])]
        for case in cases:
            method, context, lanes = case
            calls[case], compiling[case] = our_rounds(
                method, context, backbone, data, arguments.clients, arguments.steps, lanes
            )
        if model is not None:
            for method in arguments.methods:
                calls[method], encode = torch_step(model, suffixes, PROMPTS[method], longest, batch)
                check_same(encode, backbone, longest)
        calls |= {name: made.call for name, made in products.items()}
        taken = timing.seconds_each(calls, arguments.repeats, warmup=1)
        ceiling = timing.ceiling(products, taken)
        ceilings.append(ceiling / 1e9)
        for case, seconds_compiling in compiling.items():
            method, context, asked = case
            lanes = calls[case].engine.lanes
            seconds = taken[case] / arguments.steps / arguments.clients
            needed = PROMPTS[method] * needed_flops(sizes.text, suffixes, context, sizes.embed)
            figures = {"ceiling_share": needed / seconds / ceiling}
            if model is not None:
                figures |= {"text_speedup": taken[method] / seconds, "step_speedup": (taken[method] + images) / seconds}
            if asked == arguments.lanes:
                record |= {f"{name}_{method}_c{classes}_m{context}": value for name, value in figures.items()}
                if (method, context) == (arguments.methods[0], longest):
                    record |= {f"{name}_c{classes}": value for name, value in figures.items()}
            else:
                record |= {f"{name}_one_lane_c{classes}": value for name, value in figures.items()}
            rows.append(
                [
                    f"{method}, C {classes}, m {context}, lanes {lanes}",
                    seconds_compiling,
                    seconds * 1e3,
                    100 * figures["ceiling_share"],
                    taken[method] * 1e3 if model is not None else "-",
                    figures.get("text_speedup", "-"),
                    figures.get("step_speedup", "-"),
                ]
            )

    timing.print_table(
        f"One local step; matrix products reach {max(ceilings):,.0f} GFLOP/s",
        ["step", "compiling s", "ms", "% of ceiling", "PyTorch's text, ms", "text x", "whole step x"],
        rows,
    )
    share = record[f"ceiling_share_c{arguments.classes[0]}"]
    timing.print_record(
        "text_step",
        ceiling_share=share,
        ceiling_gflops=max(ceilings),
        seconds=time.perf_counter() - began,
        **record,
    )


if __name__ == "__main__":
    main()
