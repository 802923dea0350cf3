"""The states of AdaMerging in the journal of a run."""

from __future__ import annotations

from dataclasses import asdict

from pydantic import TypeAdapter

from dppa_mergekit.adamerging.states import State
from dppa_mergekit.storage.journal import Entry, Journal

_STATE = TypeAdapter(State)


class StateJournal:
    """Keeps states in a journal: a `StateStore`."""

    def __init__(self, journal: Journal) -> None:
        """Keep states in an open journal."""
        self._journal = journal

    def states(self) -> list[State]:
        """Return the states in the journal."""
        return [_STATE.validate_python(entry) for entry in self._journal.entries if "step" in entry]

    def add(self, state: State) -> None:
        """Write one more state to the journal."""
        self._journal.add(state_entry(state))


def state_entry(state: State) -> Entry:
    """Return a state as plain data, as journal and run record hold it."""
    return asdict(state)
