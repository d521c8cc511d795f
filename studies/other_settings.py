"""config.py with other values for a while: how a study trains what config.py does not describe."""

from contextlib import contextmanager

import config


@contextmanager
def other_settings(**values):
    """Give config.py these values, and its own again at the end, also after an error.

    Raises AttributeError, and changes nothing, for a name that is no setting.
    """
    before = {name: getattr(config, name) for name in values}
    vars(config).update(values)
    try:
        yield
    finally:
        vars(config).update(before)
