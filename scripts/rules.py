"""The house rules that neither ruff, mypy nor import-linter can see.

- The core and the monitor import from an allow-list. The import contracts in pyproject.toml forbid what is known to be
  wrong, also through other modules; this list catches what nobody thought of forbidding.
- The core calls no builtin that reaches outside or differs between processes, and never takes the order of a set, which
  differs between processes too: the same events must give the same effects, in the same order, everywhere.
- A function is one thing: up to 70 lines, not counting a `match` that ends in `assert_never`, which is a table.
- A library that is imported is declared in pyproject.toml: what happens to be installed here is missing elsewhere.

`python -m scripts.rules` checks the tree and prints `path:line: what, and what to do instead`.
"""

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = ("crio_core", "crio_io", "crio_server", "conmon")
TOOLS = ("scripts", "examples", "bench")
PACKAGES = INSTALLED + TOOLS
GENERATED = Path("crio_server/cri/v1")
FUNCTION_LINES_MAX = 70

# A module here computes; none of them has a part that reads the clock, the system or the network when it is called. Of
# pathlib, datetime, uuid and logging only some names qualify: crio_core/ruff.toml bans the others one by one.
CORE_STDLIB = frozenset(
    {
        *("__future__", "abc", "base64", "binascii", "bisect", "collections", "contextlib", "copy", "dataclasses"),
        *("datetime", "difflib", "enum", "fnmatch", "functools", "hashlib", "heapq", "hmac", "ipaddress", "itertools"),
        *("json", "logging", "math", "operator", "pathlib", "re", "reprlib", "shlex", "string", "struct", "textwrap"),
        *("tomllib", "types", "typing", "unicodedata", "urllib.parse", "uuid", "warnings", "zlib"),
    }
)
# Of wsproto the frames alone: they compute, but for the mask of a client, which is random on the wire and nowhere else.
CORE_LIBRARIES = frozenset({"crio_core", "dataclasses_json", "orjson", "transitions", "wsproto.frame_protocol"})
MONITOR_LIBRARIES = frozenset({"conmon", "crio_core"})

BANNED_BUILTINS = {
    "__import__": "import at the top of the module",
    "breakpoint": "leave no debugger behind",
    "compile": "the core runs no code from data",
    "eval": "the core runs no code from data",
    "exec": "the core runs no code from data",
    "hash": "it differs between processes for text; compare values, or use hashlib",
    "id": "it differs between processes; give the thing an id of its own",
    "input": "what is read from outside arrives in events",
    "open": "files belong to crio_io; return an effect",
    "print": "output belongs to crio_server; return an effect",
}
# The methods of dataclasses, from the names of their fields: what the standard library does for them, only later.
COMPILERS = {"crio_core/values.py": "exec"}
ORDER_TAKERS = frozenset({"tuple", "list", "iter", "next", "enumerate", "zip", "map", "filter", "reversed"})


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Finding:
    """One broken rule at one place."""

    path: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of each absolute import, wherever in the module it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            if node.module == "urllib":
                yield from ((node.lineno, f"urllib.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def _is_allowed(module: str, allowed: frozenset[str]) -> bool:
    parts = module.split(".")
    return any(".".join(parts[:count]) in allowed for count in range(1, len(parts) + 1))


def check_imports(tree: ast.AST, path: str, allowed: frozenset[str], reason: str) -> Iterator[Finding]:
    """Each import that the allow-list does not name."""
    for line, module in imported_modules(tree):
        if not _is_allowed(module, allowed):
            yield Finding(path=path, line=line, what=f"imports {module}: {reason}")


def _is_set(node: ast.expr) -> bool:
    match node:
        case ast.Set() | ast.SetComp():
            return True
        case ast.Call(func=ast.Name(id="set" | "frozenset")):
            return True
        case ast.BinOp(op=ast.BitOr() | ast.BitAnd() | ast.Sub() | ast.BitXor()):
            return _is_set(node.left) or _is_set(node.right)
        case _:
            return False


def _ordered_uses(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions whose order this node takes."""
    match node:
        case ast.For() | ast.AsyncFor() | ast.comprehension():
            yield node.iter
        case ast.Starred():
            yield node.value
        case ast.Call(func=ast.Name(id=name)) if name in ORDER_TAKERS:
            yield from node.args
        case ast.Call(func=ast.Attribute(attr="join")):
            yield from node.args
        case _:
            pass


def check_determinism(tree: ast.AST, path: str) -> Iterator[Finding]:
    """Each use of a banned builtin, and each place that takes the order of a set."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in BANNED_BUILTINS and COMPILERS.get(path) != name:
                yield Finding(path=path, line=node.lineno, what=f"calls {name}(): {BANNED_BUILTINS[name]}")
        for expression in _ordered_uses(node):
            if _is_set(expression):
                what = "takes the order of a set, which differs between processes: use sorted() or dict.fromkeys()"
                yield Finding(path=path, line=expression.lineno, what=what)


def _table_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of matches that end in `assert_never`: they are tables, which the type checker keeps complete."""
    lines = 0
    for node in ast.walk(function):
        match node:
            case ast.Match(
                cases=[*_, ast.match_case(body=[ast.Expr(value=ast.Call(func=ast.Name(id="assert_never")))])]
            ):
                lines += (node.end_lineno or node.lineno) - node.lineno + 1
            case _:
                pass
    return lines


def check_sizes(tree: ast.AST, path: str) -> Iterator[Finding]:
    """Each function that is longer than the bound."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1 - _table_lines(node)
            if lines > FUNCTION_LINES_MAX:
                what = f"{node.name} has {lines} lines, more than {FUNCTION_LINES_MAX}: which second thing hides in it?"
                yield Finding(path=path, line=node.lineno, what=what)


def check_source(source: str, path: str) -> tuple[Finding, ...]:
    """Every finding in one module; `path` is relative to the root and decides which rules apply."""
    tree = ast.parse(source, filename=path)
    findings = [*check_sizes(tree, path)]
    package = path.split("/")[0]
    if package == "crio_core":
        reason = "the core may import only what computes; say in an effect what should happen outside"
        findings.extend(check_imports(tree, path, CORE_STDLIB | CORE_LIBRARIES, reason))
        findings.extend(check_determinism(tree, path))
    elif package == "conmon":
        reason = "the monitor stands on the standard library and crio_core alone, to stay small in memory"
        findings.extend(check_imports(tree, path, frozenset(sys.stdlib_module_names) | MONITOR_LIBRARIES, reason))
    return tuple(sorted(findings))


def _distribution_name(requirement: str) -> str:
    """The normalised name in a requirement such as `PyYAML>=6.0` (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]).lower()


def declared_distributions(root: Path) -> tuple[frozenset[str], frozenset[str]]:
    """The distributions that the project declares, and those together with the ones for development."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    runtime = frozenset(_distribution_name(line) for line in project["dependencies"])
    development = frozenset(_distribution_name(line) for line in project["optional-dependencies"]["dev"])
    return runtime, runtime | development


@functools.cache
def _installed() -> Mapping[str, list[str]]:
    """The distributions of each top-level module: asked once, because it reads every installed file list."""
    return packages_distributions()


def check_dependencies(tree: ast.AST, path: str, declared: frozenset[str]) -> Iterator[Finding]:
    """Each import of a library that comes from a distribution which is not declared, or that is not there at all."""
    for line, module in imported_modules(tree):
        top = module.split(".")[0]
        if top in sys.stdlib_module_names or top in PACKAGES or top == "tests":
            continue
        sources = {_distribution_name(name) for name in _installed().get(top, ())}
        if not sources & declared:
            what = (
                f"imports {module}, whose distribution pyproject.toml does not declare: {sorted(sources) or 'unknown'}"
            )
            yield Finding(path=path, line=line, what=what)


def check_tree(root: Path) -> tuple[Finding, ...]:
    """Every finding in the packages and tests below `root`."""
    runtime, development = declared_distributions(root)
    findings: list[Finding] = []
    for package in (*PACKAGES, "tests"):
        for file in sorted((root / package).rglob("*.py")):
            if GENERATED in file.relative_to(root).parents:
                continue
            path, source = file.relative_to(root).as_posix(), file.read_text()
            declared = runtime if package in INSTALLED else development
            try:
                findings.extend(check_dependencies(ast.parse(source, filename=path), path, declared))
            except SyntaxError as error:
                findings.append(Finding(path=path, line=error.lineno or 0, what=f"does not parse: {error.msg}"))
                continue
            if package != "tests":
                findings.extend(check_source(source, path))
    return tuple(findings)


def main() -> int:
    """Print the findings of this tree; 1 when there are any."""
    findings = check_tree(ROOT)
    for finding in findings:
        print(finding, file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
