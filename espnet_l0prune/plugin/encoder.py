"""ESPnet's Conformer encoder with gates, or cut down to a structure."""

from collections.abc import Sequence

from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

from espnet_l0prune.core.sites import Budget, Site, Structure, structure_of
from espnet_l0prune.plugin.signature import check_options, show_stock_options
from espnet_l0prune.plugin.sites import (
    UNITS,
    count_parameters,
    find_sites,
    refuse_unprunable,
)


class L0ConformerEncoder(ConformerEncoder):
    """`encoder: l0_conformer`: every option of `conformer`, the same defaults, and

    Args:
        units: kinds of units that get gates, any of heads, ffn_channels,
            conv_channels and conv_modules; an empty list for a network without gates
        open_probability: P(z > 0) of every gate at the start
        structure: how many units each site has, where the network is a cut one

    Raises:
        ValueError: an unknown option or kind of unit, one that these options leave
            without a site, or a structure that does not fit
    """

    def __init__(
        self,
        input_size: int,
        *,
        units: Sequence[str] = UNITS,
        open_probability: float = 0.99,
        structure: Structure | None = None,
        **conformer_conf,
    ):
        check_options(L0ConformerEncoder, conformer_conf, "encoder_conf")
        super().__init__(input_size, **conformer_conf)
        self.input_size = input_size
        if structure:
            self._cut_to_(structure)
        self._attach_(units, open_probability)

    def _cut_to_(self, structure: Structure) -> None:
        sites = {site.name: site for site in find_sites(self)}
        for name, counts in structure.items():
            if name not in sites:
                raise ValueError(
                    f"structure names {name!r}, which this encoder does not have; "
                    f"expected some of: {', '.join(sites)}. Use the encoder_conf that "
                    "was written beside the structure."
                )
            sizes = sites[name].sizes
            for kind, count in counts.items():
                if kind not in sizes or not 0 <= count <= sizes[kind]:
                    raise ValueError(
                        f"structure of {name!r} asks for {count} {kind}, but the "
                        f"uncut module has {sizes}. Use the encoder_conf that was "
                        "written beside the structure."
                    )
            sites[name].cut_({kind: range(n) for kind, n in counts.items()})

    def _attach_(self, units: Sequence[str], open_probability: float) -> None:
        sites = self.sites()
        here = {kind for site in sites for kind in site.sizes}
        for kind in units:
            if kind not in UNITS:
                raise ValueError(
                    f"encoder_conf: units has {kind!r}; expected some of "
                    f"{', '.join(UNITS)}"
                )
            if kind not in here and tuple(units) != UNITS:
                raise ValueError(
                    f"encoder_conf: units has {kind!r}, but nothing in this encoder "
                    f"has such units; it has {', '.join(sorted(here))}"
                )
        refuse_unprunable(self, units)
        for site in sites:
            site.attach_(units, open_probability)

    def sites(self) -> list[Site]:
        """The places where units can be gated and cut."""
        return find_sites(self)

    def gated_sites(self) -> list[Site]:
        """Those that have gates."""
        return [site for site in self.sites() if site.gates]

    def budget(self) -> Budget:
        """Counts this encoder's parameters; the gates themselves are not counted."""
        return Budget(self.sites(), count_parameters(self))

    def structure(self) -> Structure:
        """How many units each site has now."""
        return structure_of(self.sites())


show_stock_options(L0ConformerEncoder, ConformerEncoder)
