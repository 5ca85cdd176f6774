"""Runs programs, holds what becomes of them against `spec/invariants.md`, and shrinks those that break an invariant."""

from collections.abc import Callable
from dataclasses import dataclass

from crio_core.errors import LocalError
from crio_core.sim.at_rest import AtRest
from crio_core.sim.inspector import Inspector
from crio_core.sim.players import Players
from crio_core.sim.profiles import FAULTS
from crio_core.sim.programs import Action, Program
from crio_core.sim.simulation import Simulation


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a program showed: `problems` name the invariant each, `calls` and `steps` count."""

    problems: tuple[str, ...]
    calls: int
    steps: int


def run_program(program: Program, *, watch: Callable[[Simulation], None] | None = None) -> Verdict:
    """Run a program, then its end, and judge it."""
    sim = Simulation(program.seed, faults=FAULTS[program.faults])
    players = Players(sim)
    inspector = Inspector(sim, players)
    if watch is not None:
        watch(sim)
    try:
        for action in program.actions:
            players.act(action)
        AtRest(inspector).finish()
    except (LocalError, AssertionError, KeyError, AttributeError, TypeError, ValueError, IndexError) as error:
        inspector.problems.append(f"I14: the core broke down: {type(error).__name__}: {error}")
    return Verdict(problems=tuple(inspector.problems), calls=len(sim.calls), steps=sim.steps)


def shrink(program: Program, *, runs_max: int = 400) -> Program:
    """A smaller program that breaks an invariant of the same number, found by leaving actions out."""
    kinds = {problem.partition(":")[0] for problem in run_program(program).problems}

    def fails(actions: list[Action]) -> bool:
        verdict = run_program(Program(seed=program.seed, faults=program.faults, actions=tuple(actions)))
        return any(problem.partition(":")[0] in kinds for problem in verdict.problems)

    actions = list(program.actions)
    size = max(len(actions) // 2, 1)
    runs = 0
    while size >= 1 and runs < runs_max:
        start = 0
        while start < len(actions) and runs < runs_max:
            runs += 1
            without = actions[:start] + actions[start + size :]
            if fails(without):
                actions = without
            else:
                start += size
        size //= 2
    return Program(seed=program.seed, faults=program.faults, actions=tuple(actions))
