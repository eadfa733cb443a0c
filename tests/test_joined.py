"""Several sources as one: labels, domains and images stay with their source; names are merged by a table."""

import numpy as np
import pytest

from fedrsclip_jax.data.joined import SHIPPED_MERGE, Joined, read_merge
from fedrsclip_jax.data.sources import ImageSource, fingerprint, named_spec, split_spec
from fedrsclip_jax.data.split import stratified_split


class Part:
    """Images that tell their source and number in their pixels."""

    def __init__(self, number: int, *classes: str, each: int = 3):
        self.number, self.class_names = number, classes
        self.labels = np.tile(np.arange(len(classes)), each).astype(np.int32)
        self.domain_names, self.domains = ("dust", "dusk"), (np.arange(len(self.labels)) % 2).astype(np.int32)
        self.digests = [f"{number}-{i}" for i in range(len(self.labels))]

    def __len__(self):
        return len(self.labels)

    def image(self, i):
        return np.full((1, 1, 3), 50 * self.number + i, np.uint8)

    def name(self, i):
        return f"part {self.number} image {i}"


A = Part(0, "freeway", "Forest", "pond")
B = Part(1, "highway", "forest", "sea lake")
SAME = {"freeway": "freeway", "highway": "freeway"}
SPECS = ("folder:/data/A", "tfds:b/rgb")


def test_union():
    joined = Joined([A, B], SPECS, SAME)
    assert isinstance(joined, ImageSource)
    assert joined.class_names == ("freeway", "forest", "pond", "sea lake")
    assert joined.domain_names == ("A", "b/rgb")
    assert joined.origins == [["freeway", "highway"], ["Forest", "forest"], ["pond", None], [None, "sea lake"]]
    assert joined.labels.tolist() == [0, 1, 2] * 3 + [0, 1, 3] * 3
    assert joined.domains.tolist() == [0] * 9 + [1] * 9
    assert joined.digests == A.digests + B.digests
    assert [int(joined.image(i)[0, 0, 0]) for i in range(18)] == [*range(9), *range(50, 59)]
    assert joined.name(10) == "part 1 image 1"


def test_intersection_leaves_images_out_and_keeps_the_others_in_place():
    joined = Joined([A, B], SPECS, SAME, "intersection")
    assert joined.class_names == ("freeway", "forest")
    assert joined.labels.tolist() == [0, 1] * 6
    assert joined.digests == [f"{part}-{i}" for part in (0, 1) for i in (0, 1, 3, 4, 6, 7)]
    assert [int(joined.image(i)[0, 0, 0]) for i in (2, 8)] == [3, 53]


def test_without_a_table_equal_names_alone_are_merged():
    assert Joined([A, B], SPECS).class_names == ("freeway", "forest", "pond", "highway", "sea lake")


def test_the_table_is_a_part_of_what_a_run_is_identified_by():
    assert fingerprint(Joined([A, B], SPECS)) != fingerprint(Joined([A, B], SPECS, SAME))
    assert fingerprint(Joined([A, B], SPECS)) != fingerprint(Joined([B, A], SPECS[::-1]))


def test_a_class_that_one_source_has_is_split_like_any():
    joined = Joined([A, B], SPECS, SAME)
    train, test = stratified_split(joined.labels, joined.digests, 0.34, 0, np.ones(18, bool), joined.class_names)
    assert np.bincount(joined.labels[test]).tolist() == [2, 2, 1, 1]
    assert len(train) == 12


def test_refused(refused):
    with refused("folder:/data/A twice"):
        Joined([A, A], ("folder:/data/A", "folder:/data/A"))
    with refused("tfds:b", "'freeway'", "'highway'", "--config.data.merge=FILE"):
        Joined([A, Part(1, "freeway", "highway")], ("scenes", "tfds:b"), SAME)
    with refused("data.classes=intersection", "leaves 1", "A, b/rgb"):
        Joined([A, B], SPECS, {}, "intersection")


def test_folders_of_one_name_are_told_apart():
    assert Joined([A, B], ("folder:/1/aid", "folder:/2/aid")).domain_names == ("folder:/1/aid", "folder:/2/aid")


def test_specs():
    assert split_spec("folder:/a,b,tfds:eurosat/rgb,scenes") == ["folder:/a,b", "tfds:eurosat/rgb", "scenes"]
    assert split_spec("folder:/scenes,more") == ["folder:/scenes,more"]
    assert named_spec("scenes,uc_merced,folder:/a,eurosat/rgb:2.0.0") == (
        "scenes,tfds:uc_merced,folder:/a,tfds:eurosat/rgb:2.0.0"
    )


def test_tables(tmp_path, refused):
    table = tmp_path / "table.txt"
    table.write_text("# mine\n\nBusy  Road = freeway = highway  # all roads\n", encoding="utf-8-sig")
    assert read_merge(table) == dict.fromkeys(("busy road", "freeway", "highway"), "busy road")
    table.write_text("")
    assert read_merge(table) == {}
    with refused(tmp_path / "none", "No such file"):
        read_merge(tmp_path / "none")
    for bad in ("freeway highway", "freeway =", "= highway"):
        table.write_text(f"a = b\n{bad}\n")
        with refused("line 2", repr(bad), "freeway = highway"):
            read_merge(table)
    table.write_text("a = b\nb = c\n")
    with refused("line 2", "'b'", "twice"):
        read_merge(table)
    table.write_bytes(b"caf\xe9 = bar\n")
    with refused("UTF-8"):
        read_merge(table)


@pytest.mark.parametrize(
    ("one", "other"), [("highway", "freeway"), ("port", "harbor"), ("storage tank", "storage tanks")]
)
def test_shipped_table(one, other):
    table = read_merge()
    assert table[one] == table[other] == other
    # No name that the table is to find is spelled as no data set spells it.
    from fedrsclip_jax.data.names import readable_name

    assert all(readable_name(name) == name for name in table)
    assert SHIPPED_MERGE.parent.parent.name == "assets", "setup.cfg ships assets/*/*"
