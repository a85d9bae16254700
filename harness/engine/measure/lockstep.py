"""One's turn on a device that another process uses, too: `lorebench ab` lets two revisions update in turns.

Where `VARIABLE` names a socket, each update after the metered ones waits there for a word. So two processes
meet the same moods of a machine, within fractions of a second, and neither is timed while the other works.
Who answers is `harness/ab/schedule.py`; where nobody does, nothing waits.
"""

from __future__ import annotations

import os
import socket

VARIABLE = "LOREBENCH_TURNS"
ASK, GO = b"?", b"!"
#: What a record says of a run that had its turn for every update, from the first that asked to the end.
FLAG = "in_turns"


class Turn:
    """Waits for one's turn; asking for the next one gives the last one back.

    `flags` are for the record, and empty unless every turn was granted and the one who grants them was there
    to the end: a run that went on without may have been timed while another worked.
    """

    def __init__(self, place: str | None = None) -> None:
        self._socket: socket.socket | None = None
        self._place = os.environ.get(VARIABLE) if place is None else place
        self.flags: dict[str, str | bool | int] = {}

    def wait(self) -> None:
        """Return when the next update may begin; at once where nobody gives turns, or not any more."""
        if not self._place:
            return
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._socket.connect(self._place)
            self._socket.sendall(ASK)
            if self._socket.recv(1) == GO:
                return
        except OSError:
            pass
        self._close()

    def end(self) -> None:
        """Give the last turn back and ask for no other."""
        if self._socket is not None and _is_open(self._socket):
            self.flags = {FLAG: True}
        self._close()

    def _close(self) -> None:
        self._place = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _is_open(connection: socket.socket) -> bool:
    """Whether the other end of a connection, which has nothing to say now, is still there."""
    try:
        connection.recv(1, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
