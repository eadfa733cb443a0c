"""The page of a run as a browser has it: sound, light, complete without any other file, and readable on a phone."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from fedrsclip_jax import cli
from fedrsclip_jax.evidence import FILE, Evidence
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
    assert cli.main(["train", "--quiet", *SMALL, *flags, *own]) == 0
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
    probe = "<script>parent.postMessage([document.documentElement.scrollWidth, innerWidth].join(), '*')</script>"
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
    needed, there = map(int, re.search(r"<title>(\d+),(\d+)</title>", done.stdout).groups())
    assert there == width
    assert needed <= there, "the page is wider than the screen"


@pytest.mark.long
def test_reports_of_several_and_of_older_runs(run, tmp_path, capsys):
    old = tmp_path / "old"
    shutil.copytree(run, old)
    (old / FILE).unlink()
    lines = [json.loads(line) for line in (old / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["personalised"]["best"]
    (old / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main(["report", f"--workdir={old}"]) == 0
    page = Page((old / "report.html").read_text())
    assert len(page.all("svg")) == 5, "what needs no evidence"

    both = tmp_path / "both.html"
    other = run / "compared" / "promptfl-seed0"
    assert cli.main(["report", f"--workdir={run}", f"--workdir={other}", f"--output={both}"]) == 0
    said = " ".join(Page(both.read_text()).texts)
    assert "2 runs side by side" in said
    assert "PromptFL, seed 0" in said
    assert "not on equal partitions" not in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--workdir=nowhere",), "nowhere holds no finished run or sweep"),
        (("--workdir=a", "--workdir=b"), "a holds no finished run or sweep"),
        (("--workdir=a", "--workdir=b", "--output=."), "--output: . is a folder"),
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
