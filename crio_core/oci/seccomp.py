"""System call filters (runtime-spec, linux.seccomp): the built-in profile, and profiles in the files of a node.

The built-in profile lists what ordinary programs need; everything else answers EPERM. Left out are calls that reach
past the container (kernel keys, modules, clocks, mounts, other namespaces), and those whose code has broken most often
(io_uring, userfaultfd, AF_ALG and AF_VSOCK sockets). Some come back with the capability that guards them anyway.
"""

from collections.abc import Mapping
from typing import Any

from crio_core.errors import invalid

RULES_MAX = 4096
NAMES_MAX = 4096
_EPERM, _ENOSYS = 1, 38

_ALLOWED_NAMES = (
    # Files and directories
    "access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 "
    "fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 "
    "fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync "
    "ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat ioctl lchown lchown32 lgetxattr "
    "link linkat listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat "
    "mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 "
    "pwritev pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename renameat renameat2 "
    "rmdir sendfile sendfile64 setxattr setxattrat splice stat stat64 statfs statfs64 statx symlink symlinkat sync "
    "sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes "
    "vmsplice write writev file_getattr file_setattr "
    # Waiting for events
    "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd "
    "eventfd2 inotify_add_watch inotify_init inotify_init1 inotify_rm_watch poll ppoll ppoll_time64 pselect6 "
    "pselect6_time64 select _newselect signalfd signalfd4 timerfd_create timerfd_gettime timerfd_gettime64 "
    "timerfd_settime timerfd_settime64 io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup "
    "io_submit "
    # Memory
    "brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap "
    "mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect "
    "process_madvise process_mrelease remap_file_pages "
    # Processes and threads
    "arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait "
    "futex_waitv futex_wake get_robust_list get_thread_area getcpu getpgid getpgrp getpid getppid getpriority "
    "getrlimit getrusage getsid gettid kill modify_ldt nanosleep pause pidfd_open pidfd_send_signal prctl prlimit64 "
    "process_vm_readv process_vm_writev ptrace restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask "
    "rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo "
    "sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler "
    "sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam "
    "sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address set_tls setitimer "
    "setpgid setpriority setrlimit setsid sigaction sigaltstack signal sigpending sigprocmask sigreturn sigsuspend "
    "tgkill times tkill ugetrlimit uname vfork wait4 waitid waitpid cacheflush breakpoint "
    "riscv_flush_icache landlock_add_rule landlock_create_ruleset landlock_restrict_self uretprobe "
    # Identity
    "getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid "
    "getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 "
    "setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32 "
    # Time: adjtimex without CAP_SYS_TIME can only read
    "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 "
    "clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday time timer_create timer_delete timer_getoverrun "
    "timer_gettime timer_gettime64 timer_settime timer_settime64 "
    # Networks
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 "
    "recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketpair "
    # System V and POSIX communication
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 "
    "mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget "
    # The rest
    "getrandom ioprio_get ioprio_set sysinfo"
)
_ALLOWED = tuple(_ALLOWED_NAMES.split())

# What a capability brings back. The kernel asks for the capability too; without it the call is not even reached.
_WITH_CAPABILITY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("CAP_BPF", ("bpf",)),
    ("CAP_DAC_READ_SEARCH", ("open_by_handle_at",)),
    ("CAP_PERFMON", ("perf_event_open",)),
    (
        "CAP_SYS_ADMIN",
        (
            "bpf", "clone", "clone3", "fanotify_init", "fanotify_mark", "fsconfig", "fsmount", "fsopen", "fspick",
            "listmount", "lookup_dcookie", "mount", "mount_setattr", "move_mount", "open_tree", "open_tree_attr",
            "perf_event_open", "pivot_root", "quotactl", "quotactl_fd", "setdomainname", "sethostname", "setns",
            "statmount", "syslog", "umount", "umount2", "unshare",
        ),
    ),
    ("CAP_SYS_BOOT", ("reboot",)),
    ("CAP_SYS_CHROOT", ("chroot",)),
    ("CAP_SYS_MODULE", ("delete_module", "finit_module", "init_module")),
    ("CAP_SYS_NICE", ("get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node")),
    ("CAP_SYS_PACCT", ("acct",)),
    ("CAP_SYS_PTRACE", ("kcmp", "pidfd_getfd")),
    ("CAP_SYS_RAWIO", ("ioperm", "iopl")),
    ("CAP_SYS_TIME", ("clock_settime", "clock_settime64", "settimeofday", "stime")),
    ("CAP_SYS_TTY_CONFIG", ("vhangup",)),
    ("CAP_SYSLOG", ("syslog",)),
)  # fmt: skip

# All CLONE_NEW* flags that clone(2) takes. CLONE_NEWTIME shares its bit with the exit signal: clone cannot make it.
_CLONE_NEW = 0x7E020000
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, 32-bit, their uname26 forms, and the query
_AF_ALG, _AF_XDP = 38, 44  # families from AF_ALG on are for the kernel's ciphers, virtual machines and the like

# `uname -m` to the architectures that its programs are for. Another machine gets the compiler's own, by an empty list.
# Each costs the runtime 3 to 6 ms at every start and exec; x32 is left out, which no distribution runs programs for.
_ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
    "loongarch64": ("SCMP_ARCH_LOONGARCH64",),
}
# The same machines as profiles in the format of Docker and Podman call them.
_PROFILE_ARCHITECTURES: Mapping[str, str] = {"x86_64": "amd64", "aarch64": "arm64"}

_ACTIONS = frozenset(
    f"SCMP_ACT_{name}" for name in ("ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "LOG", "TRACE", "TRAP")
)
_OPERATORS = frozenset(f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))


def _argument(index: int, value: int, operator: str, second: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": second, "op": f"SCMP_CMP_{operator}"}


def _allow(*names: str, args: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": list(names), "action": "SCMP_ACT_ALLOW"}
    return rule | {"args": args} if args else rule


def default_profile(architecture: str, capabilities: frozenset[str]) -> dict[str, Any]:
    """The built-in profile for a machine and for what the container's bounding set holds.

    Args:
        architecture: As `uname -m` says it.
        capabilities: Names with CAP_.
    """
    names = list(_ALLOWED)
    # `socketcall`, by which 32-bit programs have their sockets, hides the family in memory. A filter's compiler lets
    # it make every socket as soon as `socket` is allowed at all; AppArmor's profile refuses those that matter.
    for capability, extra in _WITH_CAPABILITY:
        if capability in capabilities:
            names += extra
    rules = [
        _allow(*dict.fromkeys(names)),
        *(_allow("personality", args=[_argument(0, value, "EQ")]) for value in _PERSONALITIES),
        _allow("socket", args=[_argument(0, _AF_ALG, "LT")]),
        _allow("socket", args=[_argument(0, _AF_XDP, "EQ")]),
    ]
    if "CAP_SYS_ADMIN" not in capabilities:
        flags = 1 if architecture == "s390x" else 0  # s390 has the stack first
        rules.append(_allow("clone", args=[_argument(flags, _CLONE_NEW, "MASKED_EQ")]))
        # clone3 hides its flags in memory. "No such call" makes C libraries fall back to clone; EPERM would not.
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    profile: dict[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": _EPERM, "syscalls": rules}
    if architectures := _ARCHITECTURES.get(architecture):
        profile["architectures"] = list(architectures)
    return profile


def resolve_profile(profile: object, architecture: str, capabilities: frozenset[str]) -> dict[str, Any]:
    """A profile from a file, in the runtime-spec's format or in the wider one of Docker and Podman, made definite.

    `includes` and `excludes` are decided here, `archMap` becomes `architectures`, and nothing of the input is shared. A
    `minKernel` is taken as met: the kernels that it tells from others are older than any that this runtime runs on.

    Raises:
        OperationError: a part that is not what it should be, or one that would hand calls to a listener.
    """
    if not isinstance(profile, Mapping):
        raise invalid("seccomp profile", type(profile).__name__, "an object")
    if "listenerPath" in profile:
        raise invalid("seccomp profile: listenerPath", profile["listenerPath"], "a profile without a listener")
    found: dict[str, Any] = {"defaultAction": _action("defaultAction", profile.get("defaultAction"))}
    if isinstance(number := profile.get("defaultErrnoRet"), int):
        found["defaultErrnoRet"] = number
    if architectures := _architectures(profile, architecture):
        found["architectures"] = architectures
    if flags := profile.get("flags"):
        found["flags"] = _strings("flags", flags)
    rules = profile.get("syscalls") or []
    if not isinstance(rules, list) or len(rules) > RULES_MAX:
        raise invalid("seccomp profile: syscalls", type(rules).__name__, f"a list of at most {RULES_MAX} rules")
    syscalls = []
    for index, rule in enumerate(rules):
        if not isinstance(rule, dict):
            raise invalid(f"seccomp profile: syscalls[{index}]", rule, "an object")
        if _applies(rule, architecture, capabilities):
            syscalls.append(_rule(f"syscalls[{index}]", rule))
    found["syscalls"] = syscalls
    return found


def _action(member: str, value: object) -> str:
    if not isinstance(value, str) or value not in _ACTIONS:
        raise invalid(f"seccomp profile: {member}", value, f"one of {', '.join(sorted(_ACTIONS))}")
    return value


def _strings(member: str, value: object) -> list[str]:
    if not isinstance(value, list) or len(value) > NAMES_MAX or not all(isinstance(item, str) for item in value):
        raise invalid(f"seccomp profile: {member}", type(value).__name__, f"a list of at most {NAMES_MAX} strings")
    return list(value)


def _architectures(profile: Mapping[str, Any], architecture: str) -> list[str]:
    if "architectures" in profile:
        return _strings("architectures", profile["architectures"] or [])
    native = _ARCHITECTURES.get(architecture, ("",))[0]
    arch_map = profile.get("archMap") or []
    if not isinstance(arch_map, list):
        raise invalid("seccomp profile: archMap", type(arch_map).__name__, "a list")
    for entry in arch_map:
        if isinstance(entry, dict) and entry.get("architecture") == native:
            return [native, *_strings("archMap", entry.get("subArchitectures") or [])]
    return []


def _applies(rule: Mapping[str, Any], architecture: str, capabilities: frozenset[str]) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if not isinstance(includes, dict) or not isinstance(excludes, dict):
        raise invalid("seccomp profile: includes", rule.get("includes"), "an object")
    machine = _PROFILE_ARCHITECTURES.get(architecture, architecture)
    wanted = _strings("includes.arches", includes.get("arches") or [])
    if wanted and machine not in wanted:
        return False
    if machine in _strings("excludes.arches", excludes.get("arches") or []):
        return False
    if not capabilities.issuperset(_strings("includes.caps", includes.get("caps") or [])):
        return False
    return capabilities.isdisjoint(_strings("excludes.caps", excludes.get("caps") or []))


def _rule(member: str, rule: Mapping[str, Any]) -> dict[str, Any]:
    names = _strings(f"{member}.names", rule.get("names") or ([rule["name"]] if rule.get("name") else []))
    if not names:
        raise invalid(f"seccomp profile: {member}.names", names, "at least one name")
    found: dict[str, Any] = {"names": names, "action": _action(f"{member}.action", rule.get("action"))}
    if isinstance(number := rule.get("errnoRet"), int):
        found["errnoRet"] = number
    arguments = rule.get("args") or []
    if not isinstance(arguments, list) or len(arguments) > 6:
        raise invalid(f"seccomp profile: {member}.args", type(arguments).__name__, "a list of at most 6 conditions")
    if arguments:
        found["args"] = [_condition(f"{member}.args[{index}]", given) for index, given in enumerate(arguments)]
    return found


def _condition(member: str, given: object) -> dict[str, Any]:
    if not isinstance(given, dict) or given.get("op") not in _OPERATORS:
        raise invalid(f"seccomp profile: {member}", given, "a condition with an 'op' of SCMP_CMP_*")
    numbers = {key: given.get(key, 0) for key in ("index", "value", "valueTwo")}
    if not all(isinstance(number, int) and 0 <= number < 2**64 for number in numbers.values()) or numbers["index"] > 5:
        raise invalid(f"seccomp profile: {member}", given, "numbers of 64 bits, and an index from 0 to 5")
    return {**numbers, "op": given["op"]}
