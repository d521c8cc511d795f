"""Errors that a user can mend, and how a script ends with one line instead of a traceback."""

import sys


class UserError(RuntimeError):
    """Something the user can mend: the message names the thing, what was expected and the
    remedy."""

    exit_status = 1


class Unreachable(UserError):
    """No source of the real data delivered anything: `make` then goes on with simulated data."""

    exit_status = 3


def run(main):
    """Run a script: a UserError or a full disk becomes one line on stderr and its exit status."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        # the reader of our output, `head` for example, has left
        sys.stderr.close()
    except OSError as error:
        sys.exit(f"error: {error.filename or 'file system'}: {error.strerror or error}. "
                 "Free space on the disk or choose a folder that can be written; "
                 "files written before are whole.")
    except KeyboardInterrupt:
        print("stopped; finished files are kept", file=sys.stderr)
        sys.exit(130)
