"""A goal says what a pruning must reach; options, cut and report all share this value."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from espnet_l0prune.core.costs import COSTS, TIME
from espnet_l0prune.core.profile import Profile
from espnet_l0prune.core.ranges import check

WHERE = "sparsity_goal_conf"
NETWORKS = ("frontend", "encoder", "decoder")  # of a model, which can have gates
SCOPES = (*NETWORKS, "model")
PARTS = ("block", "kind", None)


@dataclass(frozen=True)
class Goal:
    """A `Goal` says which share of a network is removed, and how that share is counted.

    Args:
        target: sparsity to reach, in (0, 1): the share of the parameters to remove; or a
            mapping from the costs `params`, `macs` and `time` to the share of each
        scope: the network whose costs are counted: `frontend`, `encoder`, `decoder`, or
            the whole `model`
        per: whether every `block`, or every `kind` of module, must meet the targets by
            itself; null holds the scope as a whole to them
        seconds: length in seconds of the utterance for which MACs are counted
        tokens: number of tokens that the decoder emits for it in one parallel pass
        profile: what `espnet-l0prune profile` measured on the device where the encoder is
            to run, which a target in `time` needs; in a configuration, the path of the
            file or its content

    Raises:
        ValueError: an unknown cost, `scope` or `per`; a number out of its range; a
            profile that is damaged, or cannot be had for what is counted
    """

    target: float | Mapping[str, float] = 0.5
    scope: str = "encoder"
    per: str | None = None
    seconds: float = 10.0
    tokens: int = 40
    profile: Mapping | None = None

    def __post_init__(self):
        if not self.targets or not set(self.targets) <= set(COSTS):
            raise ValueError(
                f"{WHERE}: target is {self.target}; expected a number, or a mapping with "
                f"some of {', '.join(COSTS)}"
            )
        for share in self.targets.values():
            check(WHERE, {"target": share})
        if self.per not in PARTS:
            raise ValueError(
                f"{WHERE}: per is {self.per!r}; expected block, kind, or null for one "
                "target"
            )
        if self.scope not in SCOPES:
            raise ValueError(
                f"{WHERE}: scope is {self.scope!r}; expected one of {', '.join(SCOPES)}"
            )
        check(WHERE, {"seconds": self.seconds, "tokens": self.tokens})
        if self.profile is not None:
            self._check_profile()
        elif TIME in self.targets:
            raise ValueError(
                f"{WHERE}: target has {TIME}, but there is no profile; expected "
                "`profile: FILE` beside it, or `adopt --profile FILE`, which "
                "`espnet-l0prune profile` writes on the device where it is to run"
            )

    def _check_profile(self) -> None:
        measured = self.measured
        if self.scope != "encoder" or self.per is not None:
            raise ValueError(
                f"{WHERE}: scope is {self.scope!r}, per is {self.per!r}; expected scope: "
                "encoder without per, as a profile is that of an encoder as a whole"
            )
        if measured is not None and measured.seconds != self.seconds:
            raise ValueError(
                f"{WHERE}: seconds is {self.seconds:g}, but the profile was measured for "
                f"{measured.seconds:g} s; expected the same"
            )

    @functools.cached_property
    def measured(self) -> Profile | None:
        """Return the profile, checked; None without one."""
        if self.profile is None:
            return None
        return Profile.from_plain(self.profile, f"{WHERE}: profile")

    @property
    def targets(self) -> dict[str, float]:
        """Return the sparsity to reach, by cost."""
        if isinstance(self.target, Mapping):
            return dict(self.target)
        return {"params": self.target}
