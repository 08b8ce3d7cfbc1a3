"""What front ends with a self-supervised model have in common.

ESPnet builds them from the published model's file, and then replaces the weights by those
of a training.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import nn

from espnet_l0prune.plugin.signature import show_more_options

if TYPE_CHECKING:
    from espnet_l0prune.networks.espnet_modules import S3prlFrontend as MixedWith
else:
    MixedWith = object

WHERE = "frontend_conf: upstream_config"


class UpstreamNetwork(MixedWith):
    """An `UpstreamNetwork` adds an option to a front end with a self-supervised model.

    Args:
        upstream_config: what has to be known of the self-supervised model, instead of
            that model's file, so that a cut model can be loaded where the published one
            is not. `espnet-l0prune cut` and `export` write it; null loads the file, as
            ESPnet does
    """

    upstream: nn.Module

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "conf_name"):  # it is mixed with a class of ESPnet's
            show_more_options(cls, UpstreamNetwork)

    def __init__(
        self,
        frontend_conf: dict | None = None,
        *,
        upstream_config: Mapping[str, Any] | None = None,
        **conf: Any,
    ):
        found: dict[str, Any] = {}
        options = dict(frontend_conf or {})
        with self.loading(options, upstream_config, found):
            super().__init__(frontend_conf=options, **conf)
        if upstream_config is not None or conf.get("structure") is not None:
            self.pretrained_params: dict = {}  # they are not the published ones
        self.upstream_config = found  # empty if this kind of model is always loaded

    @staticmethod
    def loading(
        options: dict[str, Any],
        config: Mapping[str, Any] | None,
        found: dict[str, Any],
    ) -> AbstractContextManager[None]:
        """Return a context in which ESPnet builds the model safely.

        Args:
            options: ESPnet's options of the model, which are replaced where a model is
                built without its file
            config: the option `upstream_config`
            found: a mapping that gets the attribute `upstream_config`

        Raises:
            ValueError: options or a file of which no model can be built
        """
        raise NotImplementedError

    def reload_pretrained_parameters(self) -> None:
        """Take the published weights back, after ESPnet's `init` has changed them."""
        if self.pretrained_params:
            self.upstream.load_state_dict(self.pretrained_params, strict=False)

    def portable_conf(self) -> dict[str, object]:
        """Return options with which the network is built where only its weights are."""
        if not self.upstream_config:
            return {}
        return {"upstream_config": dict(self.upstream_config)}
