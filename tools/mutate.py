"""Small changes to Python source, of which each ought to fail a test.

Left out are what says something to people (docstrings, messages, logging), annotations
and decorators, imports, and the `strict` of `zip`, which only guards.
"""

import ast
import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
SPEAKING = ("logging.", "warnings.")
DELETED = ast.Expr | ast.Assign | ast.AugAssign | ast.Raise | ast.Break | ast.Continue
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Mutant:
    """One change to one module.

    Attributes:
        key: names it, as long as the line and its function stay what they are
        source: of the whole module, changed
        lines: where it is, as far as tests reach it: those of the statement or, of what
            runs when the module is imported, of the function or class around it
        diff: for people
    """

    key: str
    source: str
    lines: range
    diff: str


def mutants(source: str, module: str) -> list[Mutant]:
    """All changes to a module's source, in the order of its text.

    Args:
        module: its name, for the keys
    """
    tree = ast.parse(source)
    found, seen = [], Counter()
    everywhere = range(1, source.count("\n") + 2)
    for node, new, scope, lines in _changes(tree, (), everywhere, False):
        changed = _replaced(source, node, new)
        try:
            if ast.dump(ast.parse(changed)) == ast.dump(tree):
                continue
        except SyntaxError:
            continue
        old, now = _differing(source, changed)
        key = f"{module}:{'.'.join(scope)}: {old} => {now}"
        seen[key] += 1
        if seen[key] > 1:
            key += f" (#{seen[key]})"
        diff = "\n".join(
            difflib.unified_diff(
                source.splitlines(), changed.splitlines(), module, "", "", "", 1, ""
            )
        )
        found.append(Mutant(key, changed, lines, diff))
    return found


def _changes(
    node: ast.AST, scope: tuple[str, ...], lines: range, within: bool
) -> Iterator[tuple[ast.AST, str, tuple[str, ...], range]]:
    """What to put in whose place; the names around it; where tests reach it.

    Args:
        within: whether the node is in a function
    """
    if isinstance(node, FUNCTIONS | ast.ClassDef):
        scope, within = (*scope, node.name), isinstance(node, FUNCTIONS)
        lines = range(node.body[0].lineno, node.end_lineno + 1)
    elif within and isinstance(node, ast.stmt):
        last = node.body[0].lineno if hasattr(node, "body") else node.end_lineno + 1
        lines = range(node.lineno, last)
    for place, new in _instead(node):
        yield place, new, scope, lines
    for child in _inside(node):
        yield from _changes(child, scope, lines, within)


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """Those parts of a node that may be changed."""
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.Raise) or _speaks(node) or _is_negative(node):
        return
    for name, value in ast.iter_fields(node):
        if name in ("decorator_list", "annotation", "returns", "bases", "type_comment"):
            continue
        parts = value if isinstance(value, list) else [value]
        yield from (p for p in parts if isinstance(p, ast.AST) and not _guards(p))


def _guards(node: ast.AST) -> bool:
    return isinstance(node, ast.keyword) and node.arg == "strict"


def _speaks(node: ast.AST) -> bool:
    """Whether it is a docstring or a message."""
    if not isinstance(node, ast.Expr):
        return False
    if isinstance(node.value, ast.Constant):
        return True
    call = isinstance(node.value, ast.Call) and ast.unparse(node.value.func)
    return bool(call) and call.startswith(SPEAKING)


def _instead(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """What in a node may be replaced, and the text that may stand there."""
    for new in _other(node):
        yield node, new
    tests = [node.test] if isinstance(node, ast.If | ast.While) else []
    tests += node.ifs if isinstance(node, ast.comprehension) else []
    for test in tests:
        if ast.unparse(test) != "TYPE_CHECKING":
            yield test, f"not ({ast.unparse(test)})"
    new_name = isinstance(node, ast.Assign) and all(map(_is_new, node.targets))
    if isinstance(node, DELETED) and not new_name and not _speaks(node):
        yield node, "pass"


def _other(node: ast.AST) -> Iterator[str]:
    """What may stand in a node's place."""
    match node:
        case ast.Compare(left=left, ops=ops, comparators=others):
            for i, op in enumerate(ops):
                if type(op) in COMPARISONS:
                    new = [*ops[:i], COMPARISONS[type(op)](), *ops[i + 1 :]]
                    yield _text(ast.Compare(left, new, others))
        case ast.BinOp(left=left, op=op, right=right):
            if type(op) in ARITHMETIC and not _of_text(left, right):
                yield _text(ast.BinOp(left, ARITHMETIC[type(op)](), right))
        case ast.AugAssign(target=target, op=op, value=value):
            if type(op) in ARITHMETIC and not _of_text(value):
                other = ARITHMETIC[type(op)]()
                yield ast.unparse(ast.AugAssign(target, other, value))
        case ast.BoolOp(op=op, values=values):
            yield _text(
                ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            )
        case ast.UnaryOp(operand=operand):
            yield _text(operand)
            if _is_negative(node):
                yield f"({-operand.value - 1})"
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield _text(ast.IfExp(ast.UnaryOp(ast.Not(), test), body, orelse))
        case ast.Constant(value=bool() as value):
            yield str(not value)
        case ast.Constant(value=int() | float() as value):
            yield f"({value + 1})"
            yield f"({-value or -1})"
        case ast.Call(func=func, args=args, keywords=keywords):
            if len(args) > 1 and not any(isinstance(a, ast.Starred) for a in args[:2]):
                swapped = [args[1], args[0], *args[2:]]
                yield ast.unparse(ast.Call(func, swapped, keywords))
            for i, keyword in enumerate(keywords):
                if keyword.arg and not _guards(keyword):
                    left_out = [*keywords[:i], *keywords[i + 1 :]]
                    yield ast.unparse(ast.Call(func, args, left_out))
        case ast.Slice(lower=lower, upper=upper, step=step):
            if lower:
                yield ast.unparse(ast.Slice(None, upper, step))
            if upper:
                yield ast.unparse(ast.Slice(lower, None, step))
        case ast.Return(value=value) if value and ast.unparse(value) != "None":
            yield "return None"


def _text(node: ast.expr) -> str:
    return f"({ast.unparse(node)})"


def _of_text(*nodes: ast.expr) -> bool:
    return any(
        isinstance(n, ast.JoinedStr)
        or (isinstance(n, ast.Constant) and isinstance(n.value, str))
        for n in nodes
    )


def _is_negative(node: ast.AST) -> bool:
    """Whether it is a number below 0, which is no constant for Python."""
    return (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and isinstance(node.operand, ast.Constant)
    )


def _is_new(target: ast.expr) -> bool:
    """Whether it is a name, without which a function mostly cannot go on at all."""
    return isinstance(target, ast.Name | ast.Tuple)


def _replaced(source: str, node: ast.AST, new: str) -> str:
    """The source with a text in a node's place; columns are counted in bytes."""
    content = source.encode()
    starts = [0]
    for line in content.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    begin = starts[node.lineno - 1] + node.col_offset
    end = starts[node.end_lineno - 1] + node.end_col_offset
    return (content[:begin] + new.encode() + content[end:]).decode()


def _differing(old: str, new: str) -> tuple[str, str]:
    """The lines that differ, each side in one."""
    one, two = old.splitlines(), new.splitlines()
    _, begin, _, _, _ = next(
        op
        for op in difflib.SequenceMatcher(None, one, two, False).get_opcodes()
        if op[0] != "equal"
    )
    same = 0
    while one[len(one) - 1 - same] == two[len(two) - 1 - same] and (
        same < min(len(one), len(two)) - begin - 1
    ):
        same += 1
    return tuple(
        " ".join(line.strip() for line in text[begin : len(text) - same])
        for text in (one, two)
    )
