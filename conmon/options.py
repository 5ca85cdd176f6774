"""The command line of conmon 2.1: options into one object.

Written by hand because `argparse` costs more memory and start-up time than the rest of the monitor. The grammar is
the one that conmon's callers rely on: `--name value`, `--name=value`, short options alone or joined, `--` ends the
options, and words that belong to no option are ignored (`--api-version 1` has relied on that for years).
"""

FLAG, TEXT, NUMBER, MANY = "flag", "text", "number", "many"

_SPECIFICATION: tuple[tuple[str, str, str], ...] = (
    ("api-version", "", FLAG),
    ("bundle", "b", TEXT),
    ("cid", "c", TEXT),
    ("conmon-pidfile", "P", TEXT),
    ("container-pidfile", "p", TEXT),
    ("cuuid", "u", TEXT),
    ("exec", "e", FLAG),
    ("exec-attach", "", FLAG),
    ("exec-process-spec", "", TEXT),
    ("exit-command", "", TEXT),
    ("exit-command-arg", "", MANY),
    ("exit-delay", "", NUMBER),
    ("exit-dir", "", TEXT),
    ("full-attach", "", FLAG),
    ("help", "h", FLAG),
    ("leave-stdin-open", "", FLAG),
    ("log-global-size-max", "", NUMBER),
    ("log-level", "", TEXT),
    ("log-line-max", "", NUMBER),
    ("log-path", "l", MANY),
    ("log-size-max", "", NUMBER),
    ("log-tag", "", TEXT),
    ("name", "n", TEXT),
    ("no-new-keyring", "", FLAG),
    ("no-pivot", "", FLAG),
    ("no-sync-log", "", FLAG),
    ("persist-dir", "0", TEXT),
    ("replace-listen-pid", "", FLAG),
    ("restore", "", TEXT),
    ("runtime", "r", TEXT),
    ("runtime-arg", "", MANY),
    ("runtime-opt", "", MANY),
    ("sdnotify-socket", "", TEXT),
    ("seccomp-notify-plugins", "", TEXT),
    ("seccomp-notify-socket", "", TEXT),
    ("socket-dir-path", "", TEXT),
    ("stdin", "i", FLAG),
    ("sync", "", FLAG),
    ("syslog", "", FLAG),
    ("systemd-cgroup", "s", FLAG),
    ("terminal", "t", FLAG),
    ("timeout", "T", NUMBER),
    ("version", "", FLAG),
)
_OLD_NAMES = {"pidfile": "container-pidfile", "restore-arg": "runtime-opt"}
_KINDS = {name: kind for name, _, kind in _SPECIFICATION}
_SHORT = {letter: name for name, letter, _ in _SPECIFICATION if letter}
LOG_LEVELS = ("error", "fatal", "panic", "warn", "warning", "info", "debug", "trace")
SOCKET_DIR = "/var/run/crio"


class UsageError(Exception):
    """The command line is wrong; the text says what is expected."""


class Options:
    """What one monitor was asked to do; the attributes are the options of `crio-conmon --help`."""

    api_version: int = 0
    bundle: str = ""
    cid: str = ""
    conmon_pidfile: str = ""
    container_pidfile: str = ""
    cuuid: str = ""
    exec: bool = False
    exec_attach: bool = False
    exec_process_spec: str = ""
    exit_command: str = ""
    exit_command_arg: tuple[str, ...] = ()
    exit_delay: int = 0
    exit_dir: str = ""
    full_attach: bool = False
    help: bool = False
    leave_stdin_open: bool = False
    log_global_size_max: int = 0
    log_level: str = "warn"
    log_line_max: int = 0
    log_path: tuple[str, ...] = ()
    log_size_max: int = 0
    log_tag: str = ""
    name: str = ""
    no_new_keyring: bool = False
    no_pivot: bool = False
    no_sync_log: bool = False
    persist_dir: str = ""
    replace_listen_pid: bool = False
    restore: str = ""
    runtime: str = ""
    runtime_arg: tuple[str, ...] = ()
    runtime_opt: tuple[str, ...] = ()
    sdnotify_socket: str = ""
    seccomp_notify_plugins: str = ""
    seccomp_notify_socket: str = ""
    socket_dir_path: str = SOCKET_DIR
    stdin: bool = False
    sync: bool = False
    syslog: bool = False
    systemd_cgroup: bool = False
    terminal: bool = False
    timeout: int = 0
    version: bool = False


def parse(words: list[str]) -> Options:
    """Read the words after the program's name.

    Raises:
        UsageError: A name is unknown, a value is missing or not a number.
    """
    options = Options()
    left = words[::-1]
    while left:
        word = left.pop()
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            _take(options, _OLD_NAMES.get(name, name), value if equals else None, left, word)
        elif len(word) > 1 and word[0] == "-":
            _take_short(options, word, left)
    return options


def _take_short(options: Options, word: str, left: list[str]) -> None:
    at = 1
    while at < len(word):
        name = _SHORT.get(word[at])
        if name is None:
            raise UsageError(f"Unknown option -{word[at]}")
        at += 1
        if _KINDS[name] != FLAG:
            _take(options, name, word[at:] or None, left, f"-{word[at - 1]}")
            return
        _take(options, name, None, left, word)


def _take(options: Options, name: str, value: str | None, left: list[str], shown: str) -> None:
    kind = _KINDS.get(name)
    field = name.replace("-", "_")
    if kind is None:
        raise UsageError(f"Unknown option {shown}")
    if kind == FLAG:
        if value is not None:
            raise UsageError(f"Option {shown} takes no value")
        setattr(options, field, 1 if name == "api-version" else True)
        return
    if value is None:
        if not left:
            raise UsageError(f"Missing argument for {shown}")
        value = left.pop()
    if kind == NUMBER:
        number = _number(value)
        if number is None:
            raise UsageError(f"Cannot parse integer value {value!r} for {shown}")
        setattr(options, field, number)
    elif kind == MANY:
        setattr(options, field, (*getattr(options, field), value))
    else:
        setattr(options, field, value)


def _number(text: str) -> int | None:
    """A number as strtol(3) reads it with base 0: 16, 020 and 0x10 are the same; None when it is none of 32 bits."""
    digits = text.lstrip()
    sign = -1 if digits[:1] == "-" else 1
    digits = digits[1:] if digits[:1] in ("-", "+") else digits
    base = 16 if digits[:2].lower() == "0x" else 8 if digits[:1] == "0" else 10
    if not digits.isalnum() or not digits.isascii():
        return None  # what int() takes besides: spaces and underscores
    try:
        number = sign * int(digits, base)
    except ValueError:
        return None
    return number if -(2**31) <= number < 2**31 else None


def check(options: Options, cwd: str) -> None:
    """Refuse what cannot work, and fill in what follows from the rest.

    Args:
        cwd: The working directory, which is the bundle when none is named.

    Raises:
        UsageError: Options are missing or contradict each other.
    """
    if not options.cid:
        raise UsageError("Container ID not provided. Use --cid")
    if options.restore and options.exec:
        raise UsageError("Cannot use 'exec' and 'restore' at the same time")
    if options.exec_attach and not options.exec:
        raise UsageError("Attach can only be specified with exec")
    if options.exec_attach and options.api_version < 1:
        raise UsageError("Attach can only be specified for a non-legacy exec session")
    if not options.cuuid and (not options.exec or options.api_version >= 1):
        raise UsageError("Container UUID not provided. Use --cuuid")
    if not options.runtime:
        raise UsageError("Runtime path not provided. Use --runtime")
    if options.exec and not options.exec_process_spec:
        raise UsageError("Exec process spec path not provided. Use --exec-process-spec")
    if options.log_level.lower() not in LOG_LEVELS:
        raise UsageError(f"No such log level {options.log_level}")
    if options.exit_delay < 0:
        raise UsageError("Delay before invoking exit command must be greater than or equal to 0")
    if options.seccomp_notify_socket or options.seccomp_notify_plugins:
        raise UsageError("seccomp notify plugins are libraries made for conmon in C; this monitor cannot load them")
    if not options.log_path:
        raise UsageError("Log driver not provided. Use --log-path")
    if not options.bundle and not options.exec:
        options.bundle = cwd
    if not options.container_pidfile:
        options.container_pidfile = f"{cwd}/pidfile-{options.cid}"


def help_text() -> str:
    """The options, one a line."""
    lines = ["Usage:", "  crio-conmon [OPTION…]", "", "Options:"]
    for name, letter, kind in _SPECIFICATION:
        short = f"-{letter}, " if letter else "    "
        lines.append(f"  {short}--{name}{'' if kind == FLAG else ' ' + kind.upper()}")
    return "\n".join(lines) + "\n"
