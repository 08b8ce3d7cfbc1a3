"""Networks are timed in turns until their times are certain, on any machine.

This file is also a program. `espnet-l0prune profile --package` copies it as measure.py
into a folder of graphs, where it times them and writes results.json. It imports nothing
but Python's standard library, and once it runs numpy and onnxruntime; it runs from
Python 3.8 on.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FEWEST, MOST = 5, 40  # rounds after the first one
CERTAIN = 0.005  # of the longest time, where no more rounds are needed
OFTEN = 10.0  # seconds, after which there is another line about the progress
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
CPUINFO = "/proc/cpuinfo"
NAMED_BY = "Model", "Hardware", "model name"  # in it; the first is a whole board's
MANIFEST, RESULTS = "manifest.json", "results.json"
VERSION = 1  # of both files


def time_in_turns(
    calls: Mapping[str, Callable[[], object]],
    step: Callable[[str], object],
    minutes: float = 5.0,
    fewest: int = FEWEST,
) -> dict[str, list[float]]:
    """Time calls in turns, until their medians are certain.

    Each round begins with another call. A call is timed right after an untimed one: its
    weights are in the caches then, as where it is alone. The last round is the one after
    which the spread is at most `CERTAIN`, or `minutes` are over, but at least `fewest`
    follow the first round, and at most `MOST`.

    Args:
        calls: what is timed, by name
        step: is told what is done, and how long it will take
        minutes: after so long no round begins beyond the fewest
        fewest: the fewest rounds

    Returns:
        the seconds of each call in each round, which `medians_of` takes
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, most = [*calls], max(MOST, fewest)
    begin = told = time.monotonic()
    end, certain = math.nan, ""
    for number in range(most + 1):
        names = [*names[1:], names[0]]
        for i, name in enumerate(names, 1):
            calls[name]()
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
            now = time.monotonic()
            if now - told > OFTEN:
                told = now
                left = "" if number == 0 else f", at most {max(end - now, 0):.0f} s left"
                step(f"round {number + 1}, {i} of {len(names)}{left}{certain}")
        taken = time.monotonic() - begin
        each = taken / (number + 1)
        least, more = each * (fewest - number), each * (most - number)
        begun_late = 60 * minutes - taken + each  # a round that begins is finished
        end = begin + taken + max(least, min(more, begun_late))
        if number == 0:  # nothing is warm yet
            longest = max(least, min(more, 60 * minutes))
            step(f"{len(names)} encoders, {least:.0f} s to {longest:.0f} s")
        elif number > 1:
            _, spread = medians_of(times)
            certain = f", certain to {spread:.1%}"
            late = taken > 60 * minutes
            if number >= fewest and (late or spread <= CERTAIN):
                break
    return times


def medians_of(times: Mapping[str, Sequence[float]]) -> tuple[dict[str, float], float]:
    """Return the median of each one's times, without the first round, and their spread.

    The spread says how uncertain medians are: half of the middle half's width over the
    root of the number of rounds, at most, as a share of the longest median.

    Args:
        times: the seconds of each one in each round, three at least
    """
    medians, widths = {}, []
    for name, (_, *one) in times.items():
        low, medians[name], high = statistics.quantiles(one, n=4)
        widths.append((high - low) / 2 / len(one) ** 0.5)
    return medians, max(widths) / max(medians.values())


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Let this process keep the memory that it frees within a `with` block, where the C
    library is glibc.

    By default glibc returns large pieces to the system, or not, by what else lies around
    them. Where it does, each forward waits for new pages, so that the same encoder takes
    more time in one process than in another. Afterwards glibc has its first defaults.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
    except (OSError, AttributeError):  # another C library
        yield
        return
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, 65_536)
        libc.mallopt(M_TRIM_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)


def processor() -> str:
    """Return the name of this machine's processor, or of the board that it is on.

    Linux has it in /proc/cpuinfo, but not for each processor.
    """
    try:
        text = Path(CPUINFO).read_text("utf-8", "replace")
    except OSError:  # another system
        text = ""
    pairs = (line.partition(":") for line in text.splitlines())
    found = {key.strip(): value.strip() for key, _, value in pairs}
    names = [found[key] for key in NAMED_BY if found.get(key)]
    return (names or [platform.processor() or platform.machine()])[0]


def machine_of(runtime: str) -> str:
    """Return what this machine is: its processor, system and runtime.

    Args:
        runtime: name of the module that computes
    """
    version = importlib.import_module(runtime).__version__
    return f"{processor()}, {platform.platform()}, {runtime} {version}"


def open_graph(file: str, threads: int) -> Any:
    """Return onnxruntime's session of a graph, on the CPU.

    Args:
        file: the graph
        threads: number of threads

    Raises:
        ImportError: onnxruntime is not installed
        Exception: whatever onnxruntime raises for a file that it cannot load
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised, so need not be logged
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def graph_calls(
    files: Mapping[str, Path],
    shape: Sequence[int],
    threads: int,
    step: Callable[[str], object],
) -> dict[str, Callable[[], object]]:
    """Return a call of each encoder's graph, on the same random features.

    Args:
        files: the graphs, by name
        shape: (1, frames, features)
        threads: number of threads
        step: is told what is done

    Raises:
        ValueError: a file that onnxruntime cannot load; when called, one that it cannot
            run
    """
    import numpy

    feats = numpy.random.default_rng(0).standard_normal(shape, dtype=numpy.float32)
    step(f"loading {len(files)} graphs")
    return {name: _call_of(file, feats, threads) for name, file in files.items()}


def _call_of(file: Path, feats: Any, threads: int) -> Callable[[], object]:
    def raised(what: str, e: Exception) -> ValueError:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        return ValueError(
            f"onnxruntime cannot {what} {file} ({reason}); expected a graph that "
            "`espnet-l0prune profile` wrote: copy it again, or install a newer "
            "onnxruntime"
        )

    def call() -> object:
        try:
            return session.run(None, {"feats": feats})
        except Exception as e:
            raise raised("run", e) from e

    try:
        session = open_graph(str(file), threads)
    except ImportError:
        raise
    except Exception as e:  # onnxruntime's errors have no common base
        raise raised("load", e) from e
    return call


def measure(
    folder: Path,
    step: Callable[[str], object],
    threads: int | None = None,
    minutes: float | None = None,
) -> dict[str, Any]:
    """Time the graphs of a package on this machine.

    Args:
        folder: the package
        step: is told what is done, and how long it will take
        threads, minutes: number of threads, and after how long no round begins beyond the
            fewest; None for what the package says

    Returns:
        what results.json holds: what the package says of its encoder, the threads, the
        machine, and the seconds of each graph in each round

    Raises:
        ImportError: onnxruntime or numpy is not installed
        ValueError: a damaged package, impossible options, or more noise than a profile
            can bear
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        if manifest["version"] != VERSION:
            raise ValueError(f"its version is {manifest['version']}")
        about, shape, noisiest = (manifest[k] for k in ("about", "shape", "noisiest"))
        files = {name: folder / file for name, file in manifest["graphs"].items()}
        threads = manifest["threads"] if threads is None else threads
        minutes = manifest["minutes"] if minutes is None else minutes
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as e:
        raise ValueError(
            f"{folder / MANIFEST} cannot be read ({type(e).__name__}: {e}); expected "
            "what `espnet-l0prune profile --package` wrote: copy the folder again"
        ) from e
    if not 1 <= threads <= 1024:
        raise ValueError(f"--threads is {threads}; expected 1 to 1024")
    if not 0 <= minutes <= 1440:
        raise ValueError(f"--minutes is {minutes}; expected 0 to 1440")
    with memory_kept():
        calls = graph_calls(files, shape, threads, step)
        times = time_in_turns(calls, step, minutes)
    _, spread = medians_of(times)
    if spread > noisiest:
        raise ValueError(
            f"what was measured has a spread of {spread:.1%}; expected at most "
            f"{noisiest:.0%}, as no target can be kept closer than it was measured. "
            "Nothing was written. Measure again while this machine does nothing else."
        )
    step(f"measured times are certain to {spread:.1%}")
    machine = machine_of("onnxruntime")
    what = {"version": VERSION, "about": about, "threads": threads, "machine": machine}
    return {**what, "times": times}


def main() -> int:
    """Time the graphs beside this file, and return the exit code."""
    folder, begun = Path(__file__).resolve().parent, time.monotonic()
    parser = argparse.ArgumentParser(
        description="Measure how long the graphs in this folder take on this machine. "
        "It needs onnxruntime and numpy."
    )
    out = folder / RESULTS
    parser.add_argument("--threads", type=int, help="default: what manifest.json says")
    parser.add_argument(
        "--minutes", type=float, help="after so many no round begins beyond the fewest"
    )
    parser.add_argument("--out", type=Path, default=out, help=f"default: {out}")
    parser.add_argument("--force", action="store_true", help="replace the output")
    args = parser.parse_args()

    def step(text: str) -> None:
        print(f"measure, {time.monotonic() - begun:.0f} s: {text}", flush=True)

    part = args.out.with_name(args.out.name + ".part")
    try:
        if args.out.exists() and not args.force:
            raise ValueError(f"{args.out} exists; choose another --out, or give --force")
        part.touch()  # fails now, and not after minutes
        try:
            results = measure(folder, step, args.threads, args.minutes)
            part.write_text(json.dumps(results), "utf-8")
            os.replace(part, args.out)
        finally:
            part.unlink(missing_ok=True)
    except ImportError as e:
        print(f"measure: {e}; pip install onnxruntime numpy", file=sys.stderr)
        return 1
    except (ValueError, OSError) as e:
        print(f"measure: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{args.out}: take it to where `espnet-l0prune profile --from` runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
