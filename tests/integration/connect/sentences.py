"""What the transport logs: sentences, without a traceback."""

import logging
import time


def logged(caplog, words, count=1):
    """Wait for a line of the server's log that says so; it says it in a sentence."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        found = [record for record in caplog.records if words in record.getMessage()]
        if len(found) >= count:
            break
        time.sleep(0.02)
    assert len(found) == count, caplog.text
    for record in found:
        assert (record.name, record.exc_info) == ("medveil.network", None)
        assert record.levelno >= logging.WARNING
        assert "\n" not in record.getMessage()
