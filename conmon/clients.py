"""Who is owed which output, and for whom the container waits: the bookkeeping of the attach socket, without I/O.

A client takes what it can; the rest is queued. One that is owed more than `QUEUE_BYTES_MAX` is behind, and the
container's output is not read while somebody is: a client that is a little slow loses nothing. How long it may hold the
others is bounded by a credit of `HOLD_NS` that is spent while it is behind and earned back at a tenth of the time in
which it keeps up. Whoever has spent it is let go, however busily it takes one packet after the other.

Where nothing else keeps the output (an exec, a container without a log) the clients are all its readers: while every
one of them is behind, the wait costs none of them anything.

At the end every client that is owed something has `STALL_NS` without progress and `END_NS` in all.

A client may write input and leave before the container has taken it. That is kept for `INPUT_NS` and then lost: a
container that never reads would else keep the client's place, and its monitor at work, for ever.

Times are nanoseconds of the monotonic clock, and never run backwards.
"""

QUEUE_BYTES_MAX = 256 * 1024
PACKET_BYTES = 8192  # clients of conmon read with a buffer of this size and one byte
HOLD_NS = 1_000_000_000
EARN = 10  # time to keep up for each unit of credit
STALL_NS = 10_000_000_000
END_NS = 60_000_000_000
INPUT_NS = 60_000_000_000


class Debt:
    """What one client is owed: whole packets, the oldest first."""

    __slots__ = ("credit_ns", "moved_ns", "packets", "queued_bytes")

    def __init__(self, now_ns: int) -> None:
        self.packets: list[bytes] = []
        self.queued_bytes = 0
        self.credit_ns = HOLD_NS
        self.moved_ns = now_ns

    @property
    def behind(self) -> bool:
        return self.queued_bytes > QUEUE_BYTES_MAX


class Clients:
    """All clients of one container, by numbers that the caller gives them.

    Args:
        patient: Nothing else keeps the output.
    """

    __slots__ = ("_ended_ns", "_gone", "_patient", "_settled_ns", "debts")

    def __init__(self, *, patient: bool) -> None:
        self._patient = patient
        self._ended_ns = 0
        self._settled_ns = 0
        self._gone: dict[int, int] = {}
        self.debts: dict[int, Debt] = {}

    def join(self, number: int, now_ns: int) -> None:
        """A client is there and gets what comes from now on."""
        self._settle(now_ns)
        self.debts[number] = Debt(now_ns)

    def leave(self, number: int, now_ns: int) -> None:
        """A client takes nothing more; one that left before is no error."""
        self._settle(now_ns)
        self.debts.pop(number, None)
        self._gone.pop(number, None)

    def leave_input(self, number: int, now_ns: int) -> None:
        """A client is gone, and the container has not taken its input: that counts from the first time on."""
        self._settle(now_ns)
        self.debts.pop(number, None)
        self._gone.setdefault(number, now_ns + INPUT_NS)

    def end(self, now_ns: int) -> None:
        """The container has ended: from now on any debt counts."""
        self._settle(now_ns)
        self._ended_ns = now_ns
        for debt in self.debts.values():
            debt.moved_ns = now_ns

    def give(self, stream: int, data: bytes, now_ns: int) -> None:
        """Owe output to every client, in packets of the stream's number and at most `PACKET_BYTES`."""
        self._settle(now_ns)
        mark = bytes((stream,))
        packets = [mark + data[at : at + PACKET_BYTES] for at in range(0, len(data), PACKET_BYTES)]
        for debt in self.debts.values():
            if not debt.packets:
                debt.moved_ns = now_ns
            elif debt.packets[-1][:1] == mark and len(debt.packets[-1]) + len(data) <= PACKET_BYTES + 1:
                # Small writes share a packet, so that the number of packets is bounded as well.
                debt.packets[-1] += data
                debt.queued_bytes += len(data)
                continue
            debt.packets += packets
            debt.queued_bytes += len(data)

    def took(self, number: int, count: int, now_ns: int) -> None:
        """A client has got this many of its packets."""
        self._settle(now_ns)
        debt = self.debts[number]
        if count:
            debt.moved_ns = now_ns
            debt.queued_bytes -= sum(map(len, debt.packets[:count])) - count
            del debt.packets[:count]

    @property
    def holding(self) -> bool:
        """The container's output is to wait."""
        return any(debt.behind for debt in self.debts.values())

    @property
    def owing(self) -> bool:
        """Some client has not got everything yet."""
        return any(debt.packets for debt in self.debts.values())

    def deadline_ns(self) -> int:
        """When `overdue` has to be asked next, or 0."""
        limits_ns = [*map(self._limit_ns, self.debts.values()), *self._gone.values()]
        return min((at_ns for at_ns in limits_ns if at_ns), default=0)

    def overdue(self, now_ns: int) -> tuple[int, ...]:
        """The clients to be let go."""
        self._settle(now_ns)
        late = [number for number, debt in self.debts.items() if 0 < self._limit_ns(debt) <= now_ns]
        return (*late, *(number for number, limit_ns in self._gone.items() if limit_ns <= now_ns))

    def _limit_ns(self, debt: Debt) -> int:
        """When this client has had its time, or 0 while none is counted."""
        if self._ended_ns:
            return min(debt.moved_ns + STALL_NS, self._ended_ns + END_NS) if debt.packets else 0
        return self._settled_ns + debt.credit_ns if debt.behind and self._counting else 0

    @property
    def _counting(self) -> bool:
        """Whether to be behind costs credit now: somebody else wants the output."""
        return not self._patient or not all(debt.behind for debt in self.debts.values())

    def _settle(self, now_ns: int) -> None:
        """Bring every credit up to now."""
        passed_ns, self._settled_ns = now_ns - self._settled_ns, now_ns
        if not self.debts:
            return
        counting = self._counting
        for debt in self.debts.values():
            if not debt.behind:
                debt.credit_ns = min(debt.credit_ns + passed_ns // EARN, HOLD_NS)
            elif counting:
                debt.credit_ns = max(debt.credit_ns - passed_ns, 0)
