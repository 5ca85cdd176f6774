"""Attached clients: each gets every byte in order or is let go, and none can hold the container beyond its credit."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from conmon.clients import EARN, END_NS, HOLD_NS, INPUT_NS, PACKET_BYTES, QUEUE_BYTES_MAX, STALL_NS, Clients

READ_BYTES = 65536
STDOUT, STDERR = 2, 3
SECOND_NS = 1_000_000_000
STEPS_NS = st.sampled_from((1, SECOND_NS // 1000, SECOND_NS // 3, 3 * SECOND_NS, 60 * SECOND_NS))


class Reader:
    """A client as it should see things: the bytes of each stream that it was meant to get, and those that it got."""

    def __init__(self) -> None:
        self.meant = {STDOUT: b"", STDERR: b""}
        self.got = {STDOUT: b"", STDERR: b""}


class Sharing(RuleBasedStateMachine):
    """A container that writes whenever nobody holds it, and clients that take when they like."""

    patient = False

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = SECOND_NS
        self.began_ns = self.now_ns
        self.clients = Clients(patient=self.patient)
        self.readers: dict[int, Reader] = {}
        self.gone_ns: dict[int, int] = {}
        self.joined = 0
        self.held_ns = 0
        self.ended_ns = 0
        self.written = 0

    def numbers(self) -> list[int]:
        return sorted(self.readers)

    def pass_time(self, step_ns: int) -> None:
        """As the loop does: sleep until the next deadline, let go, and go on."""
        end_ns = self.now_ns + step_ns
        while self.now_ns < end_ns:
            deadline_ns = self.clients.deadline_ns()
            until_ns = min(end_ns, max(deadline_ns, self.now_ns)) if deadline_ns else end_ns
            behind = [debt.behind for debt in self.clients.debts.values()]
            if any(behind) and not (self.patient and all(behind)) and not self.ended_ns:
                self.held_ns += until_ns - self.now_ns
            self.now_ns = until_ns
            for number in self.clients.overdue(self.now_ns):
                self.clients.leave(number, self.now_ns)
                if number in self.gone_ns:
                    assert self.now_ns == self.gone_ns.pop(number) + INPUT_NS
                else:
                    del self.readers[number]

    @rule()
    def join(self) -> None:
        self.joined += 1
        self.readers[self.joined] = Reader()
        self.clients.join(self.joined, self.now_ns)

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.numbers()))
        self.clients.leave(number, self.now_ns)
        del self.readers[number]

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def leave_input(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.numbers()))
        self.clients.leave_input(number, self.now_ns)
        self.gone_ns[number] = self.now_ns
        del self.readers[number]

    @precondition(lambda self: self.gone_ns)
    @rule(data=st.data(), whole=st.booleans())
    def read_input(self, data: st.DataObject, whole: bool) -> None:
        """The container takes some, and the next packet of it waits again; or all."""
        number = data.draw(st.sampled_from(sorted(self.gone_ns)))
        if whole:
            self.clients.leave(number, self.now_ns)
            del self.gone_ns[number]
        else:
            self.clients.leave_input(number, self.now_ns)

    @precondition(lambda self: not self.ended_ns and not self.clients.holding)
    @rule(
        stream=st.sampled_from((STDOUT, STDERR)),
        size=st.sampled_from((1, 100, PACKET_BYTES, PACKET_BYTES + 1, READ_BYTES)),
        times=st.integers(1, 8),
    )
    def write(self, stream: int, size: int, times: int) -> None:
        for _ in range(times):
            if self.clients.holding:
                return
            self.written += 1
            data = (b"%d " % self.written * size)[:size]
            self.clients.give(stream, data, self.now_ns)
            for reader in self.readers.values():
                reader.meant[stream] += data

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), count=st.integers(0, 40))
    def take(self, data: st.DataObject, count: int) -> None:
        number = data.draw(st.sampled_from(self.numbers()))
        packets = self.clients.debts[number].packets[:count]
        for packet in packets:
            assert 1 < len(packet) <= PACKET_BYTES + 1
            self.readers[number].got[packet[0]] += packet[1:]
        self.clients.took(number, len(packets), self.now_ns)

    @rule(step_ns=STEPS_NS)
    def wait(self, step_ns: int) -> None:
        self.pass_time(step_ns)

    @rule(times=st.integers(1, 12))
    def drip(self, times: int) -> None:
        """Everybody takes one packet now and then: progress is not a reason to wait."""
        for _ in range(times):
            self.pass_time(SECOND_NS // 4)
            for number in self.numbers():
                packets = self.clients.debts[number].packets[:1]
                for packet in packets:
                    self.readers[number].got[packet[0]] += packet[1:]
                self.clients.took(number, len(packets), self.now_ns)

    @precondition(lambda self: not self.ended_ns)
    @rule()
    def end(self) -> None:
        self.clients.end(self.now_ns)
        self.ended_ns = self.now_ns

    @invariant()
    def nobody_is_owed_more_than_the_bound_and_one_read(self) -> None:
        for debt in self.clients.debts.values():
            assert debt.queued_bytes == sum(len(packet) - 1 for packet in debt.packets)
            assert debt.queued_bytes <= QUEUE_BYTES_MAX + READ_BYTES

    @invariant()
    def every_byte_arrives_once_and_in_order(self) -> None:
        for number, reader in self.readers.items():
            owed = {STDOUT: b"", STDERR: b""}
            for packet in self.clients.debts[number].packets:
                owed[packet[0]] += packet[1:]
            assert all(reader.got[stream] + owed[stream] == reader.meant[stream] for stream in owed)

    @invariant()
    def all_clients_together_hold_the_container_no_longer_than_their_credit(self) -> None:
        """Also a client that takes one packet after the other."""
        assert self.held_ns <= self.joined * (HOLD_NS + (self.now_ns - self.began_ns) // EARN)

    @invariant()
    def input_of_those_who_left_is_kept_for_its_time_and_no_longer(self) -> None:
        """Also when the container takes a little of it now and then; `overdue` names each before that."""
        assert all(self.now_ns < gone_ns + INPUT_NS for gone_ns in self.gone_ns.values())
        limits_ns = [gone_ns + INPUT_NS for gone_ns in self.gone_ns.values()]
        if limits_ns:
            assert 0 < self.clients.deadline_ns() <= min(limits_ns)
        if not self.readers:
            assert self.clients.deadline_ns() == min(limits_ns, default=0)

    @invariant()
    def nobody_is_waited_for_long_after_the_end(self) -> None:
        if self.ended_ns and self.now_ns >= self.ended_ns + END_NS:
            assert not self.clients.owing


class PatientSharing(Sharing):
    """The same for an exec, whose clients are its only readers."""

    patient = True


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=60, stateful_step_count=30)
TestPatientSharing = PatientSharing.TestCase
TestPatientSharing.settings = settings(max_examples=60, stateful_step_count=30)


def behind(clients: Clients, now_ns: int) -> None:
    """Write until somebody holds it."""
    while not clients.holding:
        clients.give(STDOUT, b"x" * READ_BYTES, now_ns)


def test_only_reader_is_waited_for_as_long_as_it_likes() -> None:
    """`exec` into a pager: nothing is lost while a person reads the first page."""
    clients = Clients(patient=True)
    clients.join(1, 0)
    behind(clients, 0)
    assert clients.deadline_ns() == 0
    assert clients.overdue(3600 * SECOND_NS) == ()
    clients.join(2, 3600 * SECOND_NS)
    assert clients.deadline_ns() == 3600 * SECOND_NS + HOLD_NS
    assert clients.overdue(3600 * SECOND_NS + HOLD_NS) == (1,)


def test_client_that_holds_the_container_again_and_again_uses_up_its_credit() -> None:
    """A slow client over weeks: what it may cost is a tenth of the time, and not one second in its life."""
    clients = Clients(patient=False)
    clients.join(1, 0)
    now_ns = 0
    for _ in range(20):
        behind(clients, now_ns)
        now_ns += HOLD_NS // 2
        assert clients.overdue(now_ns) == ()
        clients.took(1, len(clients.debts[1].packets), now_ns)
        now_ns += HOLD_NS // 2 * EARN
    behind(clients, now_ns)
    assert clients.deadline_ns() == now_ns + HOLD_NS


def test_client_that_takes_nothing_after_the_end_is_let_go_before_one_that_takes_slowly() -> None:
    """The exit command waits for both, and for neither without end."""
    clients = Clients(patient=True)
    clients.join(1, 0)
    clients.join(2, 0)
    behind(clients, 0)
    clients.end(SECOND_NS)
    clients.took(2, 1, 2 * SECOND_NS)
    assert clients.deadline_ns() == SECOND_NS + STALL_NS
    assert clients.overdue(SECOND_NS + STALL_NS) == (1,)
    clients.leave(1, SECOND_NS + STALL_NS)
    for number in range(2, 7):
        clients.took(2, 1, number * 9 * SECOND_NS)
    assert clients.overdue(SECOND_NS + END_NS) == (2,)
