"""requirements.lock is that of requirements.txt: `make lock` is run after a version was changed."""

import re

from pipeline.settings import ROOT

PINNED = re.compile(r"(?m)^([a-z0-9._-]+)(?:\[[a-z,]+\])?==([^ \n]+)")


def test_every_requirement_is_locked_by_hashes_of_the_index():
    wanted = dict(PINNED.findall((ROOT / "requirements.txt").read_text()))
    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    locked = {}
    for entry in entries:
        if entry.startswith("#"):
            continue
        (name, version), = PINNED.findall(entry)
        locked.setdefault(name, set()).add(version)
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), name
    assert len(wanted) > 15
    for name, version in wanted.items():
        assert locked[name] == {version}, f"{name}: run make lock"

    # of the index alone: neither a path of one machine nor an address
    assert not re.search(r"file:|https?:|^/|--(index|find)", text, re.M)
