"""This table holds the range of every number that a user can set.

The configuration, the command line, the JSON schema and the documentation all take their
ranges from `RANGES`. The limits lie beyond what any sensible run asks for: they catch
typing errors, infinity and NaN. Checks that depend on other options or on the network are
made where those are known.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from espnet_l0prune.core.costs import COSTS


@dataclass(frozen=True)
class Range:
    """A `Range` contains the numbers from `low` to `high`; a bool is not a number.

    Args:
        low, high: the ends of the range
        above: whether `low` itself is excluded
        below: whether `high` itself is excluded
        whole: whether only an int is in the range
    """

    low: float
    high: float
    above: bool = False
    below: bool = False
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        kinds = (int,) if self.whole else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool):
            return False
        over = value > self.low if self.above else value >= self.low
        return over and (value < self.high if self.below else value <= self.high)

    @property
    def interval(self) -> str:
        """Return the range in mathematical notation: a round bracket excludes the end."""
        opening, closing = "(" if self.above else "[", ")" if self.below else "]"
        return f"{opening}{self.low:.10g}, {self.high:.10g}{closing}"

    def __str__(self) -> str:
        return f"a {'whole ' if self.whole else ''}number in {self.interval}"

    def schema(self) -> dict:
        """Return the limits as keywords of JSON schema; signatures give the type."""
        low = "exclusiveMinimum" if self.above else "minimum"
        high = "exclusiveMaximum" if self.below else "maximum"
        return {low: self.low, high: self.high}


class Pair(Range):
    """A `Pair` contains two numbers, each in the range."""

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            return False
        return all(super(Pair, self).__contains__(each) for each in value)

    def __str__(self) -> str:
        return f"two numbers in {self.interval}"

    def schema(self) -> dict:
        items = {"type": "number", **super().schema()}
        return {"items": items, "minItems": 2, "maxItems": 2}


class Rising(Range):
    """A `Rising` contains lists of numbers in the range, each above the one before."""

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (list, tuple)) or not value:
            return False
        inside = all(super(Rising, self).__contains__(each) for each in value)
        return inside and all(a < b for a, b in pairwise(value))

    def __str__(self) -> str:
        return f"a list of rising numbers in {self.interval}"

    def schema(self) -> dict:
        return {"items": {"type": "number", **super().schema()}, "minItems": 1}


SHARE = Range(0, 1, above=True, below=True)
SHARES = Rising(0, 1, above=True, below=True)
WEIGHT = Range(0, 1e6)
SECONDS = Range(0, 3600, above=True)
UPDATES = Range(0, 1e9)
COUNT = 1_000_000  # the most epochs, rounds or stairs
LOSS_SCALE = 1e6  # for options that grow with the loss, some 20 an utterance
NETWORK = {
    # from here on the noise-free gate is exactly 1, so that a new network is dense
    "open_probability": Range(0.982, 1, below=True),
    "round_to": Range(1, 65_536, whole=True),
    "random_features": Range(1, 65_536, whole=True),
}
RANGES: dict[str, dict[str, Range]] = {
    "encoder_conf": NETWORK,
    "decoder_conf": NETWORK,
    "model_conf": {
        "task_weight": WEIGHT,
        "layer_weight": WEIGHT,
        "att_kl_weight": WEIGHT,
        "ctc_kl_weight": WEIGHT,
        "transducer_kl_weight": WEIGHT,
        "temperature": Range(0.01, 100),
        "disturb_probability": Range(0, 1),
        "cr_ctc_weight": WEIGHT,
    },
    "optim_conf": {
        "lr": Range(0, 1000),  # noamlr multiplies it by far less than 1
        "gate_lr": Range(0, 10, above=True),
        "betas": Pair(0, 1, below=True),
        "eps": Range(1e-30, 1),  # less is 0 in float32: without a gradient, 0 / 0
        "weight_decay": Range(0, 1000),
    },
    "scheduler_conf": {"warmup_ratio": Range(0, 1, below=True)},
    "sparsity_goal_conf": {
        "target": SHARE,
        "seconds": SECONDS,
        "tokens": Range(1, 10_000, whole=True),
    },
    "sparsity_scheduler_conf": {
        "start": Range(0, 1, below=True),
        "warmup_steps": UPDATES,
        "ramp_steps": UPDATES,
        "hold_steps": UPDATES,
        "milestones": SHARES,
        "stairs": Range(1, COUNT, whole=True),
    },
    "sparsity_constraint_conf": {
        "multiplier_lr": Range(0, LOSS_SCALE, above=True),
        "lambda1": Range(-LOSS_SCALE, LOSS_SCALE),
        "lambda2": Range(0, LOSS_SCALE),
        "kp": Range(0, LOSS_SCALE),
        "ki": Range(0, LOSS_SCALE, above=True),
        "nu": Range(0, 1, below=True),
        "weight": Range(0, LOSS_SCALE, above=True),
        "centre": Range(-100, 100),  # a log_alpha; 100 is that of a gate fixed to 1
    },
    "frontend_conf": {**NETWORK, "fs": Range(1, 1_000_000, whole=True)},
    "command line": {
        "--epochs": Range(1, COUNT, whole=True),
        "--finetune_epochs": Range(1, COUNT, whole=True),
        "--milestones": SHARES,
        "--seconds": SECONDS,
        "--rounds": Range(1, COUNT, whole=True),
        "--beam_size": Range(1, COUNT, whole=True),
        "--ctc_weight": Range(0, 1),
        "--threads": Range(1, 1024, whole=True),
        "--minutes": Range(0, 1440),
        "--reconstruct": Range(8, COUNT, whole=True),
        "--utterances": Range(1, COUNT, whole=True),
    },
}


def range_of(where: str, name: str) -> Range:
    """Return the range of an option; that of a cost on the command line is a share.

    Args:
        where: a key of `RANGES`
        name: the option's name there
    """
    if where == "command line" and name.removeprefix("--") in COSTS:
        return SHARE
    return RANGES[where][name]


def check(where: str, options: Mapping[str, object]) -> None:
    """Refuse a number that is out of its range, and anything that is not a number.

    Args:
        where: a key of `RANGES`, which the message names too
        options: values by the options' names

    Raises:
        ValueError: an option out of its range
    """
    for name, value in options.items():
        expected = range_of(where, name)
        if value not in expected:
            text = isinstance(value, str) and re.fullmatch(r"[-+.\de]+", value)
            remedy = ". YAML reads 2e-2 as a text, and 2.0e-2 as a number" if text else ""
            raise ValueError(f"{where}: {name} is {value!r}; expected {expected}{remedy}")
