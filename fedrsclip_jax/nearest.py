"""The key that a person means: by the word's meaning where it is known from elsewhere, or else by its letters.

Imports no JAX.
"""

import difflib
from collections.abc import Collection

# Words of other frameworks and of papers, with the keys that they may mean, the likeliest first.
_MEANT = {
    "local.learning_rate learning_rate server.learning_rate": "lr eta step_size base_lr client_lr local_lr",
    "server.learning_rate": "server_lr global_lr slr",
    "local.batch_size batch_size": "bs batch batchsize local_bs minibatch",
    "local.weight_decay weight_decay": "wd decay l2",
    "local.proximal_weight": "mu prox prox_mu fedprox proximal fedprox_mu",
    "local.epochs epochs": "e num_epochs local_epochs n_epochs local_ep max_epoch local_steps local_iterations",
    "local.optimizer server.optimizer": "opt optim optimiser",
    "server.optimizer": "server_opt server_optim",
    "server.aggregator": "aggregation agg aggregate fedavg defense defence robust",
    "partition.clients": "num_clients n_clients k n_parties num_users users clients_total total_clients institutions",
    "partition.alpha": "beta concentration dirichlet_alpha dir_alpha noniid non_iid iid heterogeneity",
    "partition.kind": "partition_method split_type distribution",
    "partition.classes_per_client": "shards shard num_shards ways n_way",
    "partition.min_examples": "min_samples min_size min_images",
    "cohort": "clients_per_round sample_clients frac fraction c participation sample_rate join_ratio fraction_fit",
    "dropout": "drop drop_rate dropout_rate stragglers failure",
    "rounds": "num_rounds n_rounds comm_rounds communication_rounds global_rounds global_epochs t",
    "method.name": "method algorithm algo alg strategy trainer baseline",
    "method.context_tokens": "n_ctx num_ctx ctx context n_context num_tokens prompt_length context_length m",
    "method.context_init": "ctx_init prompt_init init_prompt prompt",
    "method.class_position": "class_token_position csc",
    "method.temperature": "tau temp",
    "method.rank": "r lora_rank",
    "backbone": "model arch architecture clip pretrained net checkpoint vision weights",
    "data.source": "dataset data_dir data_path datadir root path folder images data_root",
    "data.test_fraction": "test_size test_split test_ratio val_fraction val_split train_fraction split_ratio",
    "data.image_size": "img_size resolution input_size size imsize",
    "data.views": "augment augmentation augmentations aug num_views",
    "data.tfds_dir": "tfds",
    "dtype": "precision prec amp fp16 bf16 fp32 mixed_precision half_precision",
    "seed": "random_seed rng manual_seed",
    "seeds": "n_seeds num_seeds trials repeats repetitions runs",
    "spmd.devices": "gpus num_gpus n_gpus gpu device num_devices cuda",
    "spmd.clients_per_device": "lanes parallel_clients",
    "eval.every": "eval_every eval_interval eval_freq evaluate_every test_every val_every",
    "eval.finetune_epochs": "finetune fine_tune finetuning personalization personalisation",
    "eval.base_to_new": "b2n base2new novel base_novel",
    "checkpoint.every": "save_every save_interval save_freq checkpoint_every",
    "init_from": "resume_from load init warm_start",
}
_ALIASES = {word: keys.split() for keys, words in _MEANT.items() for word in words.split()}
# What is no key, and what there is instead.
_ELSEWHERE = {
    "there is no key for few-shot training; choose images in Python by frs.make_clients(images, train=...), or "
    "have few a client by --config.partition.kind=virtual --config.partition.examples_per_client=16": (
        "shots num_shots n_shots shot n_shot few_shot fewshot kshot k_shot"
    ),
    "the folder of results is --workdir=FOLDER": "output out output_dir out_dir save_dir log_dir logdir workdir resume",
    "no step size is scheduled; local.learning_rate holds for all rounds": (
        "lr_scheduler scheduler lr_decay warmup warmup_epochs lr_schedule"
    ),
    "no worker processes read images; they are encoded once": "num_workers workers n_workers",
    "event files are written by --tensorboard": "tensorboard wandb logger use_wandb",
}
_OTHERS = {word: remedy for remedy, words in _ELSEWHERE.items() for word in words.split()}
_LIKE = 0.75  # as difflib counts: a slip or two of the fingers


def nearest(name: str, known: Collection[str]) -> str:
    """What to say of a key that is not known: the one that is meant, or where else to look; never empty.

    Args:
      name: dotted, as given.
      known: the keys that there are.
    """
    group, _, leaf = name.rpartition(".")
    plain = leaf.lower().replace("-", "_")
    whole = f"{group}_{plain}".lower().strip("_")
    same = [key for key in known if key.rpartition(".")[2] == plain]
    for meant in (_ALIASES.get(whole, []), same, _ALIASES.get(plain, [])):
        if there := [key for key in meant if key in known]:
            own = [key for key in there if key.rpartition(".")[0] == group]
            return f"the nearest is {(own or there)[0]!r}"
    if remedy := _OTHERS.get(whole) or _OTHERS.get(plain):
        return remedy
    in_group = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == group}
    if close := difflib.get_close_matches(plain, in_group, 1, _LIKE):
        return f"the nearest is {in_group[close[0]]!r}"
    if close := difflib.get_close_matches(name, known, 1, _LIKE):
        return f"the nearest is {close[0]!r}"
    words = {key.rpartition(".")[2]: key for key in reversed([*known])}
    if close := difflib.get_close_matches(plain, words, 1, _LIKE):
        return f"the nearest is {words[close[0]]!r}"
    if group and in_group:
        return f"the group {group} has {', '.join(in_group)}"
    return "--help-config lists them all"
