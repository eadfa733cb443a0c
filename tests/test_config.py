"""The configuration: what wins over what, how text becomes values, and what a wrong key or value is answered."""

import dataclasses
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from fedrsclip_jax import config as configuration
from fedrsclip_jax import nearest
from fedrsclip_jax.config import Config, PretrainConfig, digest, keys, load_file, resolve, to_dict
from fedrsclip_jax.errors import InputError

pytestmark = pytest.mark.newest


@pytest.fixture
def config_file(tmp_path):
    """Writes a configuration file and gives its path as text."""

    def write(body: str, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(body)
        return str(tmp_path / name)

    return write


def refusal(*words: str, written=None, overrides=(), cls=Config) -> str:
    with pytest.raises(InputError) as caught:
        resolve(cls, written or {}, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


# Defaults and precedence ------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Config, PretrainConfig])
def test_defaults_are_of_their_own_type_and_within_their_own_limits(cls):
    assert resolve(cls, {}) == cls()
    everything = {name: f.default for name, _, f in keys(cls)}
    assert resolve(cls, everything) == cls()
    assert all(f.metadata["meaning"] for _, _, f in keys(cls))


def test_some_defaults_that_the_readme_and_the_method_rest_on():
    config = Config()
    assert (config.seed, config.seeds, config.backbone, config.cohort, config.dropout) == (0, 1, "tiny", 0, 0.0)
    assert config.method.name == "fedrsclip"
    assert config.method.context_tokens == 4  # 4 x 512 = 2048 numbers travel with CLIP's B towers
    assert (config.server.optimizer, config.server.learning_rate) == ("sgd", 1.0)  # FedAvg
    assert config.data.source == "scenes"


def test_command_line_over_file_over_defaults():
    written = {"rounds": 7, "local": {"epochs": 3}}
    config = resolve(Config, written, [("rounds", "9"), ("seed", "4")])
    assert (config.rounds, config.local.epochs, config.seed) == (9, 3, 4)
    assert config.local.batch_size == Config().local.batch_size
    assert resolve(Config, {}, [("rounds", "1"), ("rounds", "2")]).rounds == 2


def test_config_dict_and_dict_say_the_same():
    nested = {"rounds": 3, "data": {"scenes": {"count": 64, "domains": ["dust"]}}, "baselines": ("promptfl",)}
    assert resolve(Config, ConfigDict(nested)) == resolve(Config, nested)
    assert resolve(Config, nested).data.scenes.domains == ("dust",)


@pytest.mark.parametrize(
    ("optimizer", "rate"), [("sgd", 1.0), ("momentum", 1.0), ("adam", 0.01), ("yogi", 0.01), (None, 1.0)]
)
def test_the_default_rate_of_the_server_is_that_of_its_optimizer(optimizer, rate):
    """Steps of Adam and Yogi are as long as their rate, whatever the change: at 1 a prompt of 0.02 is lost."""
    chosen = [("server.optimizer", optimizer)] if optimizer else []
    written = {"server": {"optimizer": optimizer}} if optimizer else {}
    assert resolve(Config, {}, chosen).server.learning_rate == rate
    assert resolve(Config, written).server.learning_rate == rate
    for given in (0.3, 1.0):
        assert resolve(Config, {}, [*chosen, ("server.learning_rate", str(given))]).server.learning_rate == given
        assert resolve(Config, {"server": {"learning_rate": given}}, chosen).server.learning_rate == given
    config = resolve(Config, written)
    assert resolve(Config, to_dict(config)) == config


def test_what_is_written_reads_back():
    config = resolve(Config, {}, [("baselines", "promptfl,local_coop"), ("partition.alpha", "0.5")])
    assert resolve(Config, to_dict(config)) == config


def test_configurations_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().rounds = 3  # pyright: ignore[reportAttributeAccessIssue]


# Overrides of every type ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rounds", "12", 12),
        ("local.learning_rate", "0.5", 0.5),
        ("local.learning_rate", "1e-3", 1e-3),
        ("local.learning_rate", "2", 2.0),
        ("data.skip_unreadable", "True", True),
        ("data.skip_unreadable", "false", False),
        ("baselines", "promptfl", ("promptfl",)),
        ("baselines", "promptfl,local_coop", ("promptfl", "local_coop")),
        ("baselines", "('promptfl', 'local_coop')", ("promptfl", "local_coop")),
        ("baselines", "['promptfl']", ("promptfl",)),
        ("baselines", "('promptfl')", ("promptfl",)),
        ("baselines", "", ()),
        ("baselines", "()", ()),
        ("backbone", "12", "12"),
        ("method.context_init", "a photo of a", "a photo of a"),
        ("data.source", "folder:/data/some = place", "folder:/data/some = place"),
    ],
)
def test_overrides_are_read_by_the_type_of_the_key(name, text, value):
    config = resolve(Config, {}, [(name, text)])
    for part in name.split("."):
        config = getattr(config, part)
    assert config == value
    assert type(config) is type(value)


def test_a_whole_number_from_a_file_is_a_float_where_one_is_wanted():
    config = resolve(Config, {"partition": {"alpha": 1}})
    assert type(config.partition.alpha) is float


# Wrong keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("ruonds", "'rounds'"),
        ("partition.alhpa", "'partition.alpha'"),
        ("learning_rate", "'local.learning_rate'"),  # right, but without its group
        ("method.batch_size", "'local.batch_size'"),  # in another group
        ("clients", "'partition.clients'"),
        # By meaning, where letters would mislead.
        ("lr", "'local.learning_rate'"),
        ("local.lr", "'local.learning_rate'"),
        ("server.lr", "'server.learning_rate'"),
        ("bs", "'local.batch_size'"),
        ("batch", "'local.batch_size'"),
        ("local.wd", "'local.weight_decay'"),
        ("num_clients", "'partition.clients'"),
        ("mu", "'local.proximal_weight'"),
        ("fedprox.mu", "'local.proximal_weight'"),
        ("epochs", "'local.epochs'"),
        ("num_epochs", "'local.epochs'"),
        ("frac", "'cohort'"),
        ("n_ctx", "'method.context_tokens'"),
        ("dataset", "'data.source'"),
        ("model", "'backbone'"),
        ("optimizer.name", "'method.name'"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(wrong, nearest):
    refusal(repr(wrong), "nearest", nearest, overrides=[(wrong, "1")])
    group, _, leaf = wrong.rpartition(".")
    refusal(repr(wrong), nearest, written={group: {leaf: 1}} if group else {leaf: 1})


def test_words_that_are_no_key_are_answered_with_what_there_is():
    refusal(
        "'data.shots'",
        "no key for few-shot training",
        "frs.make_clients(images, train=...)",
        overrides=[("data.shots", "4")],
    )
    refusal("'output_dir'", "--workdir=FOLDER", overrides=[("output_dir", "x")])
    refusal("'data.zzzz'", "the group data has source, merge", overrides=[("data.zzzz", "1")])
    refusal("'lr'", "nearest", "'learning_rate'", overrides=[("lr", "1")], cls=PretrainConfig)
    refusal(
        "'sweep.grid.local.learning_rate'", "use fedrsclip sweep", overrides=[("sweep.grid.local.learning_rate", "1,2")]
    )


def test_every_word_from_elsewhere_leads_to_a_key():
    known = {name for cls in (Config, PretrainConfig) for name, _, _ in configuration.keys(cls)}
    for word, meant in nearest._ALIASES.items():
        assert set(meant) & known, word
        assert not [key for key in meant if key not in known]
        assert word not in {name.rpartition(".")[2] for name in known}, f"{word} is a key's own name"


def test_a_cohort_may_be_a_share():
    assert resolve(Config, {}, [("cohort", "0.1"), ("partition.clients", "50")]).cohort == 5
    assert resolve(Config, {"cohort": 0.25}).cohort == 2, "of ten clients, halves to even"
    assert resolve(Config, {}, [("cohort", "0.01")]).cohort == 1, "at least one"
    assert type(resolve(Config, {"cohort": 0.5}).cohort) is int
    assert resolve(Config, {}, [("cohort", "1")]).cohort == 1, "one client, not all of them"


def test_an_unknown_key_like_no_other_is_still_refused():
    refusal("unknown config key 'zzzzzzz'", overrides=[("zzzzzzz", "1")])
    refusal("unknown config key ''", overrides=[("", "1")])


def test_groups_and_values_are_not_each_other():
    refusal("'data' is a group", "'data.source'", overrides=[("data", "scenes")])
    refusal("'data.scenes' is a group", "'data.scenes.count'", written={"data": {"scenes": 3}})
    refusal("'rounds' is a single value", written={"rounds": {"every": 3}})


# Wrong values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("rounds", "many", ("'many' is not a whole number", "such as 50")),
        ("rounds", "2.5", ("2.5 is not a whole number",)),
        ("rounds", "True", ("True is not a whole number",)),
        ("rounds", "{[]: 1}", ("'{[]: 1}' is not a whole number",)),
        ("local.learning_rate", "fast", ("'fast' is not a number", "such as 0.002")),
        ("data.skip_unreadable", "yes", ("'yes' is not true or false", "such as false")),
        ("data.skip_unreadable", "1", ("1 is not true or false",)),
        (
            "local.learning_rate",
            "0.03,0.1",
            ("is a list", "fedrsclip sweep", "--config.sweep.grid.local.learning_rate=0.03,0.1"),
        ),
        ("rounds", "(5, 10)", ("is a list", "fedrsclip sweep", "--config.sweep.grid.rounds=5,10")),
        ("seed", "0,1,2", ("is a list", "fedrsclip train with --config.seeds=3")),
        ("seeds", "0,1,2", ("is a list", "fedrsclip train with --config.seeds=3")),
        ("cohort", "-0.5", ("-0.5 is not a whole number",)),
        ("cohort", "1.5", ("1.5 is not a whole number",)),
        ("baselines", "(1, 2)", ("holds 1", "names")),
        ("baselines", "(promptfl, local_coop)", ("(promptfl, local_coop)", "a,b,c")),
        ("rounds", "0", ("rounds", "0", "at least 1")),
        ("dropout", "1.5", ("1.5", "between 0 and 0.99")),
        ("data.test_fraction", "-0.1", ("-0.1", "between 0 and 1")),
        ("partition.alpha", "0", ("partition.alpha", "0.0", "above 0")),
        ("partition.alpha", "-3", ("-3.0", "above 0")),
        ("local.learning_rate", "nan", ("nan", "not finite", "0.002")),
        ("local.learning_rate", "1e999", ("inf", "not finite")),
        ("local.optimizer", "sdg", ("'sdg'", "sgd, adam, adamw", "did you mean 'sgd'")),
        ("partition.kind", "random", ("'random'", "iid, dirichlet, classes, domain")),
    ],
)
def test_a_wrong_value_is_answered_with_what_is_allowed(name, text, words):
    refusal(repr(name), *words, overrides=[(name, text)])


def test_a_file_is_checked_like_the_command_line():
    refusal("'rounds'", "is not a whole number", written={"rounds": "12"})
    refusal("'rounds'", "is not a whole number", written={"rounds": True})
    refusal("'backbone'", "None is not text", written={"backbone": None})
    refusal("'local.learning_rate'", "not finite", written={"local": {"learning_rate": float("inf")}})
    refusal("'baselines'", "not a list of names, written a,b,c", written={"baselines": "promptfl"})
    refusal("'model.width'", "at least 16", written={"model": {"width": 8}}, cls=PretrainConfig)


def test_a_wrong_value_in_the_file_is_not_hidden_by_an_override():
    refusal("'rounds'", written={"rounds": 0}, overrides=[("rounds", "3")])


# Files ------------------------------------------------------------------------------------------------


def test_a_file_with_and_without_argument(config_file):
    file = config_file("def get_config(arg='3'):\n    return {'rounds': int(arg)}\n")
    assert resolve(Config, load_file(file)).rounds == 3
    assert resolve(Config, load_file(f"{file}:8")).rounds == 8


def test_an_argument_may_hold_colons(config_file):
    file = config_file("def get_config(arg):\n    return {'data': {'source': arg}}\n")
    assert resolve(Config, load_file(f"{file}:folder:there")).data.source == "folder:there"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("rounds = 3\n", ("AttributeError", "get_config")),
        ("def get_config():\n    return 1 / 0\n", ("ZeroDivisionError", "division by zero")),
        ("def get_config(:\n", ("SyntaxError",)),
        ("import no_such_module\n", ("no_such_module",)),
        ("def get_config():\n    pass\n", ("None", "must return a ConfigDict")),
        ("def get_config():\n    return 3\n", ("3", "must return a ConfigDict")),
    ],
)
def test_a_file_that_fails_is_named(config_file, body, words):
    file = config_file(body)
    with pytest.raises(InputError) as caught:
        load_file(file)
    for word in (file, *words):
        assert word in str(caught.value)


def test_an_argument_that_a_file_does_not_take(config_file):
    file = config_file("def get_config():\n    return {}\n")
    with pytest.raises(InputError, match=r"TypeError.*get_config"):
        load_file(f"{file}:fast")


def test_a_missing_file_is_answered_with_a_near_one(config_file, tmp_path):
    file = config_file("def get_config():\n    return {}\n")
    with pytest.raises(InputError, match=r"no file .*/mien\.py'; did you mean .*/mine\.py"):
        load_file(file.replace("mine", "mien"))
    with pytest.raises(InputError, match=r"no file 'nowhere/at_all\.py'"):
        load_file("nowhere/at_all.py")
    with pytest.raises(InputError, match="no file"):
        load_file(str(tmp_path))


def test_a_file_that_is_not_python(config_file):
    with pytest.raises(InputError, match="not a Python file"):
        load_file(config_file("{}", "mine.yaml"))


def test_an_input_error_of_a_file_is_passed_on_as_it_is(config_file):
    body = "from fedrsclip_jax.errors import InputError\ndef get_config(arg):\n    raise InputError(f'no size {arg}')\n"
    with pytest.raises(InputError, match=r"^no size huge$"):
        load_file(f"{config_file(body)}:huge")


@pytest.mark.parametrize("name", ["quickstart.py", "pretrain_scenes.py", "pretrain_aid.py"])
def test_shipped_configurations_resolve(name):
    file = configuration.default_file().with_name(name)
    resolve(PretrainConfig if name.startswith("pretrain") else Config, load_file(str(file)))


def test_the_default_file_is_the_quickstart_wherever_one_stands(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert configuration.default_file().parts[-2:] == ("configs", "quickstart.py")
    shipped = configuration.default_file()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.py").touch()
    assert configuration.default_file() == shipped  # a file of that name is not run because one stands beside it


# Identity, and what an import costs -------------------------------------------------------------------


def test_the_digest_follows_the_values_alone():
    same = [
        resolve(Config, {"seed": 3, "rounds": 4}),
        resolve(Config, ConfigDict({"rounds": 4, "seed": 3})),
        resolve(Config, {"rounds": 9}, [("rounds", "4"), ("seed", "3")]),
    ]
    assert len({digest(config) for config in same}) == 1
    assert digest(resolve(Config, {"rounds": 4})) != digest(same[0])
    script = (
        "from fedrsclip_jax.config import Config, digest, resolve; "
        "print(digest(resolve(Config, {}, [('seed', '3'), ('rounds', '4')])))"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(same[0])


def test_no_heavy_library_is_imported():
    script = (
        "import sys, fedrsclip_jax.config as c; c.resolve(c.Config, {}, [('rounds', '3')]); "
        "print(sorted({'jax', 'numpy', 'flax', 'transformers', 'optax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
