"""Whether a change of the code changes a bit of what it makes.

    python -m tests.golden.golden

writes `golden.json` beside this file: digests of what a few small runs make, from the
training to the report, on this machine. It is there for the refactoring that changes no
figure, and goes with it.
"""

import contextlib
import hashlib
import json
import platform
import re
import tempfile
import zipfile
from pathlib import Path

import espnet
import numpy as np
import onnxruntime
import torch
import yaml

from espnet_l0prune.cli import main
from espnet_l0prune.testing.models import ENCODER
from espnet_l0prune.testing.runs import CONFIG, final, make_data, run

FILE = Path(__file__).with_suffix(".json")
CHECKPOINT = "valid.acc.ave.pth"
STOCK = {
    **{"optim": "adam", "optim_conf": {"lr": 1e-3}},
    **{"sparsity_scheduler": None, "sparsity_constraint": None},
    **{"sparsity_scheduler_conf": {}, "sparsity_constraint_conf": {}},
}
TEACHER = {
    "teacher_config": "exp/dense/config.yaml",
    "teacher_model_file": f"exp/dense/{CHECKPOINT}",
}
LENGTHS = CONFIG["sparsity_scheduler_conf"]
BRANCHES = {k: ENCODER[k] for k in ("output_size", "attention_heads", "num_blocks")}
MERGES = {**BRANCHES, "cgmlp_linear_units": 24, "cgmlp_conv_kernel": 5}
LAYER = {"input_layer": "conv2d"}
CASES: dict[str, dict] = {
    "conformer": {
        "dense": {"encoder": "conformer", "encoder_conf": ENCODER | LAYER},
        "units": "all",
        "conf": {
            "sparsity_scheduler_conf": {**LENGTHS, "target": {"params": 0.3, "macs": 0.3}}
        },
        "forms": ["plugin", "onnx"],
    },
    "e_branchformer": {
        "dense": {
            "encoder": "e_branchformer",
            "encoder_conf": {
                **MERGES,
                "linear_units": 12,
                "use_ffn": True,
                "macaron_ffn": True,
            },
        },
        "units": ["heads", "head_dims", "cgmlp_channels", "ffn_channels", "blocks"],
        "conf": {
            "optim_conf": {"lr": 1e-3, "gate_lr": 0.3, "order": "alternating"},
            "model_conf": {"layer_input": "teacher", "layer_loss": "l1_cosine"},
            "sparsity_constraint": "lagrangian",
            "sparsity_constraint_conf": {"multiplier_lr": 50.0},
        },
        "forms": ["plugin"],
    },
    "branchformer": {
        "dense": {
            "encoder": "branchformer",
            "encoder_conf": {**MERGES, "merge_method": "learned_ave"},
        },
        "units": ["heads", "cgmlp_channels", "block_width", "width"],
        "decoder": {"units": ["heads", "src_heads", "ffn_channels"]},
        "conf": {
            "model_conf": {"layer_map": "dynamic", "layer_projection": "teacher"},
            "sparsity_constraint": "inequality",
            "sparsity_constraint_conf": {"multiplier_lr": 50.0},
            "sparsity_scheduler": "linear",
            "sparsity_scheduler_conf": {**LENGTHS, "scope": "model"},
        },
        "forms": ["plugin"],
    },
    "transformer": {
        "dense": {
            "encoder": "transformer",
            "encoder_conf": {**BRANCHES, "linear_units": 12},
        },
        "units": "default",
        "conf": {
            "encoder_conf": {"gate": "adaptive_dropout", "round_to": 2},
            "sparsity_scheduler_conf": {**LENGTHS, "per": "kind"},
        },
        "forms": ["stock"],
    },
}


def machine() -> dict[str, str]:
    """What bits depend on beside the code."""
    info = Path("/proc/cpuinfo")
    names = re.findall("model name.*: (.*)", info.read_text() if info.exists() else "")
    return {
        "processor": names[0] if names else platform.processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "espnet": espnet.__version__,
    }


def digest(*parts: object) -> str:
    """Of texts, of tensors by name, and of what JSON can hold."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            found.update(f"{part.dtype} {tuple(part.shape)}".encode())
            found.update(part.detach().contiguous().numpy().tobytes())
        elif isinstance(part, dict) and any(
            isinstance(v, torch.Tensor) for v in part.values()
        ):
            for name, tensor in sorted(part.items()):
                found.update(digest(name, tensor).encode())
        else:
            text = part if isinstance(part, str) else json.dumps(part, sort_keys=True)
            found.update(text.encode())
    return found.hexdigest()[:16]


def history(out: Path) -> list:
    """All figures that ESPnet reported, without times."""
    timed = re.compile("time|cached_mem")
    stats = final(out)["reporter"]["stats"]
    return [
        {
            f"{epoch}.{part}.{name}": float(value)
            for part, figures in stats[epoch].items()
            for name, value in figures.items()
            if not timed.search(name)
        }
        for epoch in sorted(stats)
    ]


def computed(graph: Path) -> dict[str, torch.Tensor]:
    """What onnxruntime makes of inputs that are no random numbers."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options)
    sizes = {"batch": 2, "length": 3, "length_before": 2, "frames": 50}
    feeds = {}
    for x in session.get_inputs():
        shape = [sizes.get(size, size) for size in x.shape]
        values = np.sin(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)
        feeds[x.name] = (
            values if x.type == "tensor(float)" else np.abs(4 * values).astype(int)
        )
    names = [x.name for x in session.get_outputs()]
    found = zip(names, session.run(names, feeds), strict=True)
    return {name: torch.from_numpy(value) for name, value in found}


def in_zip(file: Path) -> dict[str, str]:
    """Digests of a zip's members."""
    found = {}
    with zipfile.ZipFile(file) as archive, tempfile.TemporaryDirectory() as folder:
        for name in sorted(archive.namelist()):
            path = Path(archive.extract(name, folder))
            if path.suffix == ".pth":
                found[name] = digest(torch.load(path))
            elif path.suffix in (".yaml", ".md"):
                found[name] = digest(without_versions(path.read_text()))
            elif path.suffix == ".onnx":
                found[name] = digest(computed(path))
    return found


def without_versions(text: str) -> str:
    """A text without the times and versions that a card or a configuration has."""
    return re.sub(r"(?m)^.*(\d\d\d\d-\d\d-\d\d|version|timestamp|RTF|rtf).*\n", "", text)


def make(case: dict) -> dict[str, object]:
    """Train, prune, cut, fine-tune and export in the current folder; digest it all."""
    Path("exp").mkdir()
    make_data(Path("data"))
    plain = {**STOCK, **case["dense"], "model": "espnet", "max_epoch": 1}
    run(Path("data"), Path("exp/dense"), **plain)
    conf = dict(case["conf"])
    encoder = {**case["dense"]["encoder_conf"], **conf.pop("encoder_conf", {})}
    prune = {
        "encoder": f"l0_{case['dense']['encoder']}",
        "encoder_conf": {**encoder, "units": case["units"]},
        **conf,
        "model_conf": {"ctc_weight": 0.3, **TEACHER, **conf.get("model_conf", {})},
    }
    if "decoder" in case:
        decoder = {**CONFIG["decoder_conf"], **case["decoder"]}
        prune |= {"decoder": "l0_transformer", "decoder_conf": decoder}
    run(Path("data"), Path("exp/pruned"), **prune)
    assert main(["cut", "exp/pruned", "--out", "exp/cut"]) == 0
    finetune = {**prune, **STOCK, "max_epoch": 1}
    cut = yaml.safe_load(Path("exp/cut/config.yaml").read_text())
    finetune |= {name: cut[name] for name in ("encoder_conf", "decoder_conf")}
    more = "--init_param", "exp/cut/model.pth"
    run(Path("data"), Path("exp/finetuned"), *more, **finetune)
    found: dict[str, object] = {}
    for name in ("dense", "pruned", "finetuned"):
        found[f"{name} weights"] = digest(final(Path("exp", name))["model"])
        found[f"{name} history"] = digest(history(Path("exp", name)))
    figures = history(Path("exp/pruned"))[-1]
    found["pruned figures"] = {
        name: value for name, value in figures.items() if "valid.loss" in name
    }
    found["cut weights"] = digest(torch.load("exp/cut/model.pth"))
    for name in ("structure.yaml", "cut.json", "config.yaml"):
        found[name] = digest(without_versions(Path("exp/cut", name).read_text()))
    for form in case["forms"]:
        command = ["export", form, "exp/finetuned", "--out", f"{form}.zip"]
        assert main([*command, "--checkpoint", CHECKPOINT]) == 0
        found[form] = in_zip(Path(f"{form}.zip"))
    return found


def make_in_a_folder(name: str) -> dict[str, object]:
    """What `make` finds for a case; all paths in it are relative."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("data").mkdir()
        try:
            return make(CASES[name])
        finally:
            torch.set_num_threads(threads)


if __name__ == "__main__":
    cases = {name: make_in_a_folder(name) for name in CASES}
    FILE.write_text(json.dumps({"machine": machine(), "cases": cases}, indent=1) + "\n")
