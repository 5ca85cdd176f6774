"""The monitor's own words: to stderr while there is one, and to syslog when asked."""

import os

from conmon.sync import write_file


class Diagnostics:
    """Warnings of one monitor.

    Args:
        cid: The container's id, shown before each message.
        level: The least important level to show; warnings are left out above `warn`.
        syslog: Also write to syslog(3); its module is loaded with the first message.
    """

    __slots__ = ("_cid", "_quiet", "_syslog")

    def __init__(self, cid: str, *, level: str, syslog: bool) -> None:
        self._cid = cid
        self._quiet = level.lower() in ("error", "fatal", "panic")
        self._syslog = syslog

    def warn(self, message: str) -> None:
        """Say what went wrong without ending the monitor."""
        if not self._quiet:
            self._put("w", "warning", message)

    def error(self, message: str) -> None:
        """Say why the monitor ends."""
        self._put("e", "error", message)

    def write_file(self, path: str, data: bytes) -> None:
        """Replace a file in one step, or say why it is as it was."""
        try:
            write_file(path, data)
        except OSError as error:
            self.warn(f"{path}: {error.strerror}")

    def _put(self, letter: str, word: str, message: str) -> None:
        line = " ".join(message.split("\n")).strip()
        try:
            os.write(2, f"[conmon:{letter}]: {line}\n".encode(errors="replace"))
        except OSError:
            self._syslog = self._syslog and bool(line)  # nobody reads stderr; syslog may still be there
        if self._syslog:
            import syslog

            priority = syslog.LOG_ERR if letter == "e" else syslog.LOG_WARNING
            syslog.syslog(priority, f"conmon {self._cid[:20]} <{word}>: {line}")
