"""The record of a sweep: what is printed of it, and how it is read again; without torch."""

from __future__ import annotations

import dataclasses
import importlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...platforms.tuning import ChosenTuning, Tuning
from .rows import Row, Score, provenance, ranked, source, swept

FILE = "tune.json"
"""What the archive of `python -m xkv report` calls it."""

Record = dict[str, Any]


class RecordError(ValueError):
    """A file that is no record; the message names it and what is wrong."""


def entry(name: str, base: Row, stages: tuple[Mapping[Row, Mapping[str, float]], ...]) -> Record:
    """What a record keeps of a class: the row in use, and the times of each row in each stage."""
    listed = [[{"row": dataclasses.asdict(row), "us": dict(us)} for row, us in x.items()] for x in stages]
    return {"class": name, "base": dataclasses.asdict(base), "stages": listed}


def _row(fields: dict[str, Any]) -> Row:
    return ChosenTuning(**fields) if "whole_rows" in fields else Tuning(**fields)


def _scores(of: Record) -> list[Score]:
    """The rows of the last stage, best first."""
    return ranked({_row(each["row"]): each["us"] for each in of["stages"][-1]})


def best(of: Record, record: Record) -> Row:
    """The best row of a class, with its provenance.

    Args:
        of: what `entry` made of the class.
        record: the sweep's record, which names the GPU, the versions and the date.
    """
    score = _scores(of)[0]
    return dataclasses.replace(score.row, provenance=provenance(score, record, record["date"]))


def table(of: Record) -> str:
    """All rows of the last stage of a class, best first."""
    scores, base = _scores(of), _row(of["base"])
    fields = swept(base)
    lines = [["*" * (s.row == base), *(getattr(s.row, x) for x in fields), *s[1:]] for s in scores]
    text: str = importlib.import_module("tabulate").tabulate(
        lines, ["", *fields, "of best", "most", "at"], floatfmt=".3f"
    )
    return f"\n{of['class']}: {len(of['stages'][0])} rows, then {len(scores)}; * is in use\n{text}"


def end(record: Record) -> Iterator[str]:
    """What is printed below the tables: the rows as source, and what was left out."""
    yield "\n"
    for row in record["rows"]:
        yield source(_row(row))
    for what in record["left_out"]:
        yield f"left out: {what}"


def write(record: Record, file: Path) -> None:
    """Writes a record as JSON."""
    file.write_text(json.dumps(record, indent=1) + "\n")


def read(file: Path) -> tuple[Record, list[str]]:
    """Reads what `write` wrote, alone or in a report's archive.

    The best rows are found anew from the times.

    Args:
        file: the record, or the archive.

    Returns:
        The record, and the table of each class.

    Raises:
        RecordError: it is neither.
        OSError: it cannot be read.
    """
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                text = archive.read(FILE).decode()
        else:
            text = file.read_text()
        record: Record = json.loads(text)
        record["rows"] = [dataclasses.asdict(best(each, record)) for each in record["classes"]]
        tables = [table(each) for each in record["classes"]]
        for name in ("left_out", "wrong"):
            record[name] = list(map(str, record[name]))
    except zipfile.BadZipFile as error:
        raise RecordError(f"{file}: a damaged archive: {error}") from error
    except KeyError as error:
        raise RecordError(f"{file}: not a sweep's record: there is no {error}") from error
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise RecordError(f"{file}: not a sweep's record: {error}") from error
    return record, tables
