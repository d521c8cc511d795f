"""Saved results as they are read, and rows of strings as text and as Markdown."""

import json

from pipeline.errors import UserError


def percent(figure, digits=2):
    """"97.21" of 0.9721, or "n/a"."""
    return "n/a" if figure is None else f"{100 * figure:.{digits}f}"


def aligned(rows):
    """Rows of strings as text columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
            for row in rows]


def markdown(rows):
    """Rows of strings as a Markdown table, the first its heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def load_result(database, name, command):
    """results/<name>.json; UserError naming the command if it is missing or damaged."""
    path = database.root / "results" / name
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing. Make it with: python {command}") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}). Make it again with: python {command}") from error
