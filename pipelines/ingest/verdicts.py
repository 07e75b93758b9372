"""What an audit found, in sentences: only what would spoil a study, each with what it does to it."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.contracts import EXCLUDED
from pipelines.ingest.shortcuts import FACTS, SHORTCUT_AUC


def verdicts(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The sentences, from the fields of an `Audit`."""
    found = (*_splits(facts), *_copies(facts), *_shortcuts(facts), *_unread(facts))
    return found or ("Nothing was found that would spoil a study.",)


def _splits(facts: Mapping[str, Any]) -> Iterator[str]:
    for split, labels in facts["splits"].items():
        if len(labels) == 1 and split != EXCLUDED:
            yield f"{split} holds only {next(iter(labels))}: nothing can be learned or evaluated on it."
    if facts["shared_patients"]:
        yield f"{facts['shared_patients']} patients have films in two splits: results would be too good."


def _copies(facts: Mapping[str, Any]) -> Iterator[str]:
    if facts["copies_across"]:
        yield f"{facts['copies_across']} groups of identical files lie in two splits or have two labels."
    if facts["near_copies_across"]:
        yield f"{facts['near_copies_across']} groups of films that show the same image lie in two splits."
    if facts["label_conflicts"]:
        yield f"{facts['label_conflicts']} groups of films that show the same image have two labels."


def _shortcuts(facts: Mapping[str, Any]) -> Iterator[str]:
    for fact, value in facts["shortcuts"].items():
        if value >= SHORTCUT_AUC:
            yield (
                f"{FACTS[fact]} alone separates the classes (AUC {value}):"
                " a model may learn how the films were made, not the disease."
            )
    border = facts["probes"].get("border", {})
    if (value := border.get("before") or 0) >= SHORTCUT_AUC:
        yield (
            f"The border of the films alone separates the classes (AUC {value});"
            f" {border['after']} of films from prepare --harmonise. Some of that is anatomy."
        )


def _unread(facts: Mapping[str, Any]) -> Iterator[str]:
    if facts["problems"]:
        yield f"{sum(facts['problems'].values())} files cannot be read."
    if facts["films_unread"]:
        told = ", ".join(f"{reason} {films}" for reason, films in facts["films_unread"].items())
        yield f"Of the films looked at, {sum(facts['films_unread'].values())} could not be read: {told}."
    if facts["problems"] is None:
        yield "Duplicates, broken files, image sizes: not checked; make the catalogue with --inspect."
