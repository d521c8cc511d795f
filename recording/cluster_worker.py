"""The part of cluster.py that runs on a dask worker: it brings in the project's other files.

cluster.py sends this file and a zip of the rest there, so that workers need the libraries only. It
imports nothing of the project itself, since that is not there yet.
"""

import importlib
import importlib.metadata
import os
import pickle
import platform
import sys
import threading
import zipfile

ARCHIVE = "ecg-"               # how names of the project's zips begin; the digest of their content follows
_importing = globals().get("_importing") or threading.Lock()  # one for good: the file is loaded anew by each client


def run(archive, files, task, item):
    """cluster.attempt of a pickled task on an item, with the project's modules from the zip `archive`.

    files: {path on the client: name here} of what else was sent; cluster.local says where it lies.
    """
    from distributed import get_worker
    folder = get_worker().local_directory
    with _importing:
        bring_in(os.path.join(folder, archive))
        cluster = importlib.import_module("cluster")
        cluster.SENT.update({path: os.path.join(folder, name) for path, name in files.items()})
        task = pickle.loads(task)
    return cluster.attempt(task, item)


def bring_in(archive):
    """Make the zip's modules those that are imported, in place of the same ones from anywhere else.

    A worker outlives its clients: config.py may have been edited since the last one came.
    """
    if sys.path[0] == archive:
        return
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            sys.modules.pop(name.removesuffix(".py"), None)
    sys.path[:] = [archive, *(path for path in sys.path if not os.path.basename(path).startswith(ARCHIVE))]
    importlib.invalidate_caches()


def versions(packages):
    """{name: version} of Python and of packages, without what names the build (2.13.0+cpu), "none" where missing."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found
