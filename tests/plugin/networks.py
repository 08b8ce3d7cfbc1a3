"""Random networks of every kind, what they compute, and random plans for them."""

import copy

import torch
from hypothesis import strategies as st

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.plan import Plan
from espnet_l0prune.core.terms import terms_of
from espnet_l0prune.deploy.verify import STEP, probe, random_prompt
from espnet_l0prune.networks.s3prl import in_own_type
from espnet_l0prune.networks.speakers import one_after_another
from espnet_l0prune.networks.whisper import encode_waveform, exact
from espnet_l0prune.plugin.counting import call_shapes
from espnet_l0prune.plugin.network import (
    L0BranchformerEncoder,
    L0ConformerEncoder,
    L0ContextualBlockConformerEncoder,
    L0ContextualBlockTransformerEncoder,
    L0EBranchformerCTCEncoder,
    L0EBranchformerEncoder,
    L0ESPnetSSLFrontend,
    L0MultiConvConformerEncoder,
    L0MultiSpeakerTransformerEncoder,
    L0S3prlFrontend,
    L0TransducerEncoder,
    L0TransformerDecoder,
    L0TransformerEncoder,
    L0WhisperDecoder,
    L0WhisperEncoder,
)
from espnet_l0prune.testing import espnet_ssl
from espnet_l0prune.testing.models import disturb_
from espnet_l0prune.testing.s3prl import LARGE, RELATIVE

LENGTHS = (60, 41, 33, 17)
WHOLE = ("att_modules", "src_att_modules", "ffn_modules", "conv_modules", "cgmlp_modules")
ATTENTION = {
    "latest": {"rel_pos_type": "latest"},
    "legacy": {"rel_pos_type": "legacy"},
    "absolute": {
        "selfattention_layer_type": "selfattn",
        "pos_enc_layer_type": "abs_pos",
        "use_flash_attn": False,
    },
    "linear": {
        "selfattention_layer_type": "selfattn",
        "pos_enc_layer_type": "abs_pos",
        "random_features": 7,
    },
    "qk_norm": {
        "selfattention_layer_type": "selfattn",
        "pos_enc_layer_type": "abs_pos",
        "use_flash_attn": False,
        "qk_norm": True,
    },
}
KINDS = {
    "conformer": L0ConformerEncoder,
    "transformer": L0TransformerEncoder,
    "speakers": L0MultiSpeakerTransformerEncoder,
    "branchformer": L0BranchformerEncoder,
    "e_branchformer": L0EBranchformerEncoder,
    "e_branchformer_ctc": L0EBranchformerCTCEncoder,
    "multiconv_conformer": L0MultiConvConformerEncoder,
    "streaming_conformer": L0ContextualBlockConformerEncoder,
    "streaming_transformer": L0ContextualBlockTransformerEncoder,
    "decoder": L0TransformerDecoder,
    "whisper": L0WhisperEncoder,
    "whisper_decoder": L0WhisperDecoder,
    "hubert": L0S3prlFrontend,
    "wav2vec2": L0S3prlFrontend,
    "wavlm": L0S3prlFrontend,
    "espnet_ssl": L0ESPnetSSLFrontend,
    "transducer_conformer": L0TransducerEncoder,
    "transducer_branchformer": L0TransducerEncoder,
    "transducer_ebranchformer": L0TransducerEncoder,
}


DECODERS = ("decoder", "whisper_decoder")
WHISPER = ("whisper", "whisper_decoder")
S3PRL = ("hubert", "wav2vec2", "wavlm")
TRANSFORMERS = ("transformer", "speakers")
TRANSDUCERS = (
    "transducer_conformer",
    "transducer_branchformer",
    "transducer_ebranchformer",
)
STREAMING = ("streaming_conformer", "streaming_transformer")
BLOCKS_OF_FRAMES = [  # the first is longer than any utterance here, the second endless
    {"block_size": 40, "hop_size": 16, "look_ahead": 16},
    {"block_size": 0},
    {"block_size": 8, "hop_size": 3, "look_ahead": 2},
    {"block_size": 4, "hop_size": 4, "look_ahead": 0, "ctx_pos_enc": False},
]
SSL_OPTIONS = (
    *("encoder", "positions", "normalize", "multilayer_feature", "bias", "norm_mode"),
    *("layer_norm_cls", "normalize_audio", "normalize_output"),
)
WHISPER_SIZES = ("attention_heads", "output_size", "num_blocks")


def whisper_options(heads: int, size: int, blocks: int) -> dict:
    """Options of a small Whisper network, which no file holds."""
    sizes = {"state": size, "head": heads, "layer": blocks}
    dimensions = {
        f"n_{kind}_{k}": v for kind in ("audio", "text") for k, v in sizes.items()
    }
    dimensions |= {"n_mels": 80, "n_audio_ctx": 60, "n_vocab": 12, "n_text_ctx": 20}
    return {"whisper_model": "tiny.en", "dimensions": dimensions}


def s3prl_options(
    kind: str,
    heads: int,
    size: int,
    blocks: int,
    linear_units: int,
    channels: int,
    large: bool = False,
    multilayer_feature: bool = True,
) -> dict:
    """Options of a small self-supervised front end, which no file holds."""
    strides = [[10, 5], *[[3, 2]] * 4, *[[2, 2]] * 2]
    model_cfg = {
        **{"encoder_layers": blocks, "encoder_embed_dim": size},
        **{"encoder_ffn_embed_dim": linear_units, "encoder_attention_heads": heads},
        "conv_feature_layers": [[channels, *each] for each in strides],
        **{"conv_pos": 4, "conv_pos_groups": 2, "label_rate": 50.0},
        **(LARGE if large else {}),
        **(RELATIVE if kind == "wavlm" else {}),
    }
    config = {"kind": kind, "model_cfg": model_cfg, "classes": [3]}
    return {"upstream_config": config, "multilayer_feature": multilayer_feature}


def ssl_options(
    heads: int,
    size: int,
    blocks: int,
    linear_units: int,
    channels: int,
    encoder: str = "e_branchformer",
    positions: str = "conv",
    normalize: str | None = None,
    multilayer_feature: bool = True,
    **extractor: object,
) -> dict:
    """Options of a small model that ESPnet has trained, which no file holds."""
    sizes = {"output_size": size, "attention_heads": heads, "num_blocks": blocks}
    encoder_conf = {**sizes, "linear_units": linear_units, "input_layer": None}
    plain = {"pos_enc_layer_type": positions}
    attention = "rel_selfattn" if positions == "rel_pos" else "selfattn"
    if encoder == "e_branchformer":
        own = espnet_ssl.CONFIG["encoder_conf"]
        encoder_conf = {**own, **encoder_conf, **plain, "attention_layer_type": attention}
    elif encoder == "conformer":
        encoder_conf |= {**plain, "selfattention_layer_type": attention}
        encoder_conf |= {"cnn_module_kernel": 3, "macaron_style": True}
    shapes = [[channels, width, stride] for _, width, stride in espnet_ssl.SHAPES]
    own = espnet_ssl.CONFIG["frontend_conf"]
    config = espnet_ssl.CONFIG | {
        "frontend_conf": {**own, "shapes": shapes, **extractor},
        "preencoder_conf": {"output_size": size},
        "normalize": normalize,
        **{"encoder": encoder, "encoder_conf": encoder_conf},
    }
    return {"upstream_config": config, "multilayer_feature": multilayer_feature}


def transducer_options(
    kind: str, heads: int, size: int, blocks: int, linear_units: int, **more
) -> dict:
    """Options of an encoder of the task asr_transducer, from what others are told.

    Args:
        more: `input_conf` and `main_conf` as they are; and `convs`, whether blocks of
            convolutions are around the others, of another size
    """
    around = {"block_type": "conv1d", "kernel_size": 3, "output_size": size}
    block = {
        "block_type": kind.removeprefix("transducer_"),
        "hidden_size": size,
        "heads": heads,
        "linear_size": linear_units,
        "conv_mod_kernel_size": 3,
        "num_blocks": blocks,
    }
    convs = more.pop("convs", False)
    last = {**around, "output_size": 6, "batch_norm": True}
    return {"body_conf": [around, block, last] if convs else [block], **more}


def branchformer_attention(attention: dict) -> dict:
    """The same options under the Branchformers' names."""
    return {k.replace("selfattention", "attention"): v for k, v in attention.items()}


@st.composite
def confs(draw, kind: str) -> dict:
    """Options of a small network, `output_size` among them."""
    heads = draw(st.integers(1, 6))
    attention = draw(st.sampled_from(list(ATTENTION.values())))
    conf = {
        "attention_heads": heads,
        "output_size": heads * draw(st.sampled_from([2, 4])),
        "num_blocks": draw(st.integers(1, 2)),
        "dropout_rate": 0.1,
    }
    if kind in WHISPER:
        return conf | {"output_size": heads * draw(st.sampled_from([4, 6]))}
    if kind in S3PRL:
        del conf["dropout_rate"]
        return conf | {
            "output_size": heads * draw(st.sampled_from([2, 4])),
            "linear_units": draw(st.integers(1, 9)),
            "channels": draw(st.integers(1, 9)),
            "large": draw(st.booleans()),
            "multilayer_feature": draw(st.booleans()),
        }
    if kind == "espnet_ssl":
        del conf["dropout_rate"]
        positions = draw(st.sampled_from(["conv", "abs_pos", "rel_pos"]))
        if positions == "conv":  # in 16 groups of features
            conf |= {"attention_heads": draw(st.sampled_from([1, 2, 8]))}
        return conf | {
            "output_size": 16 if positions == "conv" else 4 * heads,
            "linear_units": draw(st.integers(1, 9)),
            "channels": draw(st.integers(1, 9)),
            "encoder": draw(st.sampled_from(["e_branchformer", "conformer"])),
            "positions": positions,
            "normalize": draw(st.sampled_from([None, "utterance_mvn"])),
            "multilayer_feature": draw(st.booleans()),
            "bias": draw(st.booleans()),
            "norm_mode": draw(st.sampled_from(["layer_norm", "group_norm"])),
            "layer_norm_cls": draw(st.sampled_from(["transposed", "dim1"])),
            "normalize_audio": draw(st.booleans()),
            "normalize_output": draw(st.booleans()),
        }
    if kind in TRANSDUCERS:
        del conf["dropout_rate"]
        vgg = draw(st.booleans())
        norms = ["layer_norm", "basic_norm", "rms_norm", "scale_norm"]
        return conf | {
            "linear_units": 2 * draw(st.integers(1, 5)),
            "convs": draw(st.booleans()),
            "input_conf": {
                "vgg_like": vgg,
                "conv_size": [draw(st.integers(1, 5)), 3] if vgg else 4,
                "subsampling_factor": draw(st.sampled_from([4, 6] if vgg else [2, 4, 6])),
            },
            "main_conf": {
                "simplified_att_score": draw(st.booleans()),
                "norm_type": draw(st.sampled_from(norms)),
                "conv_mod_norm_type": draw(st.sampled_from(norms)),
            },
        }
    if kind == "decoder":
        conf |= {
            "linear_units": draw(st.integers(1, 9)),
            "normalize_before": draw(st.booleans()),
            "concat_after": draw(st.booleans()),
            "qk_norm": draw(st.booleans()),
        }
        return conf
    layers = ["conv2d", "conv2d1", "conv2d2", "linear"]
    if kind in STREAMING:
        layers = ["conv2d", "conv2d6", "linear"]
        conf |= draw(st.sampled_from(BLOCKS_OF_FRAMES))
    conf["input_layer"] = draw(st.sampled_from(layers))
    if kind in ("conformer", "multiconv_conformer", *TRANSFORMERS, *STREAMING):
        conf |= {
            "linear_units": draw(st.integers(1, 9)),
            "normalize_before": draw(st.booleans()),
            "concat_after": draw(st.booleans()),
            "positionwise_layer_type": draw(
                st.sampled_from(["linear", "linear", "conv1d", "conv1d-linear"])
            ),
            "positionwise_conv_kernel_size": 3,
        }
    if kind == "streaming_transformer":
        return conf
    if kind == "speakers":
        return conf | {"num_inf": draw(st.integers(1, 3)), "num_blocks_sd": 1}
    if kind == "streaming_conformer":
        return conf | {
            "macaron_style": draw(st.booleans()),
            "use_cnn_module": draw(st.booleans()),
            "cnn_module_kernel": 3,
        }
    if kind == "transformer":
        return conf | {"qk_norm": draw(st.booleans())}
    if kind == "multiconv_conformer":
        kernels = draw(st.sampled_from(["3", "3,5"]))
        fusions = ["concat_fusion", "concat", "sum", "weighted_sum"]
        return conf | {
            "macaron_style": draw(st.booleans()),
            "cgmlp_linear_units": 4 * draw(st.integers(1, 3)),
            "multicgmlp_type": draw(st.sampled_from(fusions)),
            "multicgmlp_kernel_sizes": kernels,
            "multicgmlp_merge_conv_kernel": 3,
            "use_linear_after_conv": draw(st.booleans()),
            "rel_pos_type": draw(st.sampled_from(["latest", "legacy"])),
        }
    if kind == "conformer":
        return conf | {
            "macaron_style": draw(st.booleans()),
            "use_cnn_module": draw(st.booleans()),
            "cnn_module_kernel": 3,
            **attention,
        }
    if kind == "e_branchformer_ctc":
        attention = {k: v for k, v in attention.items() if k != "qk_norm"}
        prompted = [draw(st.booleans()) for _ in range(conf["num_blocks"])]
        conf |= {"use_cross_attention": prompted, "input_layer": "conv2d8"}
    conf |= {
        "cgmlp_linear_units": 2 * draw(st.integers(1, 6)),
        "cgmlp_conv_kernel": 3,
        "use_linear_after_conv": draw(st.booleans()),
        "gate_activation": draw(st.sampled_from(["identity", "tanh"])),
        **branchformer_attention(attention),
    }
    if kind == "branchformer":
        branches = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
        return conf | {
            "use_attn": branches[0],
            "use_cgmlp": branches[1],
            "merge_method": draw(st.sampled_from(["concat", "learned_ave", "fixed_ave"])),
        }
    ffn = draw(st.booleans())
    return conf | {
        "use_ffn": ffn,
        "macaron_ffn": ffn and draw(st.booleans()),
        "linear_units": draw(st.integers(1, 9)),
    }


def prunable(kind: str, conf: dict) -> list[str]:
    """Every kind of unit that a network with these options can lose."""
    bare = make(kind, conf, [], 0)
    return [
        unit
        for unit in dict.fromkeys(k for site in bare.sites() for k in site.kinds)
        if not any(s.why_not(unit) for s in bare.sites() if unit in s.kinds)
    ]


def make(kind: str, conf: dict, units, seed: int, **more):
    conf = dict(conf)
    torch.manual_seed(seed)
    sizes = (20,)
    if kind in DECODERS:
        sizes = (12, conf["output_size"])
    if kind in S3PRL:
        sizes, own = (), (*WHISPER_SIZES, "linear_units", "channels")
        named = {k: conf.pop(k) for k in ("large", "multilayer_feature") if k in conf}
        conf |= s3prl_options(kind, *map(conf.pop, own), **named)
    if kind == "espnet_ssl":
        sizes, own = (), (*WHISPER_SIZES, "linear_units", "channels")
        named = {k: conf.pop(k) for k in SSL_OPTIONS if k in conf}
        conf |= ssl_options(*map(conf.pop, own), **named)
    if kind in TRANSDUCERS:
        own = (*WHISPER_SIZES, "linear_units")
        conf = transducer_options(kind, *map(conf.pop, own), **conf)
    if kind in WHISPER:
        conf |= whisper_options(*map(conf.pop, WHISPER_SIZES))
    elif kind in DECODERS:
        del conf["output_size"]
    network = KINDS[kind](*sizes, **conf, units=units, **more).double().eval()
    network.memory_size = sizes[-1] if sizes else None
    disturb_(network, seed)
    return network


@torch.no_grad()
def output(network, seed: int = 0) -> torch.Tensor:
    """What a network gives for random input of unequal lengths, padding left out."""
    if isinstance(network, tuple(KINDS[kind] for kind in DECODERS)):
        memory, lengths = probe(network.memory_size, (13, 7, 4), seed)
        tokens = torch.arange(18).view(3, 6) % 12
        counts = torch.tensor([6, 4, 1])
        with exact(network):
            out, valid = network(memory, lengths, tokens, counts)[0], counts
    elif isinstance(network, (L0S3prlFrontend, L0ESPnetSSLFrontend)):
        waves, lengths = probe(STEP, LENGTHS, seed)
        with in_own_type(network):
            out, valid = network(waves.flatten(1), STEP * lengths)
    elif isinstance(network, L0WhisperEncoder):
        waves, lengths = probe(STEP, LENGTHS, seed)
        out, valid = encode_waveform(network, waves.flatten(1), STEP * lengths)
    else:
        feats, lengths = probe(20, LENGTHS, seed)
        more = {}
        if isinstance(network, L0EBranchformerCTCEncoder):
            more = random_prompt(network.output_size(), feats)
        out, valid = one_after_another(*network(feats, lengths, **more)[:2])
    return torch.cat([o[:n] for o, n in zip(out, valid, strict=True)])


def budget_of(network) -> Budget:
    shapes = call_shapes(network, lambda: output(network))
    sites = network.sites()
    return Budget(sites, terms_of(network, sites, shapes))


def relative(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).abs().max() / one.abs().max())


def draw_plan(data, network) -> Plan:
    """None, one, all or some of the units of each gated site; others stay whole."""
    plan = {}
    common = None  # a feature of the residual stream that every width keeps
    for site in network.sites():
        kept = {kind: list(range(size)) for kind, size in site.sizes.items()}
        for kind, gate in site.gates.items():
            size = gate.log_alpha.numel()
            units = _some(data, size, often_all=kind in (*WHOLE, "blocks"))
            if kind in ("width", "block_width"):
                common = data.draw(st.integers(0, size - 1)) if common is None else common
                units = sorted({*units, common})
            elif kind in site.never_empty and not units:
                units = [data.draw(st.integers(0, size - 1))]
            kept[kind] = units
        plan[site.name] = kept
    return Plan(plan)


def _some(data, size: int, often_all: bool) -> list[int]:
    choices = ["none", "one", "all", "some"] + ["all"] * 4 * often_all
    how = data.draw(st.sampled_from(choices))
    if how == "none":
        return []
    if how == "one":
        return [data.draw(st.integers(0, size - 1))]
    if how == "all":
        return list(range(size))
    return sorted(data.draw(st.sets(st.integers(0, size - 1))))


def soften_(network, seed: int) -> None:
    """Give every gate a soft value, but keep whole blocks, which cannot fold it."""
    generator = torch.Generator().manual_seed(seed)
    for site in network.sites():
        for kind, gate in site.gates.items():
            alpha = torch.randn(gate.log_alpha.shape, generator=generator).double()
            gate.log_alpha.data.copy_(3 * alpha)
            if kind == "blocks":
                gate.log_alpha.data.fill_(100.0)


def copy_of(network):
    return copy.deepcopy(network)
