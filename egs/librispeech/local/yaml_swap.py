#!/usr/bin/env python3
"""Write the YAML swaps, which show a reader what changes in the YAML of a training.

conf/prune.yaml and conf/finetune.yaml are conf/train_small.yaml with other values on the
lines that are marked with "<-": those that `espnet-l0prune adopt` writes. The recipes do
not read them, but call `adopt` with the options that are used here.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.cli import main as espnet_l0prune
from espnet_l0prune.core.reading import read_yaml
from espnet_l0prune.plugin.building import build_model

RECIPE = Path(__file__).resolve().parents[1]
TOKENS = ["<blank>", "<unk>", *map(str, range(4997)), "<sos/eos>"]
MARK = "  # <-"
# Paths, which the recipes give on the command line.
PATHS = "init_param", "structure", "teacher_config", "teacher_model_file"
# By the dense training's YAML: names of the swaps, of which {} is prune or finetune.
SWAPS = {
    "conf/train_small.yaml": "conf/{}.yaml",
    "asr1/conf/train_asr_conformer.yaml": "asr1/conf/{}_asr_conformer.yaml",
}


def write_dense(train: Path, folder: Path) -> None:
    """Write the experiment of a dense training, with random weights."""
    command = ["--config", str(train), "--output_dir", str(folder)]
    args = ASRTask.get_parser().parse_args([*command, "--token_type", "char"])
    args.token_list = TOKENS
    torch.manual_seed(0)
    folder.mkdir()
    torch.save(build_model(args).state_dict(), folder / "model.pth")
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)), "utf-8")


def options_of(train: Path) -> list[str]:
    """Return the options of `adopt` that a recipe has; that of asr1 has its defaults."""
    if train.parent != RECIPE / "conf":
        return ["--params", "0.5"]
    corpus = train.stem.removeprefix("train_")  # mini, or another
    words = (
        f"--corpus {corpus} --train_sets - --valid_sets - --test_sets - --dry_run true"
    )
    said = subprocess.run(
        [RECIPE / "run.sh", *words.split()], capture_output=True, text=True, check=True
    )
    (line,) = (x for x in said.stdout.splitlines() if x.startswith("  adopt "))
    return line.split("--no_data")[1].split()


def adopt(train: Path, work: Path) -> dict[str, dict]:
    """Adopt the dense model of a training.

    Args:
        train: the YAML of the dense training
        work: an empty folder, which gets the experiment `dense` and what `adopt` makes of
            it, `adopted`

    Returns:
        by `dense`, `prune` and `finetune`, their configurations
    """
    write_dense(train, work / "dense")
    command = ["adopt", str(work / "dense"), "--out", str(work / "adopted"), "--no_data"]
    if espnet_l0prune([*command, *options_of(train)]):
        sys.exit(f"adopt refuses the model of {train}")
    files = {kind: work / f"adopted/{kind}.yaml" for kind in ("prune", "finetune")}
    files["dense"] = work / "dense/config.yaml"
    return {kind: read_yaml(file) for kind, file in files.items()}


def changes(new: Mapping, old: Mapping) -> dict[str, Any]:
    """Return what differs in a new configuration, but for paths; mappings by key, where
    None stands for a key that is gone."""
    found: dict[str, Any] = {}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict):
            old_ones = before if isinstance(before, dict) else {}
            gone = dict.fromkeys(old_ones.keys() - value.keys())
            value = {**gone, **changes(value, old_ones)} or before
        if key not in PATHS and value != before:
            found[key] = value
    return found


def sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """Split a YAML into its options, each with its lines; comments have the name ''."""
    name, lines = "", []
    for line in text.splitlines():
        if line[:1].isalpha():
            yield name, lines
            name, lines = line.split(":")[0], []
        lines.append(line)
    yield name, lines


def entries(conf: Mapping, indent: str = "") -> list[str]:
    """Return marked lines, one for each option."""
    lines = []
    for key, value in conf.items():
        if indent and value is None:
            lines.append(f"{indent}# no {key}{MARK}")
        elif isinstance(value, dict) and not indent:
            lines += [f"{key}:{MARK}", *entries(value, "    ")]
        else:
            text = yaml.safe_dump({key: value}, default_flow_style=True, sort_keys=False)
            lines.append(f"{indent}{text.strip()[1:-1]}{MARK}")
    return lines


def swap(text: str, changed: Mapping) -> list[str]:
    """Return the lines of a YAML, without its head, with options changed or added."""
    lines, rest = [], dict(changed)
    for name, section in sections(text):
        body = [line for line in section if line]
        if name not in rest:
            lines += section if name else []
            continue
        new = rest.pop(name)
        if isinstance(new, dict):
            for line in body:
                key = line.split(":")[0].strip()
                lines += entries({key: new.pop(key)}, "    ") if key in new else [line]
            lines += entries(new, "    ")
        else:
            lines += entries({name: new})
        lines += section[len(body) :]
    return [*lines, "", *entries(rest)]


def swaps(train: Path, conf: Mapping[str, dict]) -> dict[str, str]:
    """Return the texts of the swaps of a training's YAML, by `prune` and `finetune`.

    Args:
        train: the YAML of the dense training
        conf: what `adopt` returns for it
    """
    texts = {}
    for kind, verb, start in (
        ("prune", "prune", "the weights to start from"),
        ("finetune", "fine-tune", "the network that was cut"),
    ):
        head = [
            f"# {train.name} with what `espnet-l0prune adopt` changes in it to",
            f'# {verb} the model, marked with "<-". local/yaml_swap.py wrote this.',
            f"# The command line has to name the teacher and {start}.",
        ]
        changed = changes(conf[kind], conf["dense"])
        lines = [*head, *swap(train.read_text("utf-8"), changed)]
        texts[kind] = "\n".join(lines).rstrip() + "\n"
    return texts


def main() -> None:
    for train, name in SWAPS.items():
        with tempfile.TemporaryDirectory() as work:
            conf = adopt(RECIPE / train, Path(work))
        for kind, text in swaps(RECIPE / train, conf).items():
            (RECIPE / name.format(kind)).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
