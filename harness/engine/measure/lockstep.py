"""Take turns with another process on one device: `lorebench ab` interleaves the updates of two revisions.

If `VARIABLE` names a socket, each update after the metered ones waits there for permission. So both processes
meet the same state of the machine within fractions of a second, and neither is timed while the other works.
`harness/ab/lockstep.py` gives permission; without it nothing waits.
"""

from __future__ import annotations

import os
import socket

VARIABLE = "LOREBENCH_TURNS"
ASK, GO = b"?", b"!"
#: The flag in the record of a run that was interleaved from its first request to its end.
FLAG = "in_turns"


class Turn:
    """Waits for permission to update; requesting the next turn ends the last one.

    `flags` are for the record, and empty unless every turn was granted and the scheduler stayed to the end: a
    run that continued without may have been timed while another worked.
    """

    def __init__(self, place: str | None = None) -> None:
        self._socket: socket.socket | None = None
        self._place = os.environ.get(VARIABLE) if place is None else place
        self.flags: dict[str, str | bool | int] = {}

    def wait(self) -> None:
        """Return when the next update may begin; at once without a scheduler."""
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
        """End the last turn and request no other."""
        if self._socket is not None and _is_open(self._socket):
            self.flags = {FLAG: True}
        self._close()

    def _close(self) -> None:
        self._place = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _is_open(connection: socket.socket) -> bool:
    """Return whether the other end of a silent connection is still open."""
    try:
        connection.recv(1, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
