"""Here are ESPnet's networks with gates, or cut down to a structure."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.gates import GATES, draw_all
from espnet_l0prune.core.plan import Plan, Structure, structure_of
from espnet_l0prune.core.ranges import check
from espnet_l0prune.core.sites import Site
from espnet_l0prune.networks.espnet_modules import (
    BranchformerEncoder,
    ConformerEncoder,
    ContextualBlockConformerEncoder,
    ContextualBlockTransformerEncoder,
    EBranchformerCTCEncoder,
    EBranchformerEncoder,
    ESPnetSSLFrontend,
    MultiConvConformerEncoder,
    MultiSpeakerTransformerEncoder,
    OpenAIWhisperDecoder,
    OpenAIWhisperEncoder,
    S3prlFrontend,
    TransducerEncoder,
    TransformerDecoder,
    TransformerEncoder,
)
from espnet_l0prune.networks.linearize import linearize_
from espnet_l0prune.networks.s3prl import attend_by_layers_
from espnet_l0prune.networks.sites import find_sites
from espnet_l0prune.networks.streaming import refuse_short_
from espnet_l0prune.networks.units import choose_units
from espnet_l0prune.plugin.espnet_ssl import ESPnetSSLNetwork
from espnet_l0prune.plugin.s3prl import S3prlNetwork
from espnet_l0prune.plugin.signature import check_options, show_stock_options
from espnet_l0prune.plugin.transducer import TransducerNetwork
from espnet_l0prune.plugin.weight_names import read_any_names_
from espnet_l0prune.plugin.whisper import WhisperNetwork

if TYPE_CHECKING:
    from espnet_l0prune.networks.espnet_modules import ConformerEncoder as MixedWith
else:
    MixedWith = object


class L0Network(MixedWith):
    """An `L0Network` adds options to the ESPnet class that it is mixed with.

    Args:
        units: kinds of units that get gates, as a list or as a word: `default`, `paper`
            (those of Jiang et al. 2023) or `all`; with an empty list the network has no
            gates
        gate: distribution of the gates: `hard_concrete`, or `adaptive_dropout`
        open_probability: probability P(z > 0) of every gate at the start
        round_to: keep a multiple of this many channels, dimensions and features
        uniform: keep the same number of channels in every FFN, and in every cgMLP, so
            that plain ESPnet can express the cut network
        structure: how many units each site of a cut network has; null for an uncut one
        random_features: number of random features that estimate the softmax attention of
            an encoder's blocks (FAVOR+), in time and memory that grow with the length and
            not with its square; null for ESPnet's own attention

    Raises:
        ValueError: an unknown option, gate or kind of unit, a kind that cannot be pruned
            with these options, a number out of its range, `round_to` beyond a site's
            size, or a structure that does not fit
    """

    conf_name: str  # ESPnet's option that configures the network

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if L0Network in cls.__bases__:
            stock = cls.__mro__[cls.__mro__.index(L0Network) + 1]
            show_stock_options(cls, L0Network, stock)

    def __init__(
        self,
        *sizes: int,
        units: str | Iterable[str] = "default",
        gate: str = "hard_concrete",
        open_probability: float = 0.99,
        round_to: int = 1,
        uniform: bool = False,
        structure: Structure | None = None,
        random_features: int | None = None,
        **stock_conf: Any,
    ):
        own = {"units": units, "gate": gate, "uniform": uniform}
        check_options(type(self), {**own, **stock_conf}, self.conf_name)
        check(
            self.conf_name, {"open_probability": open_probability, "round_to": round_to}
        )
        super().__init__(*sizes, **stock_conf)
        self.input_size = sizes[0] if sizes else stock_conf.get("input_size")
        if random_features is not None:
            check(self.conf_name, {"random_features": random_features})
            linearize_(self, random_features, self.conf_name)
        attend_by_layers_(self)
        if structure is not None:
            self._cut_to_(structure)
        kinds = choose_units(self, units, self.conf_name)
        if gate not in GATES:
            raise ValueError(
                f"{self.conf_name}: gate is {gate!r}; expected {' or '.join(GATES)}"
            )
        for site in self.sites():
            self._check_rounding(site, kinds, round_to)
            site.attach_(kinds, open_probability, round_to, uniform, GATES[gate])
        self.register_forward_pre_hook(draw_all)
        read_any_names_(self)
        refuse_short_(self)

    def _check_rounding(self, site: Site, kinds: list[str], round_to: int) -> None:
        for kind, size in site.sizes.items():
            if kind in kinds and kind in site.fine and 0 < size < round_to:
                raise ValueError(
                    f"{self.conf_name}: round_to is {round_to}, but {site.name} has "
                    f"{size} {kind}; expected at most {size}, or units without {kind}"
                )

    def _cut_to_(self, structure: Structure) -> None:
        where = f"{self.conf_name}: structure"
        remedy = f"Use the {self.conf_name} that was written beside the structure."
        sites = self.sites()
        kept: dict[str, dict[str, object]] = {}
        if not isinstance(structure, Mapping):
            raise ValueError(f"{where} is {structure!r}; expected a mapping. {remedy}")
        for name, counts in structure.items():
            if not isinstance(counts, Mapping):
                raise ValueError(
                    f"{where} of {name!r} is {counts!r}; expected a number for each kind "
                    f"of unit. {remedy}"
                )
            kept[name] = {kind: _units_left(left) for kind, left in counts.items()}
        try:
            cut_(self, sites, Plan(kept))
        except ValueError as e:
            raise ValueError(f"{where} does not fit: {e}. {remedy}") from e
        for name, counts in self.structure().items():
            missing = counts.keys() - structure.get(name, {}).keys()
            if missing:
                raise ValueError(
                    f"{where} lacks {', '.join(sorted(missing))} of {name!r}; expected "
                    f"all that `espnet-l0prune cut` writes. {remedy}"
                )

    def sites(self) -> list[Site]:
        """Return the sites, where units can have gates and be cut."""
        return find_sites(self)

    def gated_sites(self) -> list[Site]:
        """Return the sites that have gates."""
        return [site for site in self.sites() if site.gates]

    def structure(self) -> Structure:
        """Return what is left of each site now."""
        return structure_of(self.sites())

    def portable_conf(self) -> dict[str, object]:
        """Return options with which the network is built where only its weights are."""
        return {}


def _units_left(left: object) -> object:
    """Return a structure's entry as a plan's: a number stands for the first units."""
    return list(range(left)) if type(left) is int and left >= 0 else left


class L0ConformerEncoder(L0Network, ConformerEncoder):
    """This is `encoder: l0_conformer`; see `L0Network`."""

    conf_name = "encoder_conf"


class L0TransformerEncoder(L0Network, TransformerEncoder):
    """This is `encoder: l0_transformer`; see `L0Network`."""

    conf_name = "encoder_conf"


class L0MultiSpeakerTransformerEncoder(L0Network, MultiSpeakerTransformerEncoder):
    """This is `encoder: l0_transformer_multispkr`; see `L0Network`."""

    conf_name = "encoder_conf"


class L0BranchformerEncoder(L0Network, BranchformerEncoder):
    """This is `encoder: l0_branchformer`; see `L0Network`."""

    conf_name = "encoder_conf"


class L0EBranchformerEncoder(L0Network, EBranchformerEncoder):
    """This is `encoder: l0_e_branchformer`; see `L0Network`."""

    conf_name = "encoder_conf"


class L0EBranchformerCTCEncoder(L0Network, EBranchformerCTCEncoder):
    """This is `encoder: l0_e_branchformer_ctc`; see `L0Network`."""

    conf_name = "encoder_conf"


class L0MultiConvConformerEncoder(L0Network, MultiConvConformerEncoder):
    """This is `encoder: l0_multiconv_conformer`; see `L0Network`."""

    conf_name = "encoder_conf"


class L0ContextualBlockConformerEncoder(L0Network, ContextualBlockConformerEncoder):
    """This is `encoder: l0_contextual_block_conformer`; see `L0Network`."""

    conf_name = "encoder_conf"


class L0ContextualBlockTransformerEncoder(L0Network, ContextualBlockTransformerEncoder):
    """This is `encoder: l0_contextual_block_transformer`; see `L0Network`."""

    conf_name = "encoder_conf"


class L0TransducerEncoder(TransducerNetwork, L0Network, TransducerEncoder):
    """This is `encoder: l0_transducer`, of the task asr_transducer; see `L0Network`."""

    conf_name = "encoder_conf"


class L0TransformerDecoder(L0Network, TransformerDecoder):
    """This is `decoder: l0_transformer`; see `L0Network`."""

    conf_name = "decoder_conf"


class L0WhisperEncoder(WhisperNetwork, L0Network, OpenAIWhisperEncoder):
    """This is `encoder: l0_whisper`; see `L0Network` and `WhisperNetwork`."""

    conf_name = "encoder_conf"


class L0WhisperDecoder(WhisperNetwork, L0Network, OpenAIWhisperDecoder):
    """This is `decoder: l0_whisper`; see `L0Network` and `WhisperNetwork`."""

    conf_name = "decoder_conf"


class L0S3prlFrontend(S3prlNetwork, L0Network, S3prlFrontend):
    """This is `frontend: l0_s3prl`; see `L0Network` and `UpstreamNetwork`."""

    conf_name = "frontend_conf"


class L0ESPnetSSLFrontend(ESPnetSSLNetwork, L0Network, ESPnetSSLFrontend):
    """This is `frontend: l0_espnet_ssl`; see `L0Network` and `UpstreamNetwork`."""

    conf_name = "frontend_conf"


ENCODERS = {
    "l0_conformer": L0ConformerEncoder,
    "l0_transformer": L0TransformerEncoder,
    "l0_transformer_multispkr": L0MultiSpeakerTransformerEncoder,
    "l0_branchformer": L0BranchformerEncoder,
    "l0_e_branchformer": L0EBranchformerEncoder,
    "l0_e_branchformer_ctc": L0EBranchformerCTCEncoder,
    "l0_multiconv_conformer": L0MultiConvConformerEncoder,
    "l0_contextual_block_conformer": L0ContextualBlockConformerEncoder,
    "l0_contextual_block_transformer": L0ContextualBlockTransformerEncoder,
    "l0_whisper": L0WhisperEncoder,
    "l0_transducer": L0TransducerEncoder,
}
DECODERS = {"l0_transformer": L0TransformerDecoder, "l0_whisper": L0WhisperDecoder}
FRONTENDS = {"l0_s3prl": L0S3prlFrontend, "l0_espnet_ssl": L0ESPnetSSLFrontend}
# Our kinds of each network of a model, by the names that ESPnet knows them by
NETWORK_KINDS: dict[str, Mapping[str, type[L0Network]]] = {
    "frontend": FRONTENDS,
    "encoder": ENCODERS,
    "decoder": DECODERS,
}
# What a task builds that has no option for it, as asr_transducer
UNNAMED = {"encoder": "transducer"}
