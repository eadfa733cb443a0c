"""The page of a run as a browser has it: sound, light, complete without any other file, and readable on a phone."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from fedrsclip_jax import cli
from fedrsclip_jax.evidence import FILE, Evidence
from fedrsclip_jax.report import charts
from tests.end_to_end.conftest import photographs
from tests.end_to_end.test_resume import SMALL

VOID = {"meta", "img", "br", "link", "hr"}
HOSTILE = "<b>oil & 'gas'</b> $depot$"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    """A run beside a baseline, on photographs of which one class has a name that would break a careless page."""
    place = tmp_path_factory.mktemp("report")
    photographs(place / "photos", {"Oil": 24, "Forest": 24, "River": 24})
    (place / "photos" / "classnames.txt").write_text(f"Oil = {HOSTILE}\n")
    flags = ("--config.rounds=4", "--config.baselines=promptfl", f"--config.data.source=folder:{place / 'photos'}")
    own = (f"--config.backbone={tiny_folder}", f"--workdir={place / 'run'}", "--config.partition.min_examples=1")
    assert cli.main(["train", "--quiet", *SMALL, "--report", *flags, *own]) == 0
    return place / "run"


class Page(HTMLParser):
    """Reads a page and complains where tags do not match or an id stands twice."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.ids, self.found, self.texts = [], set(), [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.found.append((tag, attributes))
        if (own := attributes.get("id")) is not None:
            assert own not in self.ids, own
            self.ids.add(own)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.mark.long
def test_a_page_is_whole_and_says_what_it_shows(run):
    text = (run / "report.html").read_text(encoding="utf-8")
    assert len(text.encode()) < 5e6
    page, summary = Page(text), json.loads((run / "summary.json").read_text())
    assert not page.all("script")
    for tag, attributes in page.found:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/")), f"{tag} wants {value} from elsewhere"
    references = re.findall(r"url\(#([^)]+)\)|xlink:href=\"#([^\"]+)\"", text)
    assert references
    assert {one or other for one, other in references} <= page.ids
    pictures = [attributes for attributes in page.all("div") if attributes.get("role") == "img"]
    assert len(pictures) == len(page.all("svg")) == 8
    assert all(len(attributes["aria-label"]) > 40 for attributes in pictures)
    assert page.all("img")
    assert all(attributes["alt"] for attributes in page.all("img"))
    said = " ".join(page.texts)
    assert HOSTILE in said
    assert not page.all("b") or HOSTILE not in text
    for part in (summary["personalised"]["mean"], summary["zero_shot"]["on_clients"]["mean"]):
        assert f"{100 * part:.1f}" in said
    for heading in (
        "Beside its baselines",
        "Who owns what",
        "Confusion",
        "Mistakes",
        "Seconds by phase",
        "Configuration",
    ):
        assert heading in said


@pytest.mark.long
def test_what_a_run_keeps_agrees_with_its_summary(run):
    kept, summary = Evidence.load(run), json.loads((run / "summary.json").read_text())
    assert kept is not None
    assert (kept.truth == kept.guess).mean() == pytest.approx(summary["global"]["accuracy"], abs=1e-6)
    assert kept.test.sum() == len(kept.truth)
    assert (kept.truth[kept.wrong] != kept.guess[kept.wrong]).all()
    assert kept.private.shape == (len(kept.movers), *kept.shared.shape)


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, Debian's package chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_complaint(run, width, tmp_path):
    """In a frame of that width, as a window cannot be as narrow as a phone."""
    tables = "[...document.querySelectorAll('.scroll:has(table)')].map((e) => e.scrollWidth - e.clientWidth)"
    probe = f"const hidden = Math.max(...{tables}), page = document.documentElement.scrollWidth;"
    probe = f"<script>{probe} parent.postMessage([page, innerWidth, hidden].join(), '*')</script>"
    (tmp_path / "probed.html").write_text((run / "report.html").read_text() + probe)
    heard = "<script>onmessage = (event) => document.title = event.data</script>"
    frame = f'<iframe src="probed.html" style="border: 0; width: {width}px; height: 1000px"></iframe>'
    (tmp_path / "frame.html").write_text(f"<title>nothing</title>{heard}{frame}")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1100", "--virtual-time-budget=5000",
        "--dump-dom",
    ]  # fmt: skip
    page = f"file://{tmp_path / 'frame.html'}"
    done = subprocess.run([*command, page], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    needed, there, hidden = map(int, re.search(r"<title>(\d+),(\d+),(-?\d+)</title>", done.stdout).groups())
    assert there == width
    assert needed <= there, "the page is wider than the screen"
    assert hidden <= 0, "a table hides figures behind a scroll bar"


@pytest.mark.long
def test_tiles_are_of_all_seeds(run, tmp_path):
    """Of two seeds the tiles show mean and deviation, and the page says that the rest is of one."""
    shutil.copytree(run, tmp_path / "two")
    compared = json.loads((run / "comparison.json").read_text())
    compared["seeds"] = [0, 1]
    for row in compared["rows"].values():
        for column in ("on_clients", "worst_decile", "pooled"):
            row[column]["values"] = [0.5, 0.7] if row is compared["rows"]["fedrsclip"] else [0.25, 0.35]
    (tmp_path / "two" / "comparison.json").write_text(json.dumps(compared))
    assert cli.main(["report", f"--workdir={tmp_path / 'two'}"]) == 0
    said = " ".join(Page((tmp_path / "two" / "report.html").read_text()).texts)
    assert said.count("60.0 ± 14.1 %") == 3
    assert said.count("zero-shot 30.0 ± 7.1 %, +30.0 points") == 3
    assert "What follows is of seed 0 alone" in said


@pytest.mark.long
def test_a_page_explains_its_figures_and_compares_like_with_like(run):
    said = " ".join(Page((run / "report.html").read_text(encoding="utf-8")).texts)
    for term in ("personalised accuracy", "worst decile", "global accuracy", "uplink parameters"):
        assert term in said
    summary = json.loads((run / "summary.json").read_text())
    worst, zero = summary["personalised"]["worst_decile"], summary["zero_shot"]["on_clients"]["worst_decile"]
    assert f"in the worst tenth of clients on {100 * worst:.1f} % (zero-shot {100 * zero:.1f} %)" in said


@pytest.mark.long
def test_reports_of_several_and_of_older_runs(run, tmp_path, capsys):
    old = tmp_path / "old"
    shutil.copytree(run, old)
    kept = (old / FILE).read_bytes()
    (old / FILE).unlink()
    lines = [json.loads(line) for line in (old / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["personalised"]["best"]
    (old / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main(["report", f"--workdir={old}"]) == 0
    page = Page((old / "report.html").read_text())
    assert len(page.all("svg")) == 5, "what needs no evidence"

    for damaged in (b"", kept[: len(kept) // 2], kept[:2000] + b"\xff" * 8 + kept[2008:]):
        (old / FILE).write_bytes(damaged)
        assert cli.main(["report", f"--workdir={old}"]) == 0

    both = tmp_path / "both.html"
    other = run / "compared" / "promptfl-seed0"
    assert cli.main(["report", f"--workdir={run}", f"--workdir={other}", f"--output={both}"]) == 0
    said = " ".join(Page(both.read_text()).texts)
    assert "2 runs side by side" in said
    assert "PromptFL, seed 0" in said
    assert "not on equal partitions" not in said


def virtual(clients: int) -> dict:
    """As much of a summary as a chart by client needs."""
    accuracy = np.random.default_rng(0).uniform(size=clients).tolist()
    scores = {"per_client": accuracy}
    own = {"personalised": scores, "global_on_clients": scores, "zero_shot": {"on_clients": scores}}
    return own | {"uplink_params_per_client_round": 4}


def test_names_of_any_script_are_drawn_without_a_word():
    lines = [{"round": 1, "personalised": {"mean": 0.5}}]
    part = ("personalised", "mean")
    assert "机场" in charts.side_by_side({"机场": lines}, part, "title", "name").svg


def test_many_classes_and_clients_are_cut_down_and_said():
    classes, clients, images = 200, 40, 1000
    random = np.random.default_rng(0)
    texts = random.normal(size=(2, classes, 8)).astype(np.float32)
    found = Evidence(
        truth=random.integers(classes, size=images),
        guess=random.integers(classes, size=images),
        owners=np.arange(clients),
        train=random.integers(9, size=(clients, classes)),
        test=random.integers(3, size=(clients, classes)),
        zero_shot=texts[0],
        shared=texts[0],
        movers=np.array([3]),
        private=texts[1:],
        wrong=np.zeros(0, int),
        pictures=np.zeros((0, 8, 8, 3), np.uint8),
    )
    names = [f"class {c}" for c in range(classes)]
    drawn = [charts.confusion(found, names, True), charts.owners(found, names, 10**6, str)]
    drawn.append(charts.by_client(virtual(10_000), str))
    assert sum(len(chart.svg) for chart in drawn) < 3e6, "a page is to stay below 5 MB"
    assert "50 most confused of 200 classes" in drawn[0].said
    assert "40 of the clients that are scored, of 1,000,000 in all" in drawn[1].said
    assert charts.texts(found, names) is not None


def test_nobody_with_a_test_image_is_a_chart_too():
    scores = {"per_client": [None, None]}
    summary = {
        "personalised": scores,
        "global_on_clients": scores,
        "zero_shot": {"on_clients": scores},
        "uplink_params_per_client_round": 4,
    }
    assert charts.by_client(summary, str).said == "0 of 0 clients gained over zero-shot, 0 lost."


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--workdir=nowhere",), "nowhere holds no finished run or sweep"),
        (("--workdir=a", "--workdir=b", "--output=x.html"), "a holds no finished run or sweep"),
        (("--workdir=a", "--workdir=b"), "--output"),
        (("--workdir=a", "--workdir=a", "--output=x.html"), "given twice"),
        (("--workdir=a", "--workdir=b", "--output=."), "--output: . is there already"),
        (("--workdir=a", "--output=there/is/none.html"), "no folder"),
        (("--workdir=a", "--config.rounds=3"), "--config.rounds"),
        ((), "--workdir"),
    ],
)
def test_bad_requests_get_one_line(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert words in err
    assert not [*tmp_path.iterdir()]
