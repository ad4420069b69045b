import copy

import pytest
import torch

from pgc3d.diffusion.fast.encoder import FastEncoder, why_unsupported

CONFIGS = {  # channels, layers, groups, attention in the middle, latent channels
    "tiny": ((16, 16, 16, 16), 1, 8, True, 4),
    "medium": ((32, 64, 128, 128), 2, 32, True, 4),
    "without attention": ((16, 32), 2, 4, False, 16),
    "one level": ((24,), 1, 3, True, 4),
}


def make_encoder(channels, layers, groups, attention, latents, *, seed=0):
    from diffusers.models.autoencoders.vae import Encoder

    encoder = Encoder(
        in_channels=3,
        out_channels=latents,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=layers,
        norm_num_groups=groups,
        mid_block_add_attention=attention,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if parameter.ndim < 2:
                spread = 0.5 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(spread + 1.0 if name.endswith("weight") else spread)
            else:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
    return encoder.eval().requires_grad_(requires_grad=False)


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def encoder(request):
    return make_encoder(*request.param)


def draw(views=2, height=32, width=48):
    return torch.rand((views, 3, height, width), generator=torch.Generator().manual_seed(1)) * 2 - 1


def run(function, pixels):
    """The output and a gradient to the pixels, the same for every function of the same shape."""
    pixels = pixels.detach().clone().requires_grad_()
    output = function(pixels)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)
    return output.detach(), torch.autograd.grad(output, pixels, weights)[0]


def cosine(a, b):
    return torch.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_it_is_diffusers_encoder_to_rounding(encoder, recompute):
    expected, pull = run(encoder, draw())
    found, found_pull = run(FastEncoder(encoder, recompute=recompute, score_bytes=4096), draw())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    torch.testing.assert_close(found_pull, pull, rtol=1e-4, atol=1e-4 * pull.abs().max().item())
    assert cosine(found_pull, pull) > 0.9999999


@pytest.mark.parametrize(("height", "width"), [(33, 46), (35, 41), (8, 8)])
def test_sizes_that_do_not_halve_evenly(height, width):
    encoder, pixels = make_encoder(*CONFIGS["tiny"]).double(), draw(1, height, width).double()
    for found, expected in zip(run(FastEncoder(encoder), pixels), run(encoder, pixels), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_in_float64_only_the_order_of_sums_differs():
    encoder = make_encoder(*CONFIGS["tiny"]).double()
    expected, pull = run(encoder, draw().double())
    found, found_pull = run(FastEncoder(encoder), draw().double())
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found_pull, pull, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("dtype", "least"), [(torch.float16, 0.9999), (torch.bfloat16, 0.995)], ids=str)
def test_half_precision_stays_as_close_as_diffusers_own(dtype, least):
    exact = make_encoder(*CONFIGS["medium"])
    half = copy.deepcopy(exact).to(dtype)
    _, pull = run(exact, draw())
    _, theirs = run(half, draw().to(dtype))
    _, ours = run(FastEncoder(half), draw().to(dtype))
    assert ours.dtype == dtype
    assert cosine(ours, pull) > min(least, cosine(theirs, pull))


def test_recomputing_changes_no_number(encoder):
    for kept, again in zip(
        run(FastEncoder(encoder), draw()), run(FastEncoder(encoder, recompute=True), draw()), strict=True
    ):
        assert torch.equal(kept, again)


def test_channels_last_weights_give_the_same(encoder):
    expected, pull = run(FastEncoder(encoder), draw())
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    found, found_pull = run(FastEncoder(encoder.to(memory_format=torch.channels_last)), draw())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found_pull, pull, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())


def kept_bytes(function, weights):
    """Storage that autograd keeps alive for the backward pass, without the weights."""
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function(draw(1, 64, 64).requires_grad_())
    del output
    return sum(storage.nbytes() for storage in storages.values())


def test_little_is_kept_for_the_backward_pass():
    encoder = make_encoder(*CONFIGS["medium"])
    weights = list(encoder.parameters())
    plain = kept_bytes(encoder, weights)
    lean = kept_bytes(FastEncoder(encoder), weights)
    leaner = kept_bytes(FastEncoder(encoder, recompute=True), weights)
    assert lean < 0.45 * plain
    assert leaner < 0.6 * lean


def test_pictures_do_not_influence_each_other(encoder):
    fast = FastEncoder(encoder)
    whole, alone = fast(draw()), fast(draw()[1:])
    torch.testing.assert_close(whole[1:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e: e.conv_in.weight.requires_grad_(), "its weights are not frozen"),
        (lambda e: e.conv_in.double(), "several precisions"),
        (lambda e: setattr(e, "conv_act", torch.nn.ReLU()), "another activation"),
        (lambda e: setattr(e.mid_block.attentions[0], "heads", 2), "an attention of another kind"),
        (lambda e: setattr(e.down_blocks[0].resnets[0], "output_scale_factor", 2.0), "a residual block"),
        (lambda e: setattr(e.down_blocks[0].downsamplers[0], "padding", 1), "a sampler"),
        (lambda e: setattr(e.conv_out, "padding_mode", "reflect"), "first or last convolution"),
        (lambda e: e.down_blocks.insert(0, torch.nn.Identity()), "it has a Identity"),
    ],
)
def test_what_it_does_not_know_is_refused(change, reason):
    encoder = make_encoder(*CONFIGS["tiny"])
    assert why_unsupported(encoder) is None
    change(encoder)
    with pytest.raises(ValueError, match=reason):
        FastEncoder(encoder)
