"""Each kind of branch has a class in a file of its own, and is named here.

The tuples say which kinds may stand at the same place of a block.
"""

from espnet_l0prune.networks.branch import BranchSite
from espnet_l0prune.networks.branches.attention import AttentionSite, SourceAttentionSite
from espnet_l0prune.networks.branches.cgmlp import ConvolutionalGatingSite
from espnet_l0prune.networks.branches.convolution import ConvolutionSite
from espnet_l0prune.networks.branches.feed_forward import FeedForwardSite
from espnet_l0prune.networks.branches.multi_convolution import MultiConvolutionSite
from espnet_l0prune.networks.branches.s3prl import (
    RelativeAttentionSite,
    SelfSupervisedAttentionSite,
    SelfSupervisedFeedForwardSite,
)
from espnet_l0prune.networks.branches.transducer import (
    SpatialGatingSite,
    TransducerAttentionSite,
    TransducerConvolutionSite,
)
from espnet_l0prune.networks.branches.whisper import (
    WhisperAttentionSite,
    WhisperFeedForwardSite,
    WhisperSourceAttentionSite,
)

SELF_ATTENTION: tuple[type[BranchSite], ...] = (
    AttentionSite,
    WhisperAttentionSite,
    SelfSupervisedAttentionSite,
    RelativeAttentionSite,
    TransducerAttentionSite,
)
SOURCE_ATTENTION: tuple[type[BranchSite], ...] = (
    SourceAttentionSite,
    WhisperSourceAttentionSite,
)
FEED_FORWARD: tuple[type[BranchSite], ...] = (FeedForwardSite,)
CONVOLUTION: tuple[type[BranchSite], ...] = (
    ConvolutionSite,
    MultiConvolutionSite,
    TransducerConvolutionSite,
)
GATING: tuple[type[BranchSite], ...] = (ConvolutionalGatingSite, SpatialGatingSite)
WHISPER_FEED_FORWARD: tuple[type[BranchSite], ...] = (WhisperFeedForwardSite,)
S3PRL_FEED_FORWARD: tuple[type[BranchSite], ...] = (SelfSupervisedFeedForwardSite,)
BRANCHES = (
    *SELF_ATTENTION,
    *SOURCE_ATTENTION,
    *FEED_FORWARD,
    *CONVOLUTION,
    *GATING,
    *WHISPER_FEED_FORWARD,
    *S3PRL_FEED_FORWARD,
)
