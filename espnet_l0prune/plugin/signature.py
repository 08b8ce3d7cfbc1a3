"""Options of a class and of the ESPnet class that it extends, as one signature."""

import inspect


def show_stock_options(ours: type, stock: type) -> None:
    """Let `asr_train --print_config` list ESPnet's options behind `**conf` too."""
    mine = inspect.signature(ours.__init__).parameters
    theirs = inspect.signature(stock.__init__).parameters
    keyword, rest = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD
    added = [p.replace(kind=keyword) for n, p in theirs.items() if n not in mine]
    kept = [p for p in mine.values() if p.kind != rest]
    ours.__init__.__signature__ = inspect.Signature(kept + added)
