"""The whole recipe, shrunk: corpus to score, every stage a real one."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from espnet2.bin.asr_inference import Speech2Text
from espnet2.tasks.asr import ASRTask
from espnet_model_zoo.downloader import ModelDownloader

from espnet_l0prune.cli import main
from espnet_l0prune.report.results import read_results, results_file

pytestmark = pytest.mark.slow
RECIPE = Path(__file__).parents[2] / "egs/librispeech"
TINY = {
    "encoder_conf": {"output_size": 16, "linear_units": 32, "num_blocks": 2},
    "decoder_conf": {"linear_units": 16, "num_blocks": 1},
}
TARGET = 0.3
SCHEDULE = {"in_epochs": False, "warmup_steps": 1, "ramp_steps": 3, "hold_steps": 3}
SETTINGS = {f"sparsity_scheduler_conf.{name}": value for name, value in SCHEDULE.items()}
PRUNE_ARGS = [
    *("--params", f"{TARGET}", "--epochs", "2", "--finetune_epochs", "1"),
    *(word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")),
]


def shrink(name: str, out: Path, **more) -> Path:
    """The recipe's own configuration with tiny dimensions."""
    config = yaml.safe_load((RECIPE / f"conf/{name}.yaml").read_text())
    for conf, values in TINY.items():
        config[conf] |= values
    config |= {"max_epoch": 1, "batch_bins": 200000, "use_matplotlib": False, **more}
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("recipe")
    corpus = [RECIPE / "local/mini_corpus.py", work / "corpus", "--scale", "0.05"]
    subprocess.run([sys.executable, *map(str, corpus)], check=True)
    folded = {"batch_type": "folded", "batch_size": 8, "fold_length": [80000, 150]}
    shrink("train_mini", work, **folded)
    return work


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> dict[str, str]:
    """An environment in which ESPnet cannot be imported."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "espnet2.py").write_text("raise ImportError('a broken ESPnet')")
    return {"PYTHONPATH": str(folder)}


def run(
    work: Path, *more: str | Path, check: bool = True, **environment: str
) -> subprocess.CompletedProcess:
    command = [
        RECIPE / "run.sh",
        *("--corpus", work / "corpus", "--train_sets", "train-mini"),
        *("--valid_sets", "dev-mini", "--test_sets", "test-mini"),
        *("--datadir", work / "data", "--expdir", work / "exp"),
        *("--train_config", work / "train_mini.yaml"),
        *("--prune_args", " ".join(PRUNE_ARGS)),
        *("--train_args", "--frontend_conf n_mels=40"),
        *more,
    ]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
        **environment,
    }
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=environment
    )
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_from_corpus_to_score(work):
    first = run(work)
    assert "WER test-mini" in first.stdout
    report = json.loads((work / "exp/asr_cut/cut.json").read_text())
    assert abs(report["sparsity"]["params"] - TARGET) <= 0.005
    assert report["difference"]["float64"] <= 1e-10
    assert (work / "exp/asr_pruned.zip").exists()
    measures = json.loads((work / "exp/decode/measures.json").read_text())["models"]
    before, after = report["encoder_parameters"]
    assert measures["dense"]["encoder_parameters"] == before
    assert measures["pruned"]["encoder_parameters"] == after

    results = read_results(results_file(work / "exp/asr_pruned"))
    assert [result.name for result in results] == ["dense", "pruned"]
    assert results[1].macs == measures["pruned"]["macs"]
    shown = f"{100 * results[1].wer['test-mini']:.2f}"
    assert shown in (work / "exp/RESULTS.md").read_text()
    assert main(["report", str(work / "exp"), "--out", str(work / "report")]) == 0
    assert f"<td>{shown}</td>" in (work / "report/index.html").read_text()

    # nothing is done twice, until an output is gone
    again = run(work, "--stop_stage", "9")
    assert again.stdout.count("already done") == 10, again.stdout  # pruning has two
    shutil.rmtree(work / "data/tokens_char")
    repaired = run(work, "--stop_stage", "3")
    assert repaired.stdout.count("already done") == 2, repaired.stdout
    assert (work / "data/tokens_char/tokens.txt").exists()


def test_the_demo_says_what_it_shows_and_how_long_it_takes(work, broken):
    """Once, before the first stage that has anything to do: here, tokens alone."""
    bpe = ["--token_type", "bpe", "--nbpe", "40", "--stage", "2", "--stop_stage", "2"]
    first, again = (run(work, "--corpus", "mini", *bpe).stdout for _ in range(2))
    assert "and a table shows dense\nbeside pruned:" in first
    assert re.search(r"\nstage 2: [\d:]+ python3, about 1 min left\n", first)
    assert again.startswith("stage 2: already done")
    assert "min left" not in run(work, *bpe, "--nbpe", "39").stdout  # of another corpus
    mini = ["--corpus", "mini", *bpe, "--nbpe", "38"]
    failed = run(work, *mini, check=False, **broken)
    assert failed.returncode == 1
    assert "no training step can be timed" in failed.stderr


def test_the_forecast_follows_what_was_measured(work):
    """Of the three trainings, the dense one takes longest, and fine-tuning least."""
    forecast = runpy.run_path(str(RECIPE / "local/forecast.py"))
    assert 0 < forecast["update_seconds"](work / "train_mini.yaml") < 60
    seconds = forecast["stage_seconds"](6.0, 0.3)
    assert len(seconds) == 10
    assert 10 < sum(seconds) / 60 < 18
    assert seconds[3] > seconds[4] > seconds[6] > 0


def test_the_pack_is_whole_and_has_no_teacher(work):
    with zipfile.ZipFile(work / "exp/asr_pruned.zip") as archive:
        names = set(archive.namelist())
        config = yaml.safe_load(archive.read("config.yaml"))
        card = archive.read("README.md").decode()
    files = "meta.yaml", "config.yaml", "model.pth", "feats_stats.npz", "README.md"
    assert names == {*files, "RESULTS.md"}
    assert (work / "exp/RESULTS.md").read_text().strip() in card
    assert config["normalize_conf"]["stats_file"] == "feats_stats.npz"
    assert "teacher_config" not in config["model_conf"]
    assert config["encoder_conf"]["structure"]["encoders.0.self_attn"]["heads"] <= 4


def test_the_pack_decodes_alone_to_the_text_of_before_packing(
    work, tmp_path, monkeypatch
):
    """No experiment, no teacher, an empty home, another folder."""
    options = {"beam_size": 5, "ctc_weight": 0.5}
    exp = work / "exp/asr_finetuned"
    direct = Speech2Text(exp / "config.yaml", exp / "valid.acc.ave.pth", **options)
    archive = shutil.copy(work / "exp/asr_pruned.zip", tmp_path / "a.zip")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (work / "exp").rename(work / "away")
    try:
        files = ModelDownloader(tmp_path / "cache").download_and_unpack(str(archive))
        packed = Speech2Text.from_pretrained(**files, **options)
    finally:
        (work / "away").rename(work / "exp")
    found = []
    for line in (work / "data/test/test-mini/wav.scp").read_text().splitlines():
        utt, path = line.split()
        wave = soundfile.read(path, dtype="float32")[0]
        text = direct(wave)[0][0]
        assert packed(wave)[0][0] == text
        found.append(f"{utt} {text}".rstrip())
    assert len(found) == 8
    # and the recipe's own decoding gave the same
    written = (work / "exp/decode/pruned/test-mini/text").read_text().splitlines()
    assert found == written


def test_changed_settings_do_not_touch_a_training(work):
    checkpoint = work / "exp/asr_dense/checkpoint.pth"
    before = checkpoint.stat().st_mtime_ns
    result = run(work, "--stage", "4", "--stop_stage", "4", "--seed", "1", check=False)
    assert result.returncode == 1
    assert "was trained with other settings" in result.stderr
    assert checkpoint.stat().st_mtime_ns == before


def test_changed_options_of_adopt_do_not_touch_what_was_made(work):
    made = work / "exp/asr_adopted/prune.yaml"
    before = made.read_text()
    stage = ["--stage", "5", "--stop_stage", "5"]
    result = run(work, *stage, "--prune_args", "--params 0.4", check=False)
    assert result.returncode == 1
    assert f"{made.parent} was made with other options" in result.stderr
    again = run(work, *stage).stdout
    assert f"already done ({work / 'exp/asr_pruned/.done'})" in again
    assert made.read_text() == before


def test_what_adopt_refuses_stops_the_recipe(work, tmp_path):
    """Here, an option that it does not have; which budgets it refuses, its tests say."""
    (tmp_path / "asr_stats").symlink_to(work / "exp/asr_stats")
    options = ["--dense_exp", work / "exp/asr_dense", "--expdir", tmp_path]
    options += ["--stage", "5", "--prune_args", "--sparsity 0.5"]
    result = run(work, *options, check=False)
    assert result.returncode == 2
    assert "unrecognized arguments: --sparsity" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["asr_stats"]


def test_a_dense_experiment_keeps_its_tokens_and_its_normalization(work, tmp_path):
    """It was trained elsewhere, on other tokens and statistics than this recipe makes."""
    dense, exp = tmp_path / "dense", tmp_path / "exp"
    exp.mkdir()
    (exp / "asr_stats").symlink_to(work / "exp/asr_stats")
    shutil.copytree(work / "exp/asr_dense", dense)
    config = yaml.safe_load((dense / "config.yaml").read_text())
    theirs = shutil.copy(work / "exp/asr_stats/train/feats_stats.npz", dense)
    config["normalize_conf"] = {"stats_file": str(theirs)}
    config["token_list"][2:-1] = config["token_list"][-2:1:-1]
    (dense / "config.yaml").write_text(yaml.safe_dump(config))
    options = ["--dense_exp", dense, "--expdir", exp, "--train_program", "echo"]
    done = run(work, *options, "--stage", "5", "--stop_stage", "5", check=False)
    assert "stage 5 ended without writing" in done.stderr, done.stderr
    words = (exp / "asr_pruned/train.log").read_text().split()
    args = ASRTask.get_parser().parse_args(words)
    for name in ("token_list", "normalize", "normalize_conf"):
        assert getattr(args, name) == config[name]


def test_yaml_of_ones_own_in_place_of_what_adopt_writes(work, tmp_path):
    """Those that a reader finds in conf/ can be trained, too.

    The recipe says how it would start the training, which this process then does.
    """
    (tmp_path / "asr_stats").symlink_to(work / "exp/asr_stats")
    goal = {"sparsity_goal_conf": {"target": TARGET}, "sparsity_scheduler_conf": SCHEDULE}
    configs = shrink("prune", tmp_path, **goal, max_epoch=2), shrink("finetune", tmp_path)
    options = ["--dense_exp", work / "exp/asr_dense", "--expdir", tmp_path]
    options += ["--prune_config", configs[0], "--finetune_config", configs[1]]
    options += ["--train_program", "echo", "--stop_stage"]

    def train(stage: str, out: Path) -> None:
        said = run(work, *options, stage, "--stage", stage, check=False).stderr
        assert f"stage {stage} ended without writing" in said
        ASRTask.main(cmd=(out / "train.log").read_text().split())

    train("5", pruned := tmp_path / "asr_pruned")
    assert main(["cut", str(pruned), "--out", str(tmp_path / "asr_cut")]) == 0
    train("7", tmp_path / "asr_finetuned")
    assert not (tmp_path / "asr_adopted").exists()
    assert (tmp_path / "asr_finetuned/valid.acc.ave.pth").exists()


def test_milestones_are_cut_and_fine_tuned_too(work, tmp_path):
    """With the commands of the end, each in folders of its own."""
    run(work, "--stop_stage", "4")
    (tmp_path / "asr_stats").symlink_to(work / "exp/asr_stats")
    longer = [word.replace("ramp_steps=3", "ramp_steps=12") for word in PRUNE_ARGS]
    longer[longer.index("--epochs") + 1] = "6"
    options = ["--dense_exp", work / "exp/asr_dense", "--expdir", tmp_path]
    options += ["--prune_args", " ".join(longer), "--milestones", "0.15"]
    options += ["--stage", "5", "--stop_stage", "7"]
    run(work, *options)
    for end, target in (("", TARGET), ("_0.15", 0.15)):
        cut = json.loads((tmp_path / f"asr_cut{end}/cut.json").read_text())
        assert abs(cut["sparsity"]["params"] - target) <= 0.02
        finetuned = tmp_path / f"asr_finetuned{end}"
        assert (finetuned / "valid.acc.ave.pth").exists()
        conf = yaml.safe_load((finetuned / "config.yaml").read_text())
        assert conf["init_param"] == [str(tmp_path / f"asr_cut{end}/model.pth")]
        left = yaml.safe_load((tmp_path / f"asr_cut{end}/structure.yaml").read_text())
        assert conf["encoder_conf"]["structure"] == left
    assert run(work, *options).stdout.count("already done") == 6


def test_statistics_are_of_the_features_that_are_trained_on(work):
    with np.load(work / "exp/asr_stats/train/feats_stats.npz") as stats:
        assert stats["sum"].shape == (40,)


def test_another_program_can_train(work, tmp_path):
    """Here, one that says how it was called, and trains nothing."""
    stage = ["--stage", "3", "--stop_stage", "3", "--expdir", tmp_path]
    result = run(work, *stage, "--train_program", "echo called with", check=False)
    assert "stage 3 ended without writing" in result.stderr
    said = (tmp_path / "asr_stats/train.log").read_text()
    assert said.startswith(f"called with --config {work / 'train_mini.yaml'} --output")


def test_a_configuration_may_normalize_as_it_likes(work, tmp_path):
    (tmp_path / "asr_stats").symlink_to(work / "exp/asr_stats")
    stage = ["--stage", "4", "--stop_stage", "4", "--expdir", tmp_path]
    text = (work / "train_mini.yaml").read_text()
    for more, expected in (
        ("", "global_mvn"),
        ("normalize: utterance_mvn\n", "utterance_mvn"),
        ("normalize: null\n", None),
    ):
        (config := tmp_path / "train.yaml").write_text(text + more)
        options = ["--train_config", config, "--train_program", "echo"]
        run(work, *stage, *options, check=False)
        words = (tmp_path / "asr_dense/train.log").read_text().splitlines()[-1].split()
        assert ASRTask.get_parser().parse_args(words).normalize == expected
        shutil.rmtree(tmp_path / "asr_dense")


def test_a_failed_training_names_its_log(work, broken, tmp_path):
    (tmp_path / "asr_stats").symlink_to(work / "exp/asr_stats")
    options = ["--dense_exp", work / "exp/asr_dense", "--expdir", tmp_path]
    options += ["--stage", "5", "--stop_stage", "5"]
    for name in ("--prune_config", "--finetune_config"):
        options += [name, work / "train_mini.yaml"]
    result = run(work, *options, check=False, **broken)
    assert result.returncode == 1
    log = tmp_path / "asr_pruned/train.log"
    assert f"training failed; the whole log is {log}" in result.stderr
    assert "a broken ESPnet" in log.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--corpus", "/nonexistent"], "no such folder"),
        (["--train_sets", "train-none"], "has no split 'train-none'"),
        (["--stages", "1"], "unknown option --stages"),
        (["--stage", "11"], "stages are 1 to 10"),
        (["--prune_config", "none.yaml"], "no such configuration"),
        (["--expdir", "with a space"], "no spaces in paths"),
        (["--train_sets", ""], "needs --train_sets, --valid_sets and --test_sets"),
        (["--nbpe"], "--nbpe needs a value"),
        (["--dry_run", "True"], "--dry_run is true or false, not 'True'"),
        (["--ngpu", "all"], "--ngpu is a number, not 'all'"),
        (["--milestones", "0.2 1"], "--milestones are sparsities, not '1'"),
    ],
)
def test_bad_options(work, options, message):
    result = run(work, "--stop_stage", "1", *options, check=False)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
