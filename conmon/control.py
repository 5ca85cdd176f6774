"""The control FIFO `ctl` and the window size FIFO `winsz`: lines of numbers, parsed without I/O.

`ctl` takes `1 <rows> <columns>` to resize the terminal and `2 0 0` to reopen the logs; `winsz` takes `<rows> <columns>`
(conmon 2.1). What is not such a line is skipped, and so is a line longer than `LINE_BYTES_MAX`.
"""

from conmon.value import Value

LINE_BYTES_MAX = 200
WINDOW_SIDE_MAX = 1000
RESIZE, REOPEN = 1, 2


class Resize(Value):
    """Give the terminal this many rows and columns."""

    __slots__ = ("columns", "rows")

    def __init__(self, rows: int, columns: int) -> None:
        self.rows = rows
        self.columns = columns


class ReopenLogs(Value):
    """Open the log files again, under the names that they have."""


class ControlLines:
    """Collects bytes and gives the orders in them.

    Args:
        typed: Lines start with the kind of the order, as on `ctl`; without it each line is a window size.
    """

    __slots__ = ("_pending", "_skipping", "_typed")

    def __init__(self, *, typed: bool) -> None:
        self._typed = typed
        self._pending = b""
        self._skipping = False

    @property
    def resting(self) -> bool:
        """No line has begun."""
        return not self._pending and not self._skipping

    def feed(self, data: bytes) -> tuple[Resize | ReopenLogs, ...]:
        *lines, rest = (self._pending + data).split(b"\n")
        if lines and self._skipping:
            del lines[0]
            self._skipping = False
        if len(rest) > LINE_BYTES_MAX:
            rest, self._skipping = b"", True
        self._pending = b"" if self._skipping else rest
        parsed = (self._parse(line) for line in lines)
        return tuple(order for order in parsed if order is not None)

    def _parse(self, line: bytes) -> Resize | ReopenLogs | None:
        words = line.split()
        if len(words) != (3 if self._typed else 2) or not all(word.isdigit() and len(word) <= 4 for word in words):
            return None
        numbers = [int(word) for word in words]
        kind = numbers.pop(0) if self._typed else RESIZE
        rows, columns = numbers
        if rows > WINDOW_SIDE_MAX or columns > WINDOW_SIDE_MAX:
            return None
        if kind == RESIZE:
            return Resize(rows, columns)
        return ReopenLogs() if kind == REOPEN else None
