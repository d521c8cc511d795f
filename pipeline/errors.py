"""Errors that a user can mend, and how a script ends with one line instead of a traceback."""

import atexit
import contextlib
import os
import sys
import threading

MOST = 300


class UserError(RuntimeError):
    """Something the user can mend: the message names the thing, what was expected and the
    remedy."""

    exit_status = 1


class Unreachable(UserError):
    """No source of the real data delivered anything: `make` then goes on with simulated data."""

    exit_status = 3


def said(error):
    """What an error says, as one line of at most MOST characters.

    A library's message may hold as much of a damaged file as it likes.
    """
    line = " ".join(printable(str(error)).split())
    return line if len(line) <= MOST else f"{line[:MOST]}..."


def printable(text):
    """The text with ? for what would move the cursor of a terminal; its lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def run(main):
    """Run a script: a UserError or a full disk becomes one line on stderr and its exit status."""
    status = 0
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        status = error.exit_status
    except BrokenPipeError:
        # the reader of our output, `head` for example, has left
        sys.stderr.close()
    except OSError as error:
        print(f"error: {error.filename or 'file system'}: {error.strerror or error}. "
              "Free space on the disk or choose a folder that can be written; "
              "files written before are whole.", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("stopped; finished files are kept", file=sys.stderr)
        status = 130

    if main.__module__ == "__main__":
        leave(status)
    if status:
        sys.exit(status)


def leave(status):
    """End the process now: to take torch apart, object by object, takes half a second.

    What libraries have to put away at the end they do; where threads run, the interpreter waits for
    them and ends as always.
    """
    if any(thread is not threading.main_thread() and not thread.daemon
           for thread in threading.enumerate()):
        return

    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
