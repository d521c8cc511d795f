"""How a script ends."""

import subprocess
import sys

import pytest

from pipeline import settings


@pytest.mark.parametrize("raised, status, said", [
    ("pass", 0, ""), ("raise errors.UserError('mend it')", 1, "error: mend it\n"),
    ("raise KeyboardInterrupt", 130, "stopped; finished files are kept\n")])
def test_a_script_ends_at_once_but_not_before_others_have_put_away(raised, status, said):
    """What was registered before and after, and a thread that still works."""
    code = f"""
import atexit, sys, threading, time
atexit.register(print, "first")
from pipeline import errors
atexit.register(print, "second")
def work():
    time.sleep(0.3)
    print("thread")
def main():
    if len(sys.argv) > 1:
        threading.Thread(target=work).start()
    print("main")
    {raised}
errors.run(main)
"""
    for arguments, lines in (([], "main second first"), (["x"], "main thread second first")):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=settings.ROOT,
                              capture_output=True, text=True)
        assert done.stdout.split() == lines.split()
        assert (done.returncode, done.stderr) == (status, said)
