"""The report: what it says, that it needs nothing but itself, and how it looks in a browser."""

import base64
import html
import io
import json
import re
import shutil
import subprocess

import pytest
from matplotlib.image import imread

from mirrorode.experiment import report, store
from tests.experiment.commands import call, stored

SMALL = ["--neurons", "8", "--samples", "20", "--seeds", "1", "--limit", "200"]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PROBE = """<script>addEventListener("load", () => {
  const loaded = [...document.images].filter(it => it.complete && it.naturalWidth > 100).length;
  const wide = document.documentElement.scrollWidth > innerWidth;
  const colour = getComputedStyle(document.body).backgroundColor;
  document.title = JSON.stringify({loaded, wide, colour, width: innerWidth});
})</script></body>"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the page of two scenarios that share a run."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("run", "table2", *SMALL) == 0
        assert call("run", "fig5", *SMALL) in (0, 1)
        patch.setattr("mirrorode.experiment.integration.solve", None)
        assert call("report") == 0
    return folder


@pytest.fixture(scope="module")
def page(home):
    return (home / "report.html").read_text(encoding="utf-8")


def records(folder):
    return [json.loads(path.read_text()) for path in folder.glob("runs/students-*/*/run.json")]


def test_verdicts_come_first(home, page):
    """Every statement, before any figure; and every run with what it took, once."""
    verdicts, rest = page.split('id="verdicts"')[1].split("<figure>", 1)
    for record in records(home):
        assert all(html.escape(row["statement"]) in verdicts for row in record["verdicts"])
        assert rest.count(f"{record['statistics']['evaluations']:,}</td>") >= 1
    assert f"over {len(records(home))} runs" in verdicts


def test_each_scenario_has_its_title_command_figure_and_tables(home, page):
    for name, tables in (("table2", 3), ("fig5", 1)):
        part = page.split(f'<section id="{name}">')[1].split("</section>")[0]
        assert f"mirrorode run {name}" in part
        assert "--neurons 8 --samples 20 --limit 200.0" in part
        assert part.count("<table>") == tables
        (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', part)
        drawn = imread(home / f"figures/{name}.png")
        assert (imread(io.BytesIO(base64.b64decode(picture))) == drawn).all()
    assert "paper/here" in page


def test_a_verdict_that_fails_is_told_at_the_top(home, monkeypatch):
    monkeypatch.chdir(home)
    path = stored(home, "p3-seed0") / "run.json"
    before = path.read_text()
    content = json.loads(before)
    content["verdicts"][1] |= {"outcome": "fails", "slack": -1.0, "detail": "tampered"}
    store.write(path.parent, content)
    try:
        assert call("report", "--page", "other.html") == 0
    finally:
        path.write_text(before)
    top = (home / "other.html").read_text().split("<thead>")[0]
    assert "1 fails" in top
    assert f"{path.parent.name}</code>: tampered" in top


def test_a_missing_run_is_told_and_the_rest_is_kept(home, monkeypatch):
    monkeypatch.chdir(home)
    folder = stored(home, "p3-seed0")
    folder.rename(home / "aside")
    try:
        assert call("report", "--page", "other.html") == 0
    finally:
        (home / "aside").rename(folder)
    other = (home / "other.html").read_text()
    assert "goes on with what is missing: p3-seed0" in other
    assert other.count("<figure>") == 1


def test_nothing_stored(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("report") == 2
    assert (
        capsys.readouterr().err == "mirrorode: `out` must hold stored runs, but runs holds none\n"
    )
    assert not (tmp_path / "report.html").exists()


def test_page_that_is_a_folder(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert call("report", "--page", "runs") == 2
    assert "`page` must be a file, but runs is a folder" in capsys.readouterr().err


def browse(path, *options):
    """The page after it has loaded, as the browser has it."""
    switches = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000")
    command = (BROWSER, *switches, *options, "--dump-dom", path.as_uri())
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize(
    ("width", "dark"), [(1200, False), (500, True)], ids=["desk, light", "phone, dark"]
)
def test_in_a_browser(home, page, tmp_path, width, dark):
    """Images are there, nothing is cut off at the side, and the colours follow the reader's."""
    probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    path = tmp_path / "probed.html"
    path.write_text(probed.replace("</body>", PROBE), encoding="utf-8")
    scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    shown = browse(path, f"--window-size={width},900", *scheme)
    found = json.loads(html.unescape(re.search("<title>(.*)</title>", shown)[1]))
    colour = "rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)"
    assert found == {"loaded": 2, "wide": False, "colour": colour, "width": width}


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_no_request_leaves_the_page(home, page, tmp_path):
    """Of the page only itself is asked for; a link to another host would be seen."""

    def asked(name, text):
        path, log = tmp_path / f"{name}.html", tmp_path / f"{name}.json"
        path.write_text(text, encoding="utf-8")
        browse(path, f"--log-net-log={log}", "--host-resolver-rules=MAP * ~NOTFOUND")
        return re.findall(r'"url":"(https?://[^"]*report[^"]*)"', log.read_text())

    assert asked("page", page) == []
    other = '<img src="http://example.org/report.png"></body>'
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert asked("free", free.replace("</body>", other)) != []
    assert asked("guarded", page.replace("</body>", other)) == []


def test_command_tells_what_was_changed():
    kind = report.scenario.load("table2")
    assert report.command("table2", kind, kind()) == "mirrorode run table2"
    assert report.command("table2", kind, kind().quick()) == "mirrorode run table2 --quick"
    assert report.command("table2", kind, kind(data_seed=7)).endswith("table2 --data-seed 7")
