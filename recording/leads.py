"""Every lead of a recording: how each is asked for, and what its files are called."""

import re

from pipeline.errors import UserError
from recording.reader import lead_index

CHARACTERS = 40        # of a lead's name in the names of its files


def file_names(leads):
    """What the files of each lead are called after NAME: only letters, digits, _, + and -, each
    once even where a disk does not tell upper from lower case.
    """
    names = []
    for k, lead in enumerate(leads):
        name = re.sub(r"[^A-Za-z0-9+-]+", "_", lead).strip("_")[:CHARACTERS] or "lead"

        # of the same name twice, the second has its number
        taken = {other.casefold() for other in names}
        while name.casefold() in taken:
            name += f"_{k + 1}"
        names.append(name)
    return names


def requests(recording):
    """What asks for each lead: its number, or its name where another lead is called by that number.

    Raises UserError for a lead that neither means.
    """
    result = []
    for k, name in enumerate(recording.leads):
        means = [text for text in (str(k + 1), name) if lead_index(recording, text) == k]
        if not means:
            raise UserError(f"{recording.path}: lead {k + 1} cannot be asked for: another one is "
                            f"called {k + 1}, and one before it {name!r} too. Rename the leads.")
        result.append(means[0])
    return result
