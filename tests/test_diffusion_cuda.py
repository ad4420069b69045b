import pytest
import torch
from steps import FIRST, nothing_waits
from test_fast_encoder import make_encoder, run
from tiny import write_tiny_sdxl

from pgc3d.cameras import turntable
from pgc3d.diffusion.fast.accelerate import accelerate
from pgc3d.diffusion.fast.cuda_graph import MAX_RECORDINGS, GraphedNetwork
from pgc3d.diffusion.fast.encoder import FastEncoder
from pgc3d.diffusion.models import load_latent_diffusion, resolve_model
from pgc3d.diffusion.text import encode_prompts
from pgc3d.guidance.sds import ScoreDistillation
from pgc3d.kernels.attention import attention, attention_plain
from pgc3d.prompts import view_prompts
from pgc3d.types import Rendering, Views
from pgc3d.view_prompts import ViewPromptConfig

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sdxl(tmp_path_factory.mktemp("cuda"))


def build(folder, device, *, dtype=torch.float32, vae_dtype=torch.float32, fast=None):
    source, views = resolve_model(folder), ViewPromptConfig()
    model = load_latent_diffusion(source, device=device, dtype=dtype, vae_dtype=vae_dtype)
    return ScoreDistillation(
        model=model if fast is None else accelerate(model, **fast),
        positive=encode_prompts(source, view_prompts("a cat", views), device=device, dtype=dtype),
        negative=encode_prompts(source, [""], device=device, dtype=dtype),
        view_prompts_config=views,
        guidance_scale=7.5,
    )


def inputs_of(guidance):
    device = guidance.model.device
    side = guidance.input_resolution(96)
    image = torch.rand((2, side, side, 3), generator=torch.Generator().manual_seed(1)).to(device)
    one = image[..., :1]
    rendering = Rendering(
        color=image, normal=image, depth=one, alpha=one, background=torch.ones(2, 3, device=device)
    )
    return image, rendering, Views(turntable(2).to(device), rendering.background), FIRST


def cosine(a, b):
    return torch.cosine_similarity(a.double().cpu().flatten(), b.double().cpu().flatten(), dim=0).item()


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("fast", [None, {"compiled": True}], ids=["plain", "fast"])
@pytest.mark.parametrize("micro_batch", [0, 1])
def test_a_step_does_not_wait_for_the_device(folder, fast, micro_batch):
    guidance = build(folder, "cuda", dtype=torch.float16, vae_dtype=torch.float16, fast=fast)
    guidance.micro_batch = micro_batch
    inputs = inputs_of(guidance)
    guidance(*inputs)
    guidance(*inputs)
    with nothing_waits():
        output = guidance(*inputs)
    assert output.gradient.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "vae_dtype", "least"),
    [
        (torch.float32, torch.float32, 0.9999),
        (torch.float16, torch.float16, 0.99),
        (torch.float16, torch.bfloat16, 0.99),
    ],
    ids=["float32", "float16", "mixed"],
)
def test_both_devices_give_the_same_gradient(folder, dtype, vae_dtype, least):
    found, expected = (
        guidance(*inputs_of(guidance)).gradient
        for guidance in (build(folder, "cuda", dtype=dtype, vae_dtype=vae_dtype), build(folder, "cpu"))
    )
    assert found.dtype == torch.float32
    assert cosine(found, expected) > least


@pytest.mark.filterwarnings("ignore")  # the compiler warns about the card's precision settings
@pytest.mark.parametrize("low_memory", [False, True])
def test_the_fast_path_gives_the_same_gradient(folder, low_memory):
    plain = build(folder, "cuda")
    expected = plain(*inputs_of(plain)).gradient
    fast = build(folder, "cuda", fast={"low_memory": low_memory, "compiled": True})
    assert cosine(fast(*inputs_of(fast)).gradient, expected) > 0.9999
    half = {"dtype": torch.float16, "vae_dtype": torch.float16}
    fast = build(folder, "cuda", fast={"low_memory": low_memory, "compiled": True}, **half)
    assert cosine(fast(*inputs_of(fast)).gradient, expected) > 0.99


@pytest.mark.parametrize(("dtype", "least"), [(torch.float16, 0.999), (torch.bfloat16, 0.99)], ids=str)
@pytest.mark.parametrize("side", [256, 264])
def test_a_wide_encoder_in_half_precision_agrees_with_float32(dtype, least, side):
    encoder = make_encoder((128, 256, 512, 512), 2, 32, attention=True, latents=4).cuda()
    pixels = torch.rand(2, 3, side, side, device="cuda") * 2 - 1
    expected, pull = run(encoder, pixels)
    encoder.to(dtype).to(memory_format=torch.channels_last)
    for recompute in (False, True):
        found, found_pull = run(FastEncoder(encoder, recompute=recompute), pixels.to(dtype))
        assert cosine(found, expected) > least
        assert cosine(found_pull, pull) > least


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1024, 1000])
def test_wide_attention_in_half_precision_agrees_with_float32(dtype, tokens):
    inputs = [torch.randn(2, tokens, 512, device="cuda", requires_grad=True) for _ in range(3)]
    gradient = torch.randn(2, tokens, 512, device="cuda")
    exact = attention_plain(*inputs)
    pulls = torch.autograd.grad(exact, inputs, gradient)
    for score_bytes in (1 << 20, 1 << 28):
        half = [value.detach().to(dtype).requires_grad_() for value in inputs]
        found = attention(*half, score_bytes=score_bytes)
        found_pulls = torch.autograd.grad(found, half, gradient.to(dtype))
        for value, expected in zip((found, *found_pulls), (exact, *pulls), strict=True):
            assert cosine(value, expected) > 0.998


def test_a_recorded_network_gives_its_own_numbers_for_every_input_and_shape():
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(8, 8, device="cuda", generator=generator)

    def network(x, *, more, negate):
        result = (x @ weight).relu() + more["sum"][0]
        return (-result if negate else result,)

    graphed, calls = GraphedNetwork(network), []
    for rows in (3, 5, 3, 7, 5, 3):
        x, other = (torch.randn(rows, 8, device="cuda", generator=generator) for _ in range(2))
        for negate in (False, True):
            inputs = {"more": {"sum": [other]}, "negate": negate}
            calls.append((graphed(x, **inputs)[0], network(x, **inputs)[0]))
    for found, expected in calls:  # an answer stays what it is when others are asked for
        assert torch.equal(found, expected)
    assert len(graphed._recordings) == MAX_RECORDINGS


def test_text_encoders_leave_no_memory_behind(folder):
    source = resolve_model(folder)
    encode_prompts(source, ["a cat"], device="cuda")
    before = torch.cuda.memory_allocated()
    embedding = encode_prompts(source, ["a cat"], device="cuda")
    kept = sum(tensor.numel() * tensor.element_size() for tensor in (embedding.tokens, embedding.pooled))
    assert torch.cuda.memory_allocated() - before <= 2 * kept + 4096
