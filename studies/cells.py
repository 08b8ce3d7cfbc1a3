"""A cell of the comparison: its folder, and the stages of the recipe that are run in it.

A cell is a method at a budget, with a seed. It ends with an experiment `asr_finetuned`
that egs/librispeech/run.sh has trained; one that was interrupted goes on. The dense model
is trained once, by the same recipe, and found again by the hash of its configuration.
"""

import glob
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common import DECODE, read_test_set
from conditions import CONDITIONS, Errors, count_errors, load, step_of
from one_shot import prune_at_once
from settings import EPOCHS, RECIPE, SCHEDULE, merged, recipe_conf, short_hash, written

from espnet_l0prune.cli import main
from espnet_l0prune.core.costs import COSTS
from espnet_l0prune.core.reading import read_yaml

AVERAGE = "valid.acc.ave.pth"
LAST_TRAINING = 7  # stage of the recipe
ERRORS_FILE = "errors.json"  # of each utterance, by unit and condition
IDLE = 100 * 1024  # KiB; less is run.sh alone, with nothing left to do


def within(folder: Path, name: str) -> set[Path]:
    """Files of a name below a folder, and below what links there lead to; each once."""
    found = glob.glob(f"{folder}/**/{name}", recursive=True)
    return {Path(file).resolve() for file in found}


def peak(folder: Path) -> int | None:
    """The largest process's memory in MiB, of all that was run there."""
    found = [int(file.read_text()) for file in within(folder, "peak")]
    return max(found, default=None)


@dataclass
class Corpus:
    """The speech, as options of run.sh, and the folder of all work on it.

    Args:
        trained: a dense experiment that is there already
        epochs: of dense training, pruning and fine-tuning
        search: options of the search
        adopt: more options of `adopt`, for methods that take any dense model
    """

    options: list[str]
    test: str
    work: Path
    trained: Path | None = None
    epochs: Mapping[str, int] = field(default_factory=lambda: EPOCHS)
    search: Path = DECODE
    adopt: str = ""

    def run(self, expdir: Path, first: int, last: int, **options: object) -> None:
        """Run stages of the recipe; note the peak memory of their largest process."""
        command = [RECIPE / "run.sh", *self.options, "--test_sets", self.test]
        command += ["--datadir", self.work / "data", "--expdir", expdir]
        command += ["--stage", first, "--stop_stage", last]
        for name, value in options.items():
            command += [f"--{name}", value]
        process = subprocess.Popen([str(word) for word in command])
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        before = peak(expdir) or 0
        if usage.ru_maxrss > IDLE and first <= LAST_TRAINING:
            (expdir / "peak").write_text(str(max(before, usage.ru_maxrss // 1024)))

    def dense(self) -> Path:
        """The folder of the dense model and its statistics, made now if need be."""
        conf, last = recipe_conf("train"), 4
        if self.trained is not None:
            conf, last = read_yaml(self.trained / "config.yaml"), 3
        folder = self.work / f"dense-{short_hash([conf, self.options])}"
        train = written(folder / "train.yaml", recipe_conf("train"))
        self.run(folder, 1, last, train_config=train)
        if self.trained is not None and not (folder / "asr_dense").exists():
            (folder / "asr_dense").symlink_to(self.trained.resolve())
        self.decode(folder, "asr_dense")
        return folder

    def data_conf(self, dense: Path) -> dict[str, list]:
        """The training data, as ESPnet's configurations name it.

        Args:
            dense: the folder with the statistics
        """
        train, stats = self.work / "data/train", dense / "asr_stats/train"
        named = [("wav.scp", "speech", "sound"), ("text", "text", "text")]
        paths = [[str(train / file), *rest] for file, *rest in named]
        shapes = [str(stats / f"{name}_shape") for name in ("speech", "text")]
        return {"train_data_path_and_name_and_type": paths, "train_shape_file": shapes}

    @property
    def test_set(self) -> Path:
        return self.work / "data/test" / self.test

    def decode(self, folder: Path, name: str, search: Path | None = None) -> None:
        """Write the errors of an experiment in a folder there: in all utterances of the
        test set, and in some of them under each condition."""
        if (folder / ERRORS_FILE).exists():
            return
        waves, texts = read_test_set(self.test_set)
        models = {name: load(folder / name, search or self.search)}
        errors: dict[str, Errors] = {}
        for condition in CONDITIONS:
            step = step_of(condition)
            found = count_errors(models, waves[::step], texts[::step], condition)
            for unit, edits in found[name].items():
                errors.setdefault(unit, {})[condition] = edits
        (folder / ERRORS_FILE).write_text(json.dumps(errors), "utf-8")


@dataclass
class Cell:
    """A method at a budget, with a seed.

    Args:
        config: a hash of its settings, which tells them from others
    """

    corpus: Corpus
    dense: Path
    method: str
    budget: float
    seed: int
    config: str

    @property
    def key(self) -> dict:
        """What tells it from other cells: a row that has it is this cell's."""
        names = "method", "budget", "seed", "config"
        return {name: getattr(self, name) for name in names}

    @property
    def folder(self) -> Path:
        return self.corpus.work / "-".join(str(value) for value in self.key.values())

    @property
    def teacher(self) -> Path:
        return self.dense / "asr_dense"

    @property
    def teacher_conf(self) -> dict[str, str]:
        """What `model_conf` says of the teacher."""
        return {
            "teacher_config": str(self.teacher / "config.yaml"),
            "teacher_model_file": str(self.teacher / AVERAGE),
        }

    def run(self, folder: Path, first: int, last: int, **options: object) -> None:
        """Run stages of the recipe, with the dense model's statistics."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "asr_stats").exists():
            (folder / "asr_stats").symlink_to((self.dense / "asr_stats").resolve())
        self.corpus.run(folder, first, last, seed=self.seed, **options)

    def train_for_all_budgets(self, conf: Mapping) -> Path:
        """A dense model of this seed that cells of other budgets share."""
        name = f"{self.method}-{short_hash([conf, self.dense.name])}-{self.seed}"
        folder, link = self.corpus.work / name, self.folder / "shared"
        self.run(folder, 4, 4, train_config=written(folder / "train.yaml", conf))
        self.folder.mkdir(exist_ok=True)
        if not link.exists():
            link.symlink_to(folder)
        return folder / "asr_dense"

    def prune_conf(self, *changes: Mapping, costs: Sequence[str] = COSTS) -> dict:
        target = dict.fromkeys(costs, self.budget)
        conf = merged(recipe_conf("prune"), {"sparsity_scheduler_conf": SCHEDULE})
        conf["sparsity_goal_conf"] = {"target": target}
        return merged(conf, *changes)

    def finetune_conf(self, *changes: Mapping) -> dict:
        """Of what is no cut network."""
        conf = recipe_conf("finetune")
        del conf["encoder_conf"]["units"]
        conf["model_conf"] |= self.teacher_conf
        return merged(conf | {"encoder": "conformer"}, *changes)

    def adopt(self, options: str) -> Path:
        """Write prune.yaml and finetune.yaml for the dense model, once; see `main`."""
        folder = self.folder / "adopted"
        if not folder.exists():
            words = [self.teacher, "--checkpoint", AVERAGE, "--out", folder, "--no_data"]
            if main(["adopt", *map(str, words), *options.split()]):
                raise SystemExit(f"adopt has refused {self.teacher}")
        return folder

    def cut_and_finetune(self, *changes: Mapping) -> None:
        """From the chosen units in asr_pruned to asr_finetuned."""
        tune = written(
            self.folder / "finetune.yaml", merged(recipe_conf("finetune"), *changes)
        )
        self.run(self.folder, 6, 7, finetune_config=tune, dense_exp=self.teacher)

    def cut_only(self) -> None:
        """From asr_pruned to asr_finetuned, which is not."""
        self.run(self.folder, 6, 6, dense_exp=self.teacher)
        self.end_with("asr_cut")

    def end_with(self, name: str) -> None:
        """Let what is decoded be one of the cell's experiments."""
        last = self.folder / "asr_finetuned"
        if not last.exists():
            last.symlink_to(name)

    def choose(self, importance: str, source: Path, conf: Mapping) -> None:
        """Write asr_pruned by an importance."""
        pruned = self.folder / "asr_pruned"
        if not (pruned / "latest.pth").exists():
            shutil.rmtree(pruned, ignore_errors=True)
            conf = {**conf, **self.corpus.data_conf(self.dense)}
            prune_at_once(source, AVERAGE, conf, importance, pruned, seed=self.seed)
