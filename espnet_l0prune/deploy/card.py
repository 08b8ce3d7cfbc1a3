"""The model card of a packed model is its README.md, as the model zoo shows it."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import nn

from espnet_l0prune import __version__
from espnet_l0prune.core.costs import COSTS, counted
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.core.reading import read_text
from espnet_l0prune.core.text import in_markdown, one_line, plain
from espnet_l0prune.deploy.inspect import Inspection, build_dense, inspect_model
from espnet_l0prune.networks.sites import find_sites
from espnet_l0prune.plugin.building import task_name
from espnet_l0prune.plugin.counting import make_budget, sites_of
from espnet_l0prune.plugin.experiment import load_experiment

USE = {  # by task or model: ESPnet's module and its class, and what this decodes
    "asr": ("asr_inference", "Speech2Text", "speech"),
    "asr_transducer": ("asr_transducer_inference", "Speech2Text", "speech"),
    "l0_distill_maskctc": ("asr_inference_maskctc", "Speech2Text", "speech"),
    "maskctc": ("asr_inference_maskctc", "Speech2Text", "speech"),
    "mt": ("mt_inference", "Text2Text", "tokens"),
    "slu": ("slu_inference", "Speech2Understand", "speech"),
    "s2t": ("s2t_inference", "Speech2Text", "speech"),
    "s2t_ctc": ("s2t_inference_ctc", "Speech2TextGreedySearch", "speech"),
    "st": ("st_inference", "Speech2Text", "speech"),
}
# The package is in no registry, so its wheel goes from hand to hand.
WHEEL = f"espnet_l0prune-{__version__}-py3-none-any.whl"
SOURCE = (
    f"{WHEEL} is in no registry: `make dist` in the source tree of espnet_l0prune writes "
    "it to dist/."
)
PLUGIN_PACKAGES = f" {WHEEL}"
PAPER = """\
```bibtex
@inproceedings{jiang23_interspeech,
  author={Jiang, Huiqiang and Zhang, Li Lyna and Li, Yuang and Wu, Yu and Cao, Shijie and
    Cao, Ting and Yang, Yuqing and Li, Jinyu and Yang, Mao and Qiu, Lili},
  title={Accurate and Structured Pruning for Efficient Automatic Speech Recognition},
  booktitle={Proc. Interspeech 2023},
  year={2023},
}
@inproceedings{watanabe2018espnet,
  author={Watanabe, Shinji and others},
  title={{ESPnet}: End-to-End Speech Processing Toolkit},
  booktitle={Proc. Interspeech 2018},
  year={2018},
}
```
"""


@dataclass
class About:
    """An `About` holds what only the author of a model knows.

    Args:
        name: the model's name
        licence, language: as the zoo writes them
        datasets: the data sets that it was trained on
    """

    name: str
    licence: str = "cc-by-4.0"
    language: str = "noinfo"
    datasets: tuple[str, ...] = ()


def card_of(experiment: Path, checkpoint: str, about: About) -> str:
    """Return the card that an experiment has when it is exported as a plugin model.

    Raises:
        ValueError: gates, files that are missing or damaged, or an encoder without sites
    """
    model, args = load_finished(experiment, checkpoint)
    return write_card(
        about,
        task_name(args),
        PLUGIN_PACKAGES,
        args,
        inspect_model(model, args),
        results_of(experiment),
        {},
    )


def load_finished(
    experiment: Path, checkpoint: str
) -> tuple[nn.Module, argparse.Namespace]:
    """Return a model that can be shipped, and its options.

    Raises:
        ValueError: gates, or files that are missing or damaged
    """
    model, args = load_experiment(experiment, checkpoint)
    if any(site.gates for site in sites_of(model)):
        raise ValueError(
            f"{experiment} has gates; expected a model that was cut, and fine-tuned"
        )
    return model, args


def results_of(experiment: Path) -> Path | None:
    """Return an experiment's RESULTS.md, as asr.sh and the recipe write it, if any."""
    file = experiment / "RESULTS.md"
    return file if file.exists() else None


def write_card(
    about: About,
    task: str,
    packages: str,
    args: argparse.Namespace,
    inspection: Inspection,
    results: Path | None,
    files: Mapping[str, str],
) -> str:
    """Return the text of a card.

    Args:
        about: what the model's author says of it
        task: ESPnet's short name of the model's task
        packages: the packages that loading it needs in addition to ESPnet's
        args: the experiment's configuration
        inspection: the pruned model, module by module
        results: path of RESULTS.md, or None
        files: names of the files that other programs can use, with what each is
    """
    head = {
        "tags": ["espnet", "audio", "automatic-speech-recognition", "pruning"],
        "language": one_line(about.language),
        "license": one_line(about.licence),
    }
    if about.datasets:
        head["datasets"] = [*map(one_line, about.datasets)]
    module, name, decoded = USE.get(str(getattr(args, "model", None)), USE[task])
    function = name.lower()
    call = f"{function}({decoded})"
    if task == "asr_transducer":
        call = f"{function}.hypotheses_to_results({call})"
    source = f"{SOURCE} Whoever made this model has it.\n\n" if packages else ""
    quoted = json.dumps(plain(about.name), ensure_ascii=False)
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {in_markdown(about.name)}",
        "An ESPnet model, pruned with L0 gates by espnet_l0prune.",
        f"## Use\n\n```sh\npip install espnet espnet_model_zoo{packages}\n```\n\n"
        f"{source}"
        "```python\n"
        f"from espnet2.bin.{module} import {name}\n\n"
        f"{function} = {name}.from_pretrained({quoted})\n"
        f"text, *_ = {call}[0]\n```",
        f"## Dense beside pruned\n\n{_costs(args, inspection)}",
        f"## What is left\n\n{_structure(inspection)}",
    ]
    if files:
        lines = "\n".join(f"- `{name}`: {what}" for name, what in files.items())
        sections.append(
            f"## Graphs for onnxruntime, without torch\n\n{lines}\n\nTokens are counted "
            "as in `token_list` of config.yaml; `<sos/eos>` begins and ends a text."
        )
    if results is not None:
        sections.append(_text_of(results))
    sections.append(f"## Licence and citation\n\n{in_markdown(about.licence)}\n\n{PAPER}")
    return "\n\n".join(sections)


def _text_of(results: Path) -> str:
    try:
        return read_text(results).strip()
    except ValueError as e:
        raise ValueError(
            f"{results} cannot be read ({e}); expected the tables of error rates that "
            "`asr.sh` or the recipe wrote, or no such file"
        ) from e


def _costs(args: argparse.Namespace, inspection: Inspection) -> str:
    """Return a table of the costs of the model and its networks, dense and pruned."""
    lines = ["| | dense | pruned | |", "|---|---|---|---|"]
    dense = build_dense(args)
    heard = ["frontend"] if find_sites(dense.frontend) else []
    for scope in ("model", *heard, "encoder"):
        goal = Goal(scope=scope, seconds=inspection.seconds, tokens=inspection.tokens)
        totals = make_budget(dense, goal).totals
        for name in counted():
            cost = COSTS[name]
            now, before = inspection.amounts[name][scope], totals[name]
            share = f"{now / before - 1:+.1%}" if before else ""
            figures = f"{before / 1e6:,.2f} | {now / 1e6:,.2f} | {share}"
            lines.append(f"| {cost.label} of the {scope} (M) | {figures} |")
    note = f"MACs for {inspection.seconds:g} s of audio and {inspection.tokens} tokens."
    return "\n".join([*lines, "", note])


def _structure(inspection: Inspection) -> str:
    lines = ["| module | units left | parameters |", "|---|---|---|"]
    for row in inspection.rows:
        units = ", ".join(
            f"{kind} {now}/{before}"
            for kind, (before, now) in row.units.items()
            if before != now or before > 1
        )
        lines.append(f"| {row.module} | {units} | {row.amounts['params']:,} |")
    return "\n".join(lines)
