"""Does a test fail when the code is changed? A sample of small changes, one by one.

    python tools/mutants.py FOLDER

tries 300 changes of core/ and of the distillation, which the seed alone chooses, and
writes what became of each to FOLDER/rows.jsonl as it goes: a run that was interrupted
goes on. `--again` tries those once more that no test noticed. The last lines are the
share that was noticed, by module, and the diff of each that was not; a change that
computes the same is named, with the reason, in tools/mutants.txt.

Each change is made in memory, in a fork of one process that has imported ESPnet already:
mutmut leaves decorated functions out and cannot be given a sample, and cosmic-ray starts
pytest, and so imports ESPnet, for each change. A change meets the tests that reach its
lines, core's first and then the fastest first, until one fails, takes 10 times as long
as it should, or `--seconds` of tests have passed; of random examples there are 5 each.
"""

import argparse
import hashlib
import importlib
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from mutate import Mutant, mutants

ROOT = Path(__file__).resolve().parents[1]
MODULES = ["core/*.py", "plugin/model.py", "plugin/teacher.py"]
TESTS = ["tests/core", "tests/plugin", "tests/deploy/test_cut.py"]
IMPORTED = ["torch._dynamo", "espnet2.tasks.asr", "espnet2.bin.asr_inference"]
REASONS = Path(__file__).with_suffix(".txt")
EXAMPLES = 5  # at most, of each of hypothesis's tests
SLOWER = 10  # times slower than it was: it hangs
PATIENCE = 20  # seconds that any test, and the imports, may take besides
HYPOTHESIS = "_hypothesis_internal_use_settings"  # where a test has its settings
Tests = dict[str, dict]  # by test: its `seconds`, and the `lines` it reaches, by file


class Watch:
    """A plugin of pytest's: how long tests take, which failed, and the end of any that
    takes too long, with the process."""

    def __init__(self, seconds: Mapping[str, float]):
        self.allowed, self.took, self.failed = seconds, Counter(), []

    def pytest_sessionstart(self) -> None:
        """Behind the conftest's, a profile with the same random examples each time."""
        if "hypothesis" in sys.modules:
            from hypothesis import settings

            settings.register_profile("mutants", derandomize=True, database=None)
            settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            old = getattr(item.obj, HYPOTHESIS, None)
            if old is not None and old.max_examples > EXAMPLES:
                new = type(old)(old, max_examples=EXAMPLES)
                setattr(item.obj, HYPOTHESIS, new)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if nodeid in self.allowed:
            limit = SLOWER * self.allowed[nodeid] + PATIENCE
            signal.setitimer(signal.ITIMER_REAL, limit)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.took[report.nodeid] += report.duration
        if report.outcome != "passed":
            self.failed.append(report.nodeid)


class Changed(importlib.machinery.SourceFileLoader):
    """Finds and loads one module, with another source than its file's."""

    def __init__(self, name: str, path: Path, source: str):
        super().__init__(name, str(path))
        self.source = source

    def find_spec(self, name: str, path=None, target=None):
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def get_code(self, name: str):
        return compile(self.source, self.path, "exec", dont_inherit=True)


def forked(root: Path, work: Callable[[Path], object]) -> tuple[object, int]:
    """What some work gives in a process of its own, None where that ended early; and by
    which signal it ended, or 0.

    Args:
        work: is given an empty folder
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pid = os.fork()
        if not pid:
            try:
                os.setsid()
                quiet = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
                os.dup2(quiet, 1), os.dup2(quiet, 2)
                os.environ.pop("ESPNET_L0PRUNE_AUTOLOAD", None)
                os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # some are slow
                os.environ["PYTHONPATH"] = str(root)
                os.chdir(root)
                sys.path.insert(0, str(root))
                answer = json.dumps(work(folder))
                (folder / "answer").write_text(answer)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            return None, os.WTERMSIG(status)
        if not (folder / "answer").exists():
            raise RuntimeError((folder / "output").read_text(errors="replace"))
        return json.loads((folder / "answer").read_text()), 0


def run_pytest(folder: Path, watch: Watch, *arguments: str) -> int:
    """Pytest's exit code in this process."""
    options = ["-q", "-p", "no:cacheprovider", "--tb=no", f"--basetemp={folder / 'tmp'}"]
    signal.setitimer(signal.ITIMER_REAL, 60 * SLOWER)  # until the first test begins
    return int(pytest.main([*options, *arguments], plugins=[watch]))


def learn(root: Path, file: str, sources: Iterable[str]) -> Tests:
    """Run a file of tests on the code as it is: those that pass."""

    def work(folder: Path) -> Tests:
        import coverage

        os.environ["COVERAGE_FILE"] = str(folder / "coverage")
        watch = Watch({})
        cover = "-p", "pytest_cov.plugin", "--cov", "--cov-context=test", "--cov-report="
        run_pytest(folder, watch, *cover, file)
        data = coverage.CoverageData(str(folder / "coverage"))
        data.read()
        found = {
            test: {"seconds": seconds, "lines": defaultdict(list)}
            for test, seconds in watch.took.items()
            if test not in watch.failed
        }
        for source in sources:
            for line, contexts in data.contexts_by_lineno(str(root / source)).items():
                for test in {context.partition("|")[0] for context in contexts}:
                    if test in found:
                        found[test]["lines"][source].append(line)
        return found

    found, _ = forked(root, work)
    return found or {}


def known(
    root: Path, paths: Iterable[str], sources: Mapping[str, str], memory: Path
) -> Tests:
    """All tests in some files and folders; a file is run only where it, or the code, is
    new."""
    code = "".join(sources.values()).encode()
    before = json.loads(memory.read_text()) if memory.exists() else {}
    files = [f for p in paths for f in _test_files(root / p)]
    found = {}
    for file in files:
        name = str(file.relative_to(root))
        state = hashlib.sha256(code + file.read_bytes()).hexdigest()
        if before.get(name, {}).get("state") != state:
            print(f"running {name} as it is", flush=True)
            before[name] = {"state": state, "tests": learn(root, name, sources)}
            memory.write_text(json.dumps(before))
        found |= before[name]["tests"]
    return found


def _test_files(path: Path) -> list[Path]:
    return sorted(path.rglob("test_*.py")) if path.is_dir() else [path]


def choose(tests: Tests, file: str, lines: range, seconds: float) -> list[str]:
    """The tests that reach some lines, in the order in which they are run."""
    reach = [
        t for t in tests if not set(lines).isdisjoint(tests[t]["lines"].get(file, ()))
    ]
    reach.sort(key=lambda t: (not t.startswith("tests/core"), tests[t]["seconds"]))
    chosen, left = [], seconds
    for test in reach:
        left -= tests[test]["seconds"]
        if left < 0 and chosen:
            break
        chosen.append(test)
    return chosen


def attempt(root: Path, file: str, mutant: Mutant, tests: Tests, seconds: float) -> dict:
    """What becomes of a change: a row."""
    chosen = choose(tests, file, mutant.lines, seconds)
    name = ".".join(Path(file).with_suffix("").parts)
    by_file: dict[str, list[str]] = {}
    for test in chosen:
        by_file.setdefault(test.partition("::")[0], []).append(test)

    def work(folder: Path) -> str | None:
        sys.meta_path.insert(0, Changed(name, root / file, mutant.source))
        watch = Watch({test: tests[test]["seconds"] for test in chosen})
        for group in by_file.values():
            code = run_pytest(folder, watch, "-x", *group)
            if code:
                return watch.failed[0] if watch.failed else f"pytest's exit code {code}"
        return None

    begin = time.monotonic()
    by, ended = forked(root, work) if chosen else (None, 0)
    return {
        "key": mutant.key,
        "by": f"signal {ended}" if ended else by,
        "tests": len(chosen),
        "seconds": round(time.monotonic() - begin, 1),
    }


def sample(found: Iterable[tuple[str, Mutant]], seed: int) -> list[tuple[str, Mutant]]:
    """An order that depends on nothing else in the code: what was changed keeps its
    place when other code does."""

    def place(one: tuple[str, Mutant]) -> str:
        return hashlib.sha256(f"{seed} {one[1].key}".encode()).hexdigest()

    return sorted(found, key=place)


def read_reasons(path: Path) -> dict[str, str]:
    """Why changes are none, by key: a line, and the reason in the next, indented."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {
        key: reason.strip()
        for key, reason in pairwise(lines)
        if reason.startswith("    ") and not key.startswith((" ", "#"))
    }


def summary(rows: Mapping[str, dict], chosen: Mapping[str, Mutant], reasons) -> str:
    """The share that tests noticed, by module, and all that they did not."""
    table: dict[str, Counter] = defaultdict(Counter)
    unnoticed = []
    for key, mutant in chosen.items():
        if key in rows:
            noticed = rows[key]["by"] is not None
            equal = not noticed and key in reasons
            for name in (key.partition(":")[0], "all"):
                table[name].update(tried=1, noticed=noticed, equal=equal)
            if not noticed and not equal:
                unnoticed.append(f"{key}\n{mutant.diff}\n")
    lines = ["module                 tried  noticed  the same   score"]
    for name in sorted(table, key=lambda n: (n == "all", n)):
        n = table[name]
        score = n["noticed"] / max(n["tried"] - n["equal"], 1)
        counts = f"{n['tried']:5}  {n['noticed']:7}  {n['equal']:8}  {score:6.1%}"
        lines.append(f"{name:22} {counts}")
    return "\n".join([*unnoticed, *lines])


def main() -> None:
    if os.environ.get("ESPNET_L0PRUNE_AUTOLOAD") != "0":  # forks import the package
        os.environ["ESPNET_L0PRUNE_AUTOLOAD"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="for the rows")
    parser.add_argument("--count", type=int, default=300, help="how many changes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="try the unnoticed again")
    parser.add_argument("--seconds", type=float, default=60, help="of tests, for each")
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--package", default="espnet_l0prune")
    parser.add_argument("--modules", nargs="+", default=MODULES, help="of the package")
    parser.add_argument("--tests", nargs="+", default=TESTS)
    parser.add_argument("--imports", nargs="*", default=IMPORTED, help="once for all")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    root = args.root.resolve()
    files = [
        str(p.relative_to(root))
        for name in args.modules
        for p in sorted((root / args.package).glob(name))
    ]
    texts = {file: (root / file).read_text("utf-8") for file in files}
    changes = [
        (file, mutant)
        for file, text in texts.items()
        for mutant in mutants(text, ".".join(Path(file).with_suffix("").parts[1:]))
    ]
    changes = sample(changes, args.seed)[: args.count]
    chosen = {mutant.key: mutant for _, mutant in changes}

    for name in args.imports:
        importlib.import_module(name)
    tests = known(root, args.tests, texts, args.folder / "tests.json")
    path, rows = args.folder / "rows.jsonl", {}
    if path.exists():
        rows = {r["key"]: r for r in map(json.loads, path.read_text().splitlines())}
    todo = [
        (file, mutant)
        for file, mutant in changes
        if mutant.key not in rows or (args.again and rows[mutant.key]["by"] is None)
    ]
    begin = time.monotonic()
    with path.open("a") as out:
        for done, (file, mutant) in enumerate(todo, 1):
            row = attempt(root, file, mutant, tests, args.seconds)
            rows[mutant.key] = row
            print(json.dumps(row), file=out, flush=True)
            left = (time.monotonic() - begin) / done * (len(todo) - done) / 60
            what = f"by {row['by']}" if row["by"] else "NOT NOTICED"
            print(f"{done} of {len(todo)}, {left:.0f} minutes left: {what}", flush=True)
    print(summary(rows, chosen, read_reasons(REASONS)))


if __name__ == "__main__":
    main()
