"""Every error message: for a table in the documentation, and to check that tests provoke
each.

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
RECIPE = ROOT / "egs/librispeech/run.sh"


@dataclass(frozen=True)
class Message:
    """What a `raise` says.

    Attributes:
        file: that it is in
        lines: of the statement
        error: class of the exception
        text: of the message, with names in braces for what changes
    """

    file: Path
    lines: range
    error: str
    text: str

    @property
    def module(self) -> str:
        return ".".join(self.file.relative_to(ROOT).with_suffix("").parts)


def messages(package: Path = PACKAGE) -> list[Message]:
    """Of all files, in their order. Errors without a text are for programmers, or pass on
    another one."""
    return [m for file in sorted(package.rglob("*.py")) for m in _of_file(file)]


def _of_file(file: Path) -> Iterator[Message]:
    tree = ast.parse(file.read_text("utf-8"))
    helpers = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    raises = [n for n in ast.walk(tree) if isinstance(n, ast.Raise)]
    for node in sorted(raises, key=lambda n: n.lineno):
        if not isinstance(node.exc, ast.Call) or not node.exc.args:
            continue
        error, text = _error(node.exc, helpers)
        yield Message(file, range(node.lineno, node.end_lineno + 1), error, text)


def _error(call: ast.Call, helpers: dict[str, ast.FunctionDef]) -> tuple[str, str]:
    """Class and text of `Error(text)`, or of `helper(text)` that returns such a call."""
    name = ast.unparse(call.func)
    if name not in helpers:
        return name, _text(call.args[0])
    (made,) = (n.value for n in ast.walk(helpers[name]) if isinstance(n, ast.Return))
    first = helpers[name].args.args[0].arg
    error, text = _error(made, helpers)
    return error, text.replace(f"{{{first}}}", _text(call.args[0]))


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


def shell_messages(script: Path = RECIPE) -> list[str]:
    """What its `die` says."""
    said = re.findall(r"\bdie ((?:\"[^\"]*\"(?:\s*\\\s*)?)+)", script.read_text("utf-8"))
    return [" ".join(re.findall(r'"([^"]*)"', words)) for words in said]


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
