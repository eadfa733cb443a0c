"""Class names and captions as token ids, with a small tokenizer of our own and with OpenAI's."""

import dataclasses
import shutil
from contextlib import nullcontext

import numpy as np
import pytest

from fedrsclip_jax.clip.huggingface import read_config
from fedrsclip_jax.clip.templates import TEMPLATE
from fedrsclip_jax.clip.tokenizer import load_tokenizer, name_and_stop, suffixes, tokenize, words
from fedrsclip_jax.export.layouts import check_names
from fedrsclip_jax.export.sequences import sequences

NAMES = ("river", "storage tanks", "Café São João", "field (wet)", "forêt no. 7", "市")


@pytest.fixture(params=["own", "openai"])
def pair(request, tiny_folder):
    """A tokenizer and a configuration with its special tokens."""
    config = read_config(tiny_folder)
    if request.param == "own":
        return load_tokenizer(tiny_folder, config), config
    folder = request.getfixturevalue("clip_tokenizer_folder")
    config = dataclasses.replace(config, vocabulary=49408, sos_id=49406, eos_id=49407)
    return load_tokenizer(folder, config), config


def test_suffixes_end_in_a_full_stop_and_eos(pair):
    tokenizer, config = pair
    made = suffixes(tokenizer, NAMES, config, 4)
    tokens, eos = np.asarray(made.rows), np.asarray(made.eos)
    assert tokens.shape == (len(NAMES), max(eos) + 1)
    for name, row, end in zip(NAMES, tokens, eos, strict=True):
        assert row[:end].tolist() == words(tokenizer, f"{name}.")
        assert tokenizer.decode(row[end - 1 : end]).strip().endswith(".")
        assert np.all(row[end:] == config.eos_id)
        assert not np.isin(row[:end], [config.sos_id, config.eos_id]).any()


@pytest.mark.parametrize("position", ["middle", "front"])
def test_a_name_keeps_its_last_sign_where_the_context_parts_it_from_the_full_stop(pair, position):
    """OpenAI's vocabulary has a token `).`, which is no full stop; where nothing is joined, nothing changes."""
    tokenizer, config = pair
    stop = words(tokenizer, "river.")[-1]
    joined = words(tokenizer, "field (wet).") != [*words(tokenizer, "field (wet)"), stop]
    assert joined == (config.vocabulary == 49408)
    made = suffixes(tokenizer, NAMES, config, 4, position=position)
    usual = suffixes(tokenizer, NAMES, config, 4)
    for number, name in enumerate(NAMES):
        row, end = np.asarray(made.rows)[number], int(made.eos[number])
        assert row[: end - 1].tolist() == words(tokenizer, name)
        assert row[end - 1] == stop
        if not (joined and name == "field (wet)"):
            assert row[:end].tolist() == np.asarray(usual.rows)[number, : int(usual.eos[number])].tolist()
    # An export puts the context into the same place.
    before = {"middle": 2, "front": 0}[position]
    tokens, gaps = sequences(tokenizer, NAMES, config, 4, position)
    for line, gap, name in zip(tokens, gaps, NAMES, strict=True):
        ids = words(tokenizer, name)
        wanted = [config.sos_id, *[0] * before, *ids, *[0] * (4 - before), stop, config.eos_id]
        assert line[: len(wanted)].tolist() == wanted
        assert np.flatnonzero(gap).tolist() == [*range(1, 1 + before), *range(1 + before + len(ids), 5 + len(ids))]


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_prompts_are_not_exported_for_code_that_would_part_a_name_elsewhere(pair, position, refused):
    """By what CoOp's code does: as many tokens of `name.` as the name has alone stand in front of the context."""
    tokenizer, _ = pair
    for name in NAMES:
        ids, stop = name_and_stop(tokenizer, name, position)
        length, together = len(words(tokenizer, name)), words(tokenizer, f"{name}.")
        alike = position == "end" or (together[:length], together[length:]) == (ids, stop)
        with nullcontext() if alike else refused("--format=coop", repr(name), "safetensors"):
            check_names(tokenizer, [name], position, "coop")


def test_no_letter_of_a_name_is_lost(pair):
    """Accents and other scripts are spelt in bytes, never replaced by an unknown token."""
    tokenizer, config = pair
    made = suffixes(tokenizer, NAMES, config, 4)
    for name, row, end in zip(NAMES, np.asarray(made.rows), np.asarray(made.eos), strict=True):
        spelt = tokenizer.decode(row[:end], clean_up_tokenization_spaces=False)
        assert "".join(spelt.split()) == "".join(f"{name}.".lower().split())


def test_tokenize_is_what_transformers_would_write(pair):
    tokenizer, config = pair
    texts = [TEMPLATE.format(name) for name in NAMES]
    ours = tokenize(tokenizer, texts, config)
    assert ours.dtype == np.int32
    assert np.array_equal(ours, tokenizer(texts, padding=True, return_tensors="np").input_ids)


def test_tokenize_pads_with_eos(pair):
    tokenizer, config = pair
    rows = tokenize(tokenizer, ["river", "a very much longer text about a river"], config)
    length = len(words(tokenizer, "river"))
    assert np.all(rows[:, 0] == config.sos_id)
    assert np.all(rows[0, 1 + length :] == config.eos_id)
    assert (rows[1] == config.eos_id).sum() == 1
    assert rows[1, -1] == config.eos_id


def test_too_long_a_text(pair, refused):
    tokenizer, config = pair
    config = dataclasses.replace(config, positions=12)
    text = "river " * 11
    with refused(repr(text), "at most 10", "shorten"):
        tokenize(tokenizer, ["river", text], config)
    cut = tokenize(tokenizer, ["river", text], config, truncate=True)
    assert cut.shape == (2, 12)
    assert cut[1, -1] == config.eos_id
    assert cut[1, :-1].tolist() == [config.sos_id, *words(tokenizer, text)[:10]]


def test_too_long_a_context_says_what_fits(pair, refused):
    tokenizer, config = pair
    room = config.positions - 2 - len(words(tokenizer, "storage tanks."))
    names = ("sea", "storage tanks")
    with refused("method.context_tokens", "'storage tanks'", "77", f"at most {room}"):
        suffixes(tokenizer, names, config, room + 3)
    with refused(f"at most {room}"):
        suffixes(tokenizer, names, config, room + 1)
    assert suffixes(tokenizer, names, config, room).path.shape[0] == 2


def test_too_long_a_name(pair, refused):
    tokenizer, config = pair
    with refused("shorter name", "river river"):
        suffixes(tokenizer, ("sea", "river " * 80), config, 4)


def test_folder_without_tokenizer(tiny_folder, tmp_path, refused):
    with refused(tmp_path, "tokenizer.json"):
        load_tokenizer(tmp_path, read_config(tiny_folder))


def test_broken_tokenizer(tiny_folder, tmp_path, refused):
    shutil.copytree(tiny_folder, tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer.json").write_text("{")
    with refused(tmp_path, "cannot be read"):
        load_tokenizer(tmp_path / "clip", read_config(tiny_folder))


def test_tokenizer_of_another_model(tiny_folder, clip_tokenizer_folder, refused):
    """Ids beyond the embedding table would be clamped without a word, and accuracy fall to chance."""
    with refused("49408 tokens", "belongs to another model"):
        load_tokenizer(clip_tokenizer_folder, read_config(tiny_folder))


def test_two_prompts_in_one_sequence_need_twice_the_room(tiny_folder, refused):
    config = read_config(tiny_folder)
    tokenizer = load_tokenizer(tiny_folder, config)
    name = len(words(tokenizer, "river."))
    room = (config.positions - 2 - name) // 2
    suffixes(tokenizer, ("river",), config, room, prompts=2)
    with refused(f"2 x {room + 1}", f"at most {room}"):
        suffixes(tokenizer, ("river",), config, room + 1, prompts=2)
