"""Stop signals: the CRI's enum, an image's text and Linux's numbers (signal(7), the numbering of x86 and ARM)."""

import re

from crio_core.cri import ContainerConfig, Signal
from crio_core.errors import invalid
from crio_core.image.config import ImageConfig

SIGTERM = 15
SIGKILL = 9
_RTMIN, _RTMAX = 34, 64  # as the C library has them: it keeps the first two of the kernel's for itself

_NUMBERS: dict[str, int] = {
    "HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9, "USR1": 10,
    "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "CHLD": 17, "CONT": 18, "STOP": 19,
    "TSTP": 20, "TTIN": 21, "TTOU": 22, "URG": 23, "XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28,
    "IO": 29, "PWR": 30, "SYS": 31, "RTMIN": _RTMIN, "RTMAX": _RTMAX,
    "IOT": 6, "CLD": 17, "POLL": 29,
}  # fmt: skip
_OFFSET = re.compile(r"(RTMIN\+|RTMAX-)([0-9]{1,2})")


def parse_signal(field: str, text: str) -> int:
    """A signal's number from `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`, in any case.

    Raises:
        OperationError: no signal of Linux is called so.
    """
    name = text.strip().upper().removeprefix("SIG")
    if name.isascii() and name.isdigit() and len(name) <= 2 and 1 <= int(name) <= _RTMAX:
        return int(name)
    if name in _NUMBERS:
        return _NUMBERS[name]
    if found := _OFFSET.fullmatch(name):
        offset = int(found[2])
        number = _RTMIN + offset if found[1] == "RTMIN+" else _RTMAX - offset
        if _RTMIN <= number <= _RTMAX:
            return number
    raise invalid(field, text[:64], "a signal such as SIGTERM, TERM, 15 or SIGRTMIN+3")


def _words(signal: Signal) -> str:
    return signal.name.removeprefix("SIGNAL_").replace("MINPLUS", "MIN+").replace("MAXMINUS", "MAX-")


_OF_CRI: dict[Signal, int] = {
    signal: parse_signal("stop_signal", _words(signal)) for signal in Signal if signal.value != 0
}
_TO_CRI: dict[int, Signal] = {
    # The first member of a number wins, except for the aliases that Linux lists second.
    number: signal
    for signal, number in reversed(_OF_CRI.items())
    if signal not in (Signal.SIGNAL_SIGCLD, Signal.SIGNAL_SIGIOT, Signal.SIGNAL_SIGPOLL)
}


def stop_signal(config: ContainerConfig, image: ImageConfig) -> int:
    """The number of the signal that asks the container to stop: the request's, else the image's, else SIGTERM.

    Raises:
        OperationError: the image's text is no signal.
    """
    if config.stop_signal is not Signal.SIGNAL_RUNTIME_DEFAULT:
        return _OF_CRI[config.stop_signal]
    return parse_signal("stop signal of the image", image.stop_signal) if image.stop_signal else SIGTERM


def cri_signal(number: int) -> Signal:
    """The CRI's word for a number, as ContainerStatus shows it; RUNTIME_DEFAULT for one that it has no word for."""
    return _TO_CRI.get(number, Signal.SIGNAL_RUNTIME_DEFAULT)
