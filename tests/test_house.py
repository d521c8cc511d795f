"""The rooms: who imports whom, how much a step loads, how long lines and files are."""

import ast
import subprocess
import sys

import pytest

from pipeline.settings import ROOT

ROOMS = ("pipeline", "scoring", "recording", "scaling", "studies")
TOP = {
    "config.py", "preprocess.py", "models.py", "dataset.py", "train_mitbih.py", "evaluate.py",
    "visualize.py", "detect.py"
}
# the floor of each room and top-level module: it imports from its own and lower ones only
FLOORS = {
    "config": 1, "preprocess": 1, "pipeline": 2, "models": 3, "dataset": 3, "scoring": 3,
    "train_mitbih": 4, "visualize": 4, "recording": 4, "evaluate": 5, "detect": 5, "scaling": 5,
    "studies": 6
}
FILES = sorted(path for room in ("", *ROOMS) for path in (ROOT / room).glob("*.py"))
PAGES = [*FILES, *sorted((ROOT / "tests").glob("*.py"))]


def name_of(path):
    """"pipeline.errors" of its file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports_of(path):
    """Names of the project's modules that a file imports, inside functions too."""
    known = {name_of(other) for other in FILES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & known


def test_the_top_level_is_the_one_that_was_asked_for():
    assert {path.name for path in ROOT.glob("*.py")} == TOP


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_only_rooms_below_it(path):
    floor = FLOORS[name_of(path).split(".")[0]]
    for other in imports_of(path):
        assert FLOORS[other.split(".")[0]] <= floor, f"{name_of(path)} imports {other}"


def test_there_is_no_circle():
    waiting = {name_of(path): imports_of(path) for path in FILES}
    while waiting:
        ready = [name for name, needs in waiting.items() if not needs & waiting.keys()]
        assert ready, f"a circle among {sorted(waiting)}"
        for name in ready:
            del waiting[name]


@pytest.mark.parametrize("module, most", [("dataset", 7), ("train_mitbih", 12), ("evaluate", 19),
                                          ("detect", 40)])
def test_a_step_loads_few_modules(module, most):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    loaded = set(done.stdout.split()) & {name_of(path) for path in FILES}
    assert len(loaded) <= most, loaded
    # each takes up to a second, in which a second process should already read
    if module == "detect":
        assert not set(done.stdout.split()) & {
            "torch", "scipy.ndimage", "scipy.signal", "sleepecg", "matplotlib", "pandas", "sklearn",
            "wfdb", "bokeh", "joblib"}
    # beats are scored without it, baselines fitted with it
    if module == "evaluate":
        assert "sklearn" not in done.stdout.split()
    if module != "detect":
        assert not {name.split(".")[0] for name in loaded} & {"recording", "scaling", "studies"}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_page_can_be_read_in_one_sitting(path):
    lines = path.read_text().split("\n")
    assert len(lines) <= 401, f"{len(lines)} lines"
    assert [k for k, line in enumerate(lines, 1) if len(line) > 100] == []
