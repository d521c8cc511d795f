"""A second process, which reads a recording ahead while this one runs the network, and draws while
this one writes.

    with ReadingAhead() as second:
        with second.open_recording(path) as recording:       # a Recording, from now on as any other
            for result in recording.each(work, items):       # the next one is made meanwhile
                ...

Reading, filtering and finding R peaks take half as long as the network does, and the libraries of
either as long to load as those of the other. It is asked one thing after the other and answers in
this order. It ends when this process does, whatever ends that.
"""

import collections
import contextlib
import functools
import itertools
import multiprocessing
import pickle
import signal
import sys

from threadpoolctl import threadpool_limits

from pipeline.errors import UserError
from pipeline.runtime import give_memory_back, importing, keep_memory
from recording.cluster import place_of
from recording.output import load_picture
from recording.pieces import load_libraries
from recording.reader import Recording, load_reader, open_recording

AHEAD = 2     # questions put before the answer to the first is taken
PATIENCE_S = 1   # with a process that is at something when nobody waits for it any more, or that
                 # asks for nothing more
# forked it begins at once; on a Mac libraries of the system do not bear it
METHOD = "fork" if sys.platform == "linux" else "spawn"
LOST = ("the process that reads the recording was killed, out of memory perhaps. Run it again with "
        "--threads 1: then there is none.")


class ReadingAhead:
    """The second process, from the first recording on until the end of a `with` block."""

    def __init__(self):
        self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop()

    def start(self, path=None):
        """Start it, to load what reads the recording at `path`; nothing where it runs already."""
        if self.process and self.process.is_alive():
            return

        self.stop()
        context = multiprocessing.get_context(METHOD)
        self.connection, there = context.Pipe()
        self.process = context.Process(target=serve, args=(there, self.connection, path),
                                       daemon=True)
        self.process.start()
        there.close()
        self.numbers = itertools.count()
        self.answers = {}       # {number of a question: (whether it went well, answer)}
        self.open_questions = 0

    def stop(self):
        """End it, whatever it does; what it has in the temporary folder goes if it gives up soon.
        """
        if self.process:
            self.connection.close()
            self.process.join(PATIENCE_S)
            self.process.kill()
            self.process.join()
            self.process = None

    @contextlib.contextmanager
    def open_recording(self, path, fs_hz=None):
        """`reader.open_recording`, there."""
        self.start(path)
        try:
            described = self.wait(self.ask(_open, path, fs_hz))
            yield RecordingThere(path, described, self)
        finally:
            # left in the middle: nobody waits for its answers any more
            if self.open_questions:
                self.stop()
            else:
                self.wait(self.ask(_close))
                self.answers.clear()

    def ask(self, function, *args):
        """Number of the question what function(opened, *args) gives there; opened: a dict that
        holds its "recording".
        """
        number = next(self.numbers)
        self.open_questions += 1
        try:
            self.connection.send((function, args))
        except OSError as error:
            raise UserError(LOST) from error
        return number

    def wait(self, number):
        """The answer to a question, or the error that it raised."""
        while number not in self.answers:
            try:
                given, well, answer = self.connection.recv()
            except (EOFError, OSError) as error:
                raise UserError(LOST) from error
            self.open_questions -= 1
            self.answers[given] = well, answer

        well, answer = self.answers.pop(number)
        if not well:
            raise answer
        return answer


class RecordingThere(Recording):
    """A Recording that is open in the second process."""

    def __init__(self, path, described, second):
        vars(self).update(described)
        self.path = path
        self._second = second

    def read(self, lead_index, start, stop):
        return self._second.wait(self._second.ask(_read, lead_index, start, stop))

    def each(self, work, items, *args):
        asked = collections.deque()
        items = iter(items)

        def ask(most):
            for item in itertools.islice(items, most):
                asked.append(self._second.ask(_work, work, item, args))

        def answers():
            while asked:
                yield self._second.wait(asked.popleft())
                ask(1)

        ask(1 + AHEAD)    # at once, not when the first answer is taken
        return answers()

    def later(self, work, *args):
        return functools.partial(self._second.wait, self._second.ask(_do, work, args))

    def close(self):
        """The process closes it."""


# --- what it does ---------------------------------------------------------------------------------

def serve(connection, other_end, path):
    """Answer questions until nobody is there to put them."""
    # Ctrl-C reaches both: the first process says what is to be said, and ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    other_end.close()   # a copy of its own, which would keep the line open for ever

    # while the first process loads the network's library
    with importing():
        load_libraries()
        if path is not None:
            load_reader(path)
    threadpool_limits(1)
    keep_memory()

    opened = {"recording": None}
    for number in itertools.count():
        try:
            function, args = connection.recv()
        except (EOFError, OSError):
            return

        try:
            answer = number, True, function(opened, *args)
        except Exception as error:
            # where it was does not travel with it
            error.place = place_of(error)
            answer = number, False, sendable(error)
        with contextlib.suppress(BrokenPipeError):
            connection.send(answer)

        # all is read that was asked for: what draws is loaded while the first process scores, and
        # what it needs for its scores is not held here
        if function is _work and not connection.poll():
            load_picture()
            if not connection.poll(PATIENCE_S):
                give_memory_back()


def sendable(error):
    """The error, or one that says the same where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _open(opened, path, fs_hz):
    opened["recording"] = open_recording(path, fs_hz)
    described = vars(opened["recording"])
    return {name: described[name] for name in described if not name.startswith("_")}


def _close(opened):
    if opened["recording"]:
        opened["recording"].close()
    opened["recording"] = None


def _read(opened, *args):
    return opened["recording"].read(*args)


def _work(opened, work, item, args):
    return work(opened["recording"], item, *args)


def _do(opened, work, args):
    return work(*args)
