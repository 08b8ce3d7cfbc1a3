"""A gated Conformer block written out in plain sums, beside the hooks on ESPnet's."""

import math

import pytest
import torch

from tests.plugin.networks import make

CONF = {
    "output_size": 8,
    "attention_heads": 2,
    "linear_units": 6,
    "num_blocks": 1,
    "macaron_style": True,
    "cnn_module_kernel": 3,
    "rel_pos_type": "latest",
}


def swish(x):
    return x / (1 + torch.exp(-x))


def norm(layer, x, *gates):
    """Over the features whose gates are all open; then each gate multiplies."""
    opened = math.prod(z > 0 for z in gates).bool()
    chosen = x[:, opened]
    mean = chosen.mean(1, keepdim=True)
    variance = ((chosen - mean) ** 2).mean(1, keepdim=True)
    y = (x - mean) / torch.sqrt(variance + layer.eps) * layer.weight + layer.bias
    return y * opened * math.prod(gates)


def feed_forward(layer, x):
    hidden = swish(x @ layer.w_1.weight.T + layer.w_1.bias)
    hidden = hidden * layer.ffn_channels_gate()
    return (hidden @ layer.w_2.weight.T + layer.w_2.bias) * layer.ffn_modules_gate()


def attention(layer, x, pos):
    """Head by head; position k of `pos` is that of a key k - (time - 1) frames on."""
    time, d = len(x), layer.d_k
    dims, out = layer.head_dims_gate(), layer.linear_out.bias
    for h in range(layer.h):
        own = slice(h * d, (h + 1) * d)
        q, k, v = (
            x @ m.weight[own].T + m.bias[own]
            for m in (layer.linear_q, layer.linear_k, layer.linear_v)
        )
        p = pos @ layer.linear_pos.weight[own].T
        scores = torch.stack(
            [
                torch.stack(
                    [
                        (q[i] + layer.pos_bias_u[h]) @ (k[j] * dims)
                        + (q[i] + layer.pos_bias_v[h]) @ (p[time - 1 - i + j] * dims)
                        for j in range(time)
                    ]
                )
                for i in range(time)
            ]
        )
        weights = torch.exp(scores / math.sqrt(d))
        weights = weights / weights.sum(1, keepdim=True)
        context = (weights @ v) * dims * layer.heads_gate()[h]
        out = out + context @ layer.linear_out.weight[:, own].T
    return out * layer.att_modules_gate()


def convolution(layer, x):
    channels = layer.depthwise_conv.out_channels
    both = x @ layer.pointwise_conv1.weight[:, :, 0].T + layer.pointwise_conv1.bias
    x = both[:, :channels] / (1 + torch.exp(-both[:, channels:]))
    kernel, frames = layer.depthwise_conv.weight[:, 0], []
    for t in range(len(x)):
        frame = layer.depthwise_conv.bias
        for i in range(kernel.size(1)):
            s = t + i - kernel.size(1) // 2
            if 0 <= s < len(x):
                frame = frame + kernel[:, i] * x[s]
        frames.append(frame)
    bn = layer.norm
    x = (torch.stack(frames) - bn.running_mean) / torch.sqrt(bn.running_var + bn.eps)
    x = swish(x * bn.weight + bn.bias) * layer.conv_channels_gate()
    x = x @ layer.pointwise_conv2.weight[:, :, 0].T + layer.pointwise_conv2.bias
    return x * layer.conv_modules_gate()


def gated_block(block, width, x, pos):
    """x (time, size), pos (2 time - 1, size)."""
    stream, own = width, block.block_width_gate()
    first = x
    y = feed_forward(
        block.feed_forward_macaron, norm(block.norm_ff_macaron, x, stream, own)
    )
    x = x + 0.5 * y * own
    x = x + attention(block.self_attn, norm(block.norm_mha, x, stream, own), pos) * own
    x = x + convolution(block.conv_module, norm(block.norm_conv, x, stream, own)) * own
    x = (
        x
        + 0.5
        * feed_forward(block.feed_forward, norm(block.norm_ff, x, stream, own))
        * own
    )
    x = norm(block.norm_final, x, stream)
    return first + block.blocks_gate() * (x - first)


@pytest.mark.parametrize("seed", range(5))
def test_the_hooks_are_the_formulas(seed):
    network = make("conformer", CONF, "all", seed)
    gates = [g for site in network.sites() for g in site.gates.values()]
    generator = torch.Generator().manual_seed(seed)
    for gate in gates:
        soft = 2 * torch.randn(gate.log_alpha.shape, generator=generator)
        gate.log_alpha.data.copy_(soft)
    (block,) = network.encoders
    network.width_gate.log_alpha.data[0] = 1.0  # something stays in both
    block.block_width_gate.log_alpha.data[0] = 1.0
    x = torch.randn(1, 5, 8, generator=generator).double()
    pos = torch.randn(1, 9, 8, generator=generator).double()
    used = [g for g in gates if g is not network.embed.conv[0].frontend_channels_gate]
    used = [g for g in used if g is not network.embed.conv[2].frontend_channels_gate]

    (ours, _), _ = block((x, pos), torch.ones(1, 1, 5, dtype=torch.bool))
    theirs = gated_block(block, network.width_gate(), x[0], pos[0])
    torch.testing.assert_close(ours[0], theirs, rtol=1e-11, atol=1e-11)
    weight = torch.randn(5, 8, generator=generator).double()
    alphas = [gate.log_alpha for gate in used]
    for a, b in zip(
        torch.autograd.grad((ours[0] * weight).sum(), alphas),
        torch.autograd.grad((theirs * weight).sum(), alphas),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
