"""A pickle of tensors is followed here without doing what it says.

torch.load(weights_only=True) runs no code of a file, but a pickle can still keep it busy
for ever: a tuple that holds a tuple twice, 60 levels deep, has 2**60 parts, each of which
is visited if it is the key of a dict; `bytearray(10**12)` fills the memory. Here the
steps of a pickle are followed with plain lists in place of what they would make. Only
those steps pass that torch.save takes for tensors, numbers, strings, and lists and dicts
of them.
"""

import pickletools
import re
from collections.abc import Callable
from typing import IO, Any

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # files from before torch 1.6 begin with it
MOST_STEPS = 2**21  # enough for 80,000 tensors
STORAGE = re.compile(r"torch\.(cuda\.)?[A-Z]\w+Storage")


class _Name(str):
    """A `_Name` is the name of a class or a function."""


class _Dict(list):
    """A `_Dict` lists keys and values of a dict, in turn."""


def _parts(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _leaves(values: Any) -> bool:
    """Return whether none of the values has parts or is a long integer.

    Then each is hashed in no time and apart from the others, while long integers can be
    made to share one hash.
    """
    return not any(
        _parts(value) or (isinstance(value, int) and value.bit_length() > 64)
        for value in values
    )


def _any(args: tuple) -> bool:
    return True


# What a pickle may call, and whether it may do so with certain arguments.
CALLS: dict[str, Callable[[tuple], bool]] = {
    "collections.OrderedDict": lambda args: not args,
    "collections.Counter": lambda args: all(map(_leaves, args)),
    "builtins.set": lambda args: all(map(_leaves, args)),
    "torch.Size": _any,
    "torch.device": _any,
    "torch._utils._rebuild_tensor": _any,
    "torch._utils._rebuild_tensor_v2": _any,
    "torch._utils._rebuild_parameter": _any,
    "_codecs.encode": lambda args: args[1] == "latin1",  # other codecs take long
    "numpy.dtype": lambda args: len(args[0]) <= 3,  # a number's type, not a text of 2 GB
}


def name_of(allowed: Any) -> str:
    """Return the name of what `torch.serialization.safe_globals` takes."""
    if isinstance(allowed, tuple):
        return allowed[1]
    return f"{allowed.__module__}.{allowed.__qualname__}"


def check_pickle(file: IO[bytes], names: set[str]) -> Any:
    """Follow a pickle to its end without making anything of it.

    Args:
        file: the file, which is read from its present position
        names: further types and functions that the pickle may call

    Returns:
        the pickled value, with lists in place of dicts and of the results of calls

    Raises:
        ValueError: something that is not a pickle, or a pickle that is too long or holds
            more than tensors, numbers, strings, lists and dicts
    """
    try:
        return _follow(file, names)
    except (IndexError, KeyError, AttributeError, TypeError, UnicodeError) as e:
        raise ValueError("it is damaged: its pickle makes no sense") from e


def _follow(file: IO[bytes], names: set[str]) -> Any:
    outer: list[list[Any]] = []  # the stacks below the marks
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    steps = 0
    opcodes: Any = pickletools.genops(file)
    for opcode, arg, _ in opcodes:
        steps += 1
        if steps > MOST_STEPS:
            raise ValueError("its pickle is too long for one of tensors")
        match opcode.name:
            case "PROTO" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "BINFLOAT" | "BINUNICODE" | "LONG1":
                stack.append(arg)
            case "BININT" | "BININT1" | "BININT2" | "SHORT_BINSTRING":
                stack.append(arg)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append(_Dict())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, outer.pop()
                stack.append(tuple(items))
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items, stack = stack, outer.pop()
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _check_keys([key])
                stack[-1].extend([key, value])
            case "SETITEMS":
                items, stack = stack, outer.pop()
                _check_keys(items[::2])
                stack[-1].extend(items)
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "GLOBAL":
                stack.append(_name(arg, names))
            case "REDUCE":
                args, called = stack.pop(), stack.pop()
                _check_call(called, args)
                steps += sum(len(part) for part in (args, *args) if _parts(part))
                stack.append([])
            case "BUILD":  # attributes of an OrderedDict, or the state of a NumPy number
                state = stack.pop()
                if not isinstance(state, _Dict):
                    _check_keys(state)
                steps += len(state)
            case "BINPERSID":  # a storage: kind, name, size, in older files a view
                about = stack.pop()
                _check_keys([x for part in about for x in (part if _parts(part) else ())])
                steps += len(about)
                stack.append([])
            case step:
                raise ValueError(f"its pickle takes a step, {step}, that no tensor needs")
    return stack.pop()


def _name(words: str, names: set[str]) -> _Name:
    name = words.replace(" ", ".").replace("__builtin__.", "builtins.")
    if not (name in CALLS or name in names or STORAGE.fullmatch(name)):
        raise ValueError(f"it holds more than plain tensors: {name!r}")
    return _Name(name)


def _check_call(called: Any, args: Any) -> None:
    called_by_name = isinstance(called, _Name) and not STORAGE.fullmatch(called)
    if not (called_by_name and isinstance(args, tuple) and CALLS.get(called, _any)(args)):
        raise ValueError("its pickle makes a call that no tensor needs")


def _check_keys(keys: Any) -> None:
    if not _leaves(keys):
        raise ValueError("its pickle has a list, a tuple or a long integer for a key")
