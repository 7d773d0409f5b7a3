"""How a job at the server ends, and what every site is told of it; also without room for a note."""

import errno
import threading
from types import SimpleNamespace

import pytest

from medveil.connect.coordinator_program import _led
from medveil.connect.leading import ReturnedError
from medveil.errors import ConfigError, InterruptedRunError, TooFewSitesError

TOO_FEW = TooFewSitesError("Too few", got="site-2: its own words", expected="2", remedy="mend it")
ENDED = InterruptedRunError("Ended from outside", remedy="submit again")


class Leader:
    is_final, fruitless = False, 0

    def __init__(self, error, *, full):
        self.error, self.full = error, full
        self.notes, self.farewells = [], []
        self.events = SimpleNamespace(note=self.note)

    def note(self, text):
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.notes.append(text)

    def lead(self):
        if self.error is not None:
            raise self.error

    def wait(self, _seconds):
        pass

    def close(self, reason):
        self.farewells.append(reason)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("error", "aborted", "ending", "farewell"),
    [
        (None, False, "done", "the run is done"),
        (ReturnedError("goes on with site-2"), False, "again", "goes on with site-2"),
        (TOO_FEW, False, "again", "Too few: mend it"),
        (ConfigError("Wrong sites", got="3", remedy="correct it"), False, "failed", "Wrong sites: correct it"),
        (ENDED, True, "again", "Ended from outside"),
        (OSError(errno.ENOSPC, "No space"), False, "again", "the server cannot use a file of its own"),
    ],
)
def test_every_site_is_told_and_the_run_goes_on_where_it_can(error, aborted, ending, farewell, full):
    leader, abort = Leader(error, full=full), threading.Event()
    if aborted:
        abort.set()
    assert _led(SimpleNamespace(abort=abort), leader) == ending
    (told,) = leader.farewells
    assert told.startswith(farewell)
    assert "its own words" not in told
    assert bool(leader.notes) == (error is not None and not full)
    assert all(note.startswith("The run is over") == (ending == "failed") for note in leader.notes)


def test_a_defect_is_told_without_its_text():
    leader = Leader(ValueError("SECRET"), full=False)
    with pytest.raises(ValueError, match="SECRET"):
        _led(SimpleNamespace(abort=threading.Event()), leader)
    assert leader.farewells == ["the server met an unexpected error; its own log says which"]
