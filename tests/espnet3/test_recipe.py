"""ESPnet3's own recipe mini_an4, by its run.py and with only YAML changed: from the audio
in its wheel to a packed model that decodes."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("espnet3.components.data.base_dataset", reason="before ESPnet3")

from espnet_l0prune.core.optim import progress_in
from tests.espnet3.runs import CALLBACK, last

REPOSITORY = Path(__file__).parents[2]
CONF = REPOSITORY / "egs/espnet3/mini_an4"
OTHERS = {
    "inference_config": "conf/inference.yaml",
    "metrics_config": "conf/metrics.yaml",
    "publication_config": "conf/publication.yaml",
}
# Of sph2pipe, where it is not installed: libsndfile reads this audio, too
SPH2PIPE = f"""#!{sys.executable}
import sys, soundfile
wave, rate = soundfile.read(sys.argv[-1], dtype="int16")
soundfile.write(sys.stdout.buffer, wave, rate, format="WAV")
"""
DECODE = """
import sys
import soundfile
from espnet3.publication import InferenceModel
model = InferenceModel.from_packed("pack")
for file in sys.argv[1:]:
    print("TEXT", model(soundfile.read(file, dtype="float32")[0])["text"])
"""


class Recipe:
    """A copy of the recipe, with our configurations beside its own."""

    def __init__(self, folder: Path):
        (wheel,) = importlib.util.find_spec("egs3.mini_an4").submodule_search_locations
        self.folder = folder / "egs3/mini_an4/esp2_asr"  # whose name says what it is
        shutil.copytree(Path(wheel) / "esp2_asr", self.folder)
        for file in CONF.glob("*.yaml"):
            shutil.copy(file, self.folder / "conf")
        path = [str(Path(sys.executable).parent), os.environ["PATH"]]
        if shutil.which("sph2pipe") is None:
            (folder / "bin").mkdir()
            (folder / "bin/sph2pipe").write_text(SPH2PIPE)
            (folder / "bin/sph2pipe").chmod(0o755)
            path.append(str(folder / "bin"))
        self.env = {**os.environ, "PATH": ":".join(path), "OMP_NUM_THREADS": "1"}
        self.env["PYTHONPATH"] = str(REPOSITORY)  # for `Killed`

    def call(self, *words: str, folder: Path | None = None, status: int = 0) -> str:
        done = subprocess.run(
            list(map(str, words)),
            cwd=folder or self.folder,
            env=self.env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def stages(self, *names: str, conf: str, status: int = 0, **others: str) -> None:
        files = {"training_config": f"conf/{conf}.yaml", **others}
        options = [word for name, file in files.items() for word in (f"--{name}", file)]
        run = [sys.executable, "run.py", "--stages", *names]
        self.call(*run, *options, status=status)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The recipe, after its dense training and a pruning."""
    made = Recipe(tmp_path_factory.mktemp("mini_an4"))
    first = "create_dataset", "train_tokenizer", "collect_stats", "train"
    made.stages(*first, conf="dense")
    made.stages("train", conf="prune")
    return made


def test_killed_in_each_phase_it_is_the_run_that_never_stopped(recipe):
    exp, phases = recipe.folder / "exp/killed", []
    for update in (5, 13, 15, None):
        kill = {"_target_": "tests.espnet3.killed.Killed", "update": update}
        checkpoint = "${exp_dir}/last.ckpt" if phases else None
        conf = {
            "defaults": ["prune", "_self_"],
            "exp_dir": "exp/killed",
            "fit": {"ckpt_path": checkpoint},
            "trainer": {"callbacks": [CALLBACK, *([kill] if update else [])]},
        }
        (recipe.folder / "conf/killed.yaml").write_text(yaml.safe_dump(conf))
        recipe.stages("train", conf="killed", status=-signal.SIGKILL if update else 0)
        progress = progress_in(last(exp)["optimizer_states"][0])
        phases.append(progress.update)
    assert phases == [4, 12, 14, 16]  # of a ramp from 1, a hold from 11, frozen from 13
    whole, resumed = last(recipe.folder / "exp/prune"), last(exp)
    assert whole["state_dict"].keys() == resumed["state_dict"].keys()
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][name]), name


def test_all_stages_end_with_a_packed_model_that_decodes(recipe, tmp_path):
    cut = ["-m", "espnet_l0prune", "cut", "exp/prune", "--out", "exp/cut"]
    recipe.call(sys.executable, *cut)
    last_stages = "train", "infer", "measure", "pack_model"
    recipe.stages(*last_stages, conf="finetune", **OTHERS)
    exp = recipe.folder / "exp/finetune"
    assert {"WER", "CER"} <= set((exp / "inference/metrics.json").read_text().split('"'))
    inferred = (exp / "inference/test/text.scp").read_text().splitlines()
    (exp / "model_pack").rename(tmp_path / "pack")
    shutil.rmtree(exp)  # what is packed needs nothing else, and no teacher
    waves = sorted(recipe.folder.glob("data/wav/test/*.wav"))
    (tmp_path / "decode.py").write_text(DECODE)
    words = [sys.executable, "decode.py", *map(str, waves)]
    texts = recipe.call(*words, folder=tmp_path).splitlines()
    decoded = [line.removeprefix("TEXT ") for line in texts if line.startswith("TEXT ")]
    expected = [line.partition(" ")[2] for line in inferred]
    assert sorted(decoded) == sorted(expected)
