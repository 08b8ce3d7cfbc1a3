"""What plain ESPnet's configuration can say about a cut encoder of asr_transducer.

Each block has options of its own there, in `body_conf`: one width for the channels of its
feed-forward modules and, in both halves together, of its cgMLP.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from espnet_l0prune.networks.branches.feed_forward import FeedForwardSite
from espnet_l0prune.networks.branches.transducer import SpatialGatingSite
from espnet_l0prune.networks.sites import find_sites, layers_of


def widths_of(network: nn.Module) -> Iterator[tuple[int, int]]:
    """Yield for each block how many channels its widest feed-forward module has left,
    and how many both halves of its cgMLP; 0 for what it has not, or no more."""
    sites = find_sites(network)
    for layer in layers_of(network):
        feed_forward, gating = [0], 0
        for site in sites:
            if isinstance(site, FeedForwardSite) and site.block.module is layer:
                feed_forward.append(site.sizes["ffn_channels"])
            elif isinstance(site, SpatialGatingSite) and site.block.module is layer:
                gating = 2 * site.sizes["cgmlp_channels"]
        yield max(feed_forward), gating


def sizes_of(network: nn.Module, conf: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the encoder by which it is as small as they can say.

    Args:
        network: the cut encoder
        conf: its `encoder_conf`, as it was before the cut
    """
    body = []
    for options in conf["body_conf"]:
        count = options.get("num_blocks")
        one = {name: value for name, value in options.items() if name != "num_blocks"}
        body += [dict(one) for _ in range(1 if count is None else count)]
    for options, (feed_forward, gating) in zip(body, widths_of(network), strict=True):
        if gating:
            options["linear_size"] = gating
        elif options["block_type"] == "conformer":
            options["linear_size"] = max(feed_forward, 1)
    convs = [x.out_channels for x in network.embed.conv if isinstance(x, nn.Conv2d)]
    size = [max(convs[:2]), max(convs[2:])] if network.embed.vgg_like else max(convs)
    input_conf = {**(conf.get("input_conf") or {}), "conv_size": size}
    return {"body_conf": body, "input_conf": input_conf}
