"""Every error message of the package and the recipe, for a table in the documentation.

    python tools/messages.py .coverage

names those of the package whose `raise` no test has reached, by what coverage has
recorded of the lines.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "espnet_l0prune"
RECIPE = ROOT / "egs"


@dataclass(frozen=True)
class Message:
    """What a `raise` says, or a script before it ends.

    Attributes:
        file: that it is in
        lines: of the statement
        text: of the message, with names in braces for what changes
    """

    file: Path
    lines: range
    text: str

    @property
    def place(self) -> str:
        """The module's name, or the script's path."""
        path = self.file.relative_to(ROOT)
        if path.is_relative_to("espnet_l0prune"):
            return ".".join(path.with_suffix("").parts[1:])
        return str(path)


def messages(package: Path = PACKAGE) -> list[Message]:
    """Of all files, in their order. Errors without a text are for programmers, or pass on
    another one."""
    return [m for file in sorted(package.rglob("*.py")) for m in _of_file(file)]


def recipe_messages(recipe: Path = RECIPE) -> list[Message]:
    """Of all scripts, in Python and in the shell."""
    shell = [m for file in sorted(recipe.rglob("*.sh")) for m in _of_shell(file)]
    return messages(recipe) + shell


def _of_shell(file: Path) -> Iterator[Message]:
    """What its `die` says."""
    words = re.compile(r"\bdie ((?:\"(?:[^\"$]|\$\([^)]*\)|\$)*\"(?:\s*\\\s*)?)+)")
    text = file.read_text("utf-8")
    for found in words.finditer(text):
        line = text[: found.start()].count("\n") + 1
        said = " ".join(re.findall(r'"([^"]*)"', re.sub(r"\$\([^)]*\)", "...", found[1])))
        yield Message(file, range(line, line + 1 + found[1].count("\n")), said)


def _of_file(file: Path) -> Iterator[Message]:
    tree = ast.parse(file.read_text("utf-8"))
    helpers = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    ends = [n for n in ast.walk(tree) if isinstance(n, ast.Raise | ast.Expr)]
    for node in sorted(ends, key=lambda n: n.lineno):
        call = node.exc if isinstance(node, ast.Raise) else node.value
        if not isinstance(call, ast.Call) or not call.args:
            continue
        if isinstance(node, ast.Raise):
            text = _said(call, helpers)
        elif ast.unparse(call.func) == "sys.exit" and _is_text(call.args[0]):
            text = _text(call.args[0])
        else:
            continue
        yield Message(file, range(node.lineno, node.end_lineno + 1), text)


def _is_text(node: ast.expr) -> bool:
    constant = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return constant or isinstance(node, ast.JoinedStr)


def _said(call: ast.Call, helpers: dict[str, ast.FunctionDef]) -> str:
    """The text of `Error(text)`, or of `helper(text)` that returns such a call."""
    name = ast.unparse(call.func)
    if name not in helpers:
        return _text(call.args[0])
    (made,) = (n.value for n in ast.walk(helpers[name]) if isinstance(n, ast.Return))
    first = helpers[name].args.args[0].arg
    return _said(made, helpers).replace(f"{{{first}}}", _text(call.args[0]))


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        node = node.value
    if isinstance(node, ast.Name):
        return f"{{{node.id}}}"
    if isinstance(node, ast.Attribute):
        return f"{{{node.attr}}}"
    return "{...}"


def unprovoked(found: list[Message], reached: Mapping[str, set[int]]) -> list[Message]:
    """Those of which no line is among the lines that were run of their file."""
    return [m for m in found if reached.get(str(m.file), set()).isdisjoint(m.lines)]


def main() -> None:
    import coverage  # the documentation does without

    if not Path(sys.argv[1]).exists():
        sys.exit(f"no {sys.argv[1]}; expected what `pytest --cov` wrote")
    data = coverage.CoverageData(sys.argv[1])
    data.read()
    reached = {file: set(data.lines(file) or ()) for file in data.measured_files()}
    found = messages()
    missing = unprovoked(found, reached)
    for message in missing:
        place = f"{message.file.relative_to(ROOT)}:{message.lines[0]}"
        print(f"no test provokes {place}: {message.text}")
    print(f"{len(found) - len(missing)} of {len(found)} error messages provoked")
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()
