"""These small models are built as ESPnet builds them."""

import argparse
import copy

import torch
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.core.gates import LogAlpha
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.plugin.counting import make_budget

TOKENS = ["<blank>", "<unk>", *"ABCDEFGH", "<space>", "<sos/eos>"]
ENCODER = {
    "output_size": 16,
    "attention_heads": 4,
    "linear_units": 12,
    "num_blocks": 2,
    "macaron_style": True,
    "rel_pos_type": "latest",
    "cnn_module_kernel": 5,
}


def arguments(**changes) -> argparse.Namespace:
    """Return a configuration of `ASRTask`, with some of its options changed."""
    parser = ASRTask.get_parser()
    args = parser.parse_args(["--output_dir", "none", "--token_type", "char"])
    args.token_list, args.input_size = list(TOKENS), 20
    args.encoder, args.encoder_conf = "l0_conformer", copy.deepcopy(ENCODER)
    args.decoder = "transformer"
    args.decoder_conf = {"attention_heads": 2, "linear_units": 8, "num_blocks": 1}
    args.model, args.model_conf = "l0_distill", {"ctc_weight": 0.3}
    args.optim, args.optim_conf = "l0_adamw", {"lr": 1e-3, "weight_decay": 0.0}
    for name, value in changes.items():
        old = getattr(args, name)
        new = {**old, **value} if isinstance(value, dict) else value
        setattr(args, name, new)
    return args


def model(seed: int = 0, **changes):
    """Return a model of `arguments` with weights drawn from a seed."""
    torch.manual_seed(seed)
    return ASRTask.build_model(arguments(**changes))


def budget(net, scope: str = "encoder"):
    """Return the model's budget, for some of the frames and tokens of `batch`."""
    return make_budget(net, Goal(scope=scope, seconds=0.8, tokens=6))


def whole(network, structure: dict) -> dict:
    """Return a structure that names every site, where sites not named keep all units."""
    sites = network.structure().items()
    return {name: {**left, **structure.get(name, {})} for name, left in sites}


def disturb_(module: torch.nn.Module, seed: int = 0) -> None:
    """Give biases, norms and running statistics values that are not their defaults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if (
                tensor.dim() == 1
                and tensor.is_floating_point()
                and not isinstance(tensor, LogAlpha)
            ):
                noise = torch.rand(tensor.shape, generator=generator).to(tensor)
                tensor.copy_(0.5 + noise)
