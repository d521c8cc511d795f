"""What every step does first: flags, threads, device.

torch is loaded by the functions that need it: that takes a second, in which detect.py begins to
read.
"""

import argparse
import contextlib
import ctypes
import functools
import gc
import os
import sys
import types
from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import ThreadpoolController, threadpool_limits

import config
from pipeline import settings
from pipeline.errors import UserError

TRACING = "torch._meta_registrations"
LOWEST = {"threads": 0, "seed": 0, "repeats": 1, "copies": 1}    # of the scripts' flags
M_TRIM_THRESHOLD = -1         # malloc.h of glibc
M_MMAP_THRESHOLD = -3
KEPT_BLOCK = 1 << 25          # 32 MB: the most that every version of glibc takes
KEPT_FREE = 1 << 29           # 512 MB of free memory are kept ...
USUALLY_FREE = 1 << 17        # ... 128 kB where nothing is said


def stage_parser(description):
    """Parser with the flags of training and evaluation; `description` is the script's docstring."""
    parser = machine_parser(description)
    parser.add_argument("--protocol", choices=config.PROTOCOLS, default=config.PROTOCOL)
    parser.add_argument("--seed",
                        type=int,
                        default=config.SEED,
                        help="another seed, another checkpoint file")
    return parser


def machine_parser(description):
    """Parser of a script that goes over both protocols: which data, where to, on what."""
    settings.check()  # a wrong setting is told before a wrong flag

    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    add_database(parser)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: cuda where there is one")
    parser.add_argument("--threads", type=int, default=config.THREADS, help="0: one a core")
    return parser


def add_database(parser):
    """The flags that say which data and which run."""
    parser.add_argument("--database", default=config.DATABASE, choices=list(config.DATABASES),
                        help="one that config.py describes [%(default)s]")
    parser.add_argument("--run",
                        metavar="NAME",
                        help="keep what is made in runs/NAME, apart from what is shipped")


def parse(parser, argv):
    """Parsed flags, with numbers below the lowest refused."""
    args = parser.parse_args(argv)

    for name, lowest in LOWEST.items():
        if getattr(args, name, lowest) < lowest:
            parser.error(f"--{name} is a whole number from {lowest}")
    return args


def prepare(args):
    """(Database, torch.device) for the flags, threads set."""
    name = args.device or best_device()
    # each process of torchrun on a machine has a GPU of its own
    several = name == "cuda" and launched() > 1
    device = device_of(f"cuda:{os.environ['LOCAL_RANK']}" if several else name)
    use_threads(args.threads or cores())
    return settings.database(args.database, args.run), device


def use_threads(n):
    """So many threads for torch and for numpy's and scikit-learn's matrix products, which have
    pools of their own.

    With another number of them a product is summed in another order and the last digits differ.
    """
    import torch

    # torch has a pool of its own, beside that of the BLAS which numpy and scikit-learn share
    torch.set_num_threads(n)
    threadpool_limits(n)
    keep_memory()


def slices(n, size):
    """Slices of `size` that cover n rows: the parts of a large array, one at a time or in threads.
    """
    return [slice(start, start + size) for start in range(0, n, size)]


def in_threads(function, items):
    """Call function(item) of each item, as many at a time as `use_threads` has set for torch; for
    functions of large arrays, during which other threads run.

    Each has the products of numpy and torch to itself: what one thread does is the same in any
    number, and none waits for another at each layer of a network.
    """
    import torch

    threads = torch.get_num_threads()
    if threads == 1 or len(items) < 2:
        for item in items:
            function(item)
        return

    try:
        with pools().limit(limits=1, user_api="blas"), ThreadPoolExecutor(
                threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            # an error comes out where its result is taken
            for _ in pool.map(function, items):
                pass
    finally:
        # what one thread sets is the number that later ones begin with
        torch.set_num_threads(threads)


@functools.cache
def pools():
    """The pools of threads of the libraries that are loaded; to look for them takes 5 ms."""
    return ThreadpoolController()


def keep_memory():
    """Tell the C library to keep freed memory for the next array instead of giving it back to
    the system.

    A batch's arrays of 6 to 24 MB are freed and asked for again at every step, and the system then
    hands over and clears each of their pages anew: 20,000 page faults a training step, a tenth to a
    third of its time, and a fifth of that of reading a recording. Arrays above KEPT_BLOCK still go
    back at once. Only glibc has these settings; elsewhere nothing changes.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_FREE)


def give_memory_back():
    """Give the system what `keep_memory` kept and nothing uses, and from now on at once."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_TRIM_THRESHOLD, USUALLY_FREE)
        library.malloc_trim(0)


def best_device():
    """"cuda" where there is a GPU, else "cpu"."""
    import torch
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_of(name):
    """torch.device, sure to be usable here."""
    import torch

    # a name that torch knows may still be a device that this machine lacks
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {name}: {str(error).splitlines()[0]}. Use --device cpu.") from error
    return device


@contextlib.contextmanager
def importing():
    """Libraries are imported in this block: of the half a million objects that torch is made of
    none is garbage, and to look for some takes a quarter of the time.

    Nothing is frozen: among what is there when a recording begins is the last one's figure.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def leave_out_tracing():
    """Have torch loaded, in a process that is the project's alone, without the shapes that
    torch.compile and torch.export ask for: a fifth of the time of loading it.

    Where they are not at this place nothing changes.
    """
    if "torch" not in sys.modules:
        sys.modules.setdefault(TRACING, types.ModuleType(TRACING))


# --- the processes of torchrun --------------------------------------------------------------------

def launched():
    """Processes that torchrun has started, whether they have found each other yet or not."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first():
    """Whether this process is the one that prints and writes."""
    return int(os.environ.get("RANK", 0)) == 0


def cores():
    """Cores of this machine for this process."""
    return max(1, os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
