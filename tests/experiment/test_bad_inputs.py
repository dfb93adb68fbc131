"""Over 200 bad inputs: each gives one clear sentence and exit code 2, and nothing is written."""

import io
import json
import pickle
import re
import zipfile
from dataclasses import fields

import numpy as np
import pytest

from mirrorode.experiment import scenario, store
from tests.experiment.commands import call

X, Y = np.array([[1.0, 2.0], [-1.0, 0.5]]), np.array([1.0, -1.0])
WORDS = ["", "x", "1,2", "--", "nan", "0x10", "1e", "None", "[1]", "1;2"]
NUMBERS = {"int": [*WORDS, "1.5", "-1", "9" * 40], "float": [*WORDS[:4], "1e", "inf", "-inf", "-1"]}
GRIDS = [
    "", "=", "lam", "lam=", "=1", "lam=1,", "lam=1,,2", "lam=,1", "lam==1", "lam=1=2", "lam=x",
    "lam=nan", "lam=-1", "lam=1,1", "lam=1,-1", "nothing=1", "la m=1", "1=1", "lam=0:1:", "seed=:",
    "seed=0:", "seed=:3", "seed=3:0", "seed=0:0", "seed=0:1:0", "seed=a:b", "seed=0.5:2",
    "seed=0:1:2:3", "seed=0:9999999999999", "seed=-3:0", "seed=1.5", "neurons=0:3", "layers=1,2",
    "potential=foo", "data=a,b", "lam=__import__('os').system('true')", "seed=0:10**3",
]  # fmt: skip
COMMANDS = [
    [], ["bogus"], ["run"], ["sweep"], ["check"], ["run", "fig99"], ["run", ""], ["run", "../fig2"],
    ["run", "fig2\0"], ["sweep", "fig99"], ["check", "fig99"], ["check", "table2"], ["check", ""],
    ["check", "x" * 5000], ["check", "table2", "--out", "nowhere"], ["figures"],
    ["figures", "fig99"], ["figures", "fig2"], ["figures", "--out", "nowhere"], ["report"],
    ["report", "--out", "nowhere"], ["list", "--bogus"], ["list", "extra"], ["--bogus"],
    ["run", "fig2", "--bogus", "1"], ["run", "fig2", "extra"], ["run", "fig2", "--seeds"],
    ["run", "fig2", "--device", "tpu"], ["run", "fig2", "--device", "cuda"],
    ["sweep", "student", "--grid", "seed=0:2", "--device", "cuda"], ["sweep", "student"],
    ["run", "fig2", "--quick", "--quick=3"], ["run", "--quick", "fig2"],
    ["list", "--runs", "--out", "data"],
    ["sweep", "student", "--grid", "seed=0:99999999999999999999"],
    ["sweep", "student", "--grid"], ["sweep", "student", "--grid", "seed=0:2", "--workers", "0"],
    ["sweep", "student", "--grid", "seed=0:2", "--workers", "x"],
    ["sweep", "student", "--grid", "seed=0:2", "--grid", "seed=3"],
    ["sweep", "student", "--grid", "seed=0:1000", "--grid", "lam=1,2,3", "--grid", "p=2:60"],
    ["sweep", "table10", "--grid", "seeds=1,2"],
    ["sweep", "student", "--grid", "seed=1", "--lam=x"],
    ["sweep", "student", "--grid", "seed=1", "--cluster", "nonsense"],
    ["sweep", "student", "--grid", "seed=1", "--cluster", "nonsense://127.0.0.1:1"],
    ["sweep", "student", "--grid", "seed=1", "--out", "/proc/nothing"],
    ["run", "student", "--out", "/proc/nothing"], ["run", "student", "--out", "a\0b"],
    ["run", "student", "--out", "x" * 5000], ["run", "student", "--layers", "1"],
    ["run", "student", "--layers", "1000000000"], ["run", "student", "--neurons", "1000000000"],
    ["run", "student", "--samples", "1000000000"], ["run", "table10", "--largest", "1000000000"],
    ["run", "student", "--potential", "smoothed", "--p", "1"], ["run", "fig1", "--starts", "5"],
]  # fmt: skip


def options():
    """Each field of some scenarios with what is no value of it."""
    for name in ("fig1", "table2", "table10", "statements", "reparameterization", "student"):
        for field in fields(scenario.load(name)):
            for value in NUMBERS.get(str(field.type), ()):
                yield ["run", name, f"--{field.name.replace('_', '-')}={value}"]


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def lying(shape):
    """An archive whose array says that it is of this shape."""
    header = io.BytesIO()
    told = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, told)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x.npy", header.getvalue() + b"\0" * 16)
        file.writestr("y.npy", header.getvalue() + b"\0" * 16)
    return buffer.getvalue()


def bombed():
    """Samples in order, and beside them an entry that is no array."""
    buffer = io.BytesIO(npz(x=X, y=Y))
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("junk", b"\0" * 10**7)
    return buffer.getvalue()


class Dangerous:
    def __reduce__(self):
        return (print, ("executed",))


FILES = {
    "empty.csv": b"", "lines.csv": b"\n\n\n", "header.csv": b"x1,x2,y\n", "narrow.csv": b"1\n-1\n",
    "text.csv": b"x1,x2,y\n1,a,1\n", "ragged.csv": b"1,2,1\n1,-1\n",
    "nan.csv": b"nan,1,1\n1,1,-1\n",
    "inf.csv": b"1,1,1\n1e999,1,-1\n", "zero.csv": b"1,2,1\n1,2,0\n", "two.csv": b"1,2,2\n",
    "names.csv": b"x1,y\n1,2,1\n", "semicolon.csv": b"1;2;1\n", "binary.csv": bytes(range(256)),
    "nul.csv": b"1,2,1\0\n", "hole.csv": b"1,,1\n", "quoted.csv": b'"1,2,1\n',
    "comment.csv": b"# 1,2,1\n# 2,3,1\n", "code.csv": b"__import__('os'),1,1\n",
    "data.txt": b"1,2,1\n", "data": b"1,2,1\n", "data.npy": b"", "empty.npz": b"",
    "text.npz": b"1,2,1\n", "short.npz": npz(x=X, y=Y)[:-50], "cut.npz": npz(x=X, y=Y)[:200],
    "head.npz": npz(x=X, y=Y)[100:], "no_x.npz": npz(y=Y), "no_y.npz": npz(x=X), "none.npz": npz(),
    "flat.npz": npz(x=X[0], y=Y), "cube.npz": npz(x=X[None], y=Y), "more.npz": npz(x=X, y=Y[:1]),
    "wide.npz": npz(x=X, y=X), "labels.npz": npz(x=X, y=2 * Y), "nan.npz": npz(x=X * np.nan, y=Y),
    "void.npz": npz(x=X[:0], y=Y[:0]), "names.npz": npz(x=X, y=np.array(["a", "b"])),
    "complex.npz": npz(x=X * 1j, y=Y), "dates.npz": npz(x=X.astype("datetime64[s]"), y=Y),
    "objects.npz": npz(x=X, y=np.array([Dangerous(), 1], dtype=object)),
    "pickle.npz": pickle.dumps(Dangerous()), "lying.npz": lying((10**15,)),
    "extra.npz": bombed(), "small.npz": npz(x=np.ones((3, 2), np.int8), y=np.full(3, 2, np.int8)),
    "typo.csv": b"1,2,1x\n3,4,-1\n1,1,1\n", "hex.csv": b"0x1,2,1\n",
    "two_labels.csv": b"x,y,label\n1,1,1\n",
    "negative.npz": lying((-2,)), "many.npz": lying((2,) * 60),
}  # fmt: skip
CASES = [
    *COMMANDS, *options(),
    *(["sweep", "student", "--grid", grid] for grid in GRIDS),
    *(["run", "student", "--data", name] for name in [*FILES, "missing.npz", ".", "a\0b.csv"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def held(folder):
    """Every file below a folder with its content, and every folder."""
    found = sorted(folder.rglob("*"))
    return [(path, path.read_bytes() if path.is_file() else None) for path in found]


def refused(folder, arguments, capsys):
    before = held(folder)
    capsys.readouterr()
    assert call(*arguments) == 2
    said = capsys.readouterr()
    assert re.fullmatch(r"mirrorode: [^\n]+\n", said.err)
    assert re.search(r"`[^`]+` must|`\w+` needs|every option must|the command must", said.err)
    assert said.out == ""
    assert held(folder) == before


def test_there_are_over_two_hundred():
    assert len({tuple(case) for case in CASES}) > 200


@pytest.mark.parametrize("arguments", CASES, ids=lambda it: ascii(" ".join(it))[:60])
def test_refused(home, monkeypatch, capsys, arguments):
    monkeypatch.chdir(home)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("mirrorode.experiment.cluster.PATIENCE", 1)
    refused(home, arguments, capsys)


@pytest.fixture(scope="module")
def stored_run(tmp_path_factory):
    """A folder with one small run."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small = ["--neurons", "3", "--samples", "8", "--limit", "2", "--rtol", "1e-3"]
        assert call("run", "student", *small) == 0
    return folder


DAMAGED = {
    "gone": None, "empty": b"", "null": b"null", "list": b"[]", "text": b"{",
    "nested": b"[" * 10**5,
    "other": b'{"scenario": "student"}', "binary": b"\xff\xfe\x00", "number": b"1e999",
}  # fmt: skip


@pytest.mark.parametrize("name", ["run.json", "trajectory.npz"])
@pytest.mark.parametrize("content", DAMAGED.values(), ids=list(DAMAGED))
def test_damaged_runs(stored_run, monkeypatch, capsys, name, content):
    """Refused by what reads them; that there are other files is told by the listing."""
    monkeypatch.chdir(stored_run)
    (path,) = stored_run.glob(f"runs/students-*/*/{name}")
    whole = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    try:
        refused(stored_run, ["check", "student"], capsys)
        refused(stored_run, ["figures"], capsys)
        if not (name == "run.json" and content is None):  # a trajectory alone is one to be checked
            refused(stored_run, ["check", str(path.parent)], capsys)
        assert call("list", "--runs", "--json") == 0
        states = [row["state"] for row in json.loads(capsys.readouterr().out)]
        assert states == ["complete", "damaged"]
    finally:
        path.write_bytes(whole)
    assert call("check", "student") == 0


@pytest.mark.parametrize("content", DAMAGED.values(), ids=list(DAMAGED))
def test_damaged_settings(stored_run, monkeypatch, capsys, content):
    """What a scenario was drawn with last cannot be read."""
    monkeypatch.chdir(stored_run)
    path = stored_run / "runs/student/drawn/run.json"
    whole = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    try:
        refused(stored_run, ["check", "student"], capsys)
        refused(stored_run, ["figures", "student"], capsys)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "fields_",
    [{"nothing": 1}, {"lam": "x"}, {"lam": None}, {"neurons": 2.5}, {"seed": -1}, {"limit": []}],
)
def test_settings_of_another_kind(stored_run, monkeypatch, capsys, fields_):
    """Signed as if they had been written so."""
    monkeypatch.chdir(stored_run)
    path = stored_run / "runs/student/drawn/run.json"
    whole = path.read_bytes()
    told = json.loads(whole)
    told["configuration"] |= fields_
    store.write(path.parent, told)
    try:
        refused(stored_run, ["check", "student"], capsys)
    finally:
        path.write_bytes(whole)
