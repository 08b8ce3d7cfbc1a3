"""These commands prune, cut and fine-tune what `adopt` has written, with ESPnet2."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from espnet_l0prune.plugin.milestones import milestone_folder

# The command that trains a task's models, where it is not named after the task
TRAIN = {"s2t_ctc": "espnet_l0prune.plugin.s2t_train_ctc"}
CUT = "espnet-l0prune", "cut"


def at(name: str, milestone: float | None) -> str:
    """Return the name of what belongs to a milestone, or to the end for None."""
    return name if milestone is None else f"{name}_{milestone}"


def commands(
    task: str, gpus: int, out: Path, milestones: Sequence[float] = ()
) -> list[str]:
    """Return the commands that prune, cut and fine-tune, on as many GPUs as before.

    Cutting and fine-tuning come once for the end, and then once for each milestone.

    Args:
        task: the short name of ESPnet's task
        gpus: number of GPUs
        out: the folder that `adopt` has written, which has prune.yaml, finetune.yaml and
            a finetune_MILESTONE.yaml for each milestone
        milestones: sparsities at which the pruning writes networks on its way
    """
    train = ["python", "-m", TRAIN.get(task, f"espnet2.bin.{task}_train")]
    if gpus:
        train += ["--ngpu", str(gpus)]
    if gpus > 1:
        train += ["--multiprocessing_distributed", "true"]
    train += ["--resume", "true", "--config"]
    pruned = out / "pruned"
    found: list[list[object]] = [[*train, out / "prune.yaml", "--output_dir", pruned]]
    for share in (None, *milestones):
        gated = pruned if share is None else milestone_folder(pruned, share)
        yaml, folder = out / f"{at('finetune', share)}.yaml", out / at("finetuned", share)
        found.append([*CUT, gated, "--out", out / at("cut", share)])
        found.append([*train, yaml, "--output_dir", folder])
    return [shlex.join(map(str, command)) for command in found]


def script(lines: Sequence[str]) -> str:
    """Return a shell script of these commands, which can be run again after it stopped.

    Trainings resume; what has been cut is not cut again.

    Args:
        lines: what `commands` returned
    """
    text = [
        "#!/bin/sh",
        "# By espnet-l0prune adopt: prunes, and cuts and fine-tunes what each milestone",
        "# and the end have left. Call it where adopt was called. It goes on where it",
        "# stopped; options given to it are given to every training.",
        "set -e",
    ]
    for line in lines:
        words = shlex.split(line)
        if tuple(words[:2]) == CUT:
            text.append(f"[ -e {shlex.quote(words[-1])} ] || {line}")
        else:
            text.append(f'{line} "$@"')
    return "\n".join(text) + "\n"
