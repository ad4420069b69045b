import pytest
import torch
from tiny import write_tiny_sdxl

from pgc3d.cameras import turntable
from pgc3d.diffusion.latent import accelerate
from pgc3d.diffusion.models import load_latent_diffusion, resolve_model
from pgc3d.diffusion.text import encode_prompts
from pgc3d.guidance.sds import ScoreDistillation
from pgc3d.prompts import ViewPromptConfig, view_prompts
from pgc3d.types import Rendering

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sdxl(tmp_path_factory.mktemp("cuda"))


def build(folder, device, *, dtype=torch.float32, vae_dtype=torch.float32, **options):
    source, views = resolve_model(folder), ViewPromptConfig()
    model = load_latent_diffusion(source, device=device, dtype=dtype, vae_dtype=vae_dtype)
    return ScoreDistillation(
        model=accelerate(model, **options),
        positive=encode_prompts(source, view_prompts("a cat", views), device=device, dtype=dtype),
        negative=encode_prompts(source, [""], device=device, dtype=dtype),
        view_prompts_config=views,
        generator=torch.Generator().manual_seed(0),
        guidance_scale=7.5,
    )


def step(guidance):
    device = guidance.model.device
    image = torch.rand((2, 96, 96, 3), generator=torch.Generator().manual_seed(1)).to(device)
    one = image[..., :1]
    rendering = Rendering(
        color=image, normal=image, depth=one, alpha=one, background=torch.ones(2, 3, device=device)
    )
    return image, rendering, turntable(2).to(device)


def cosine(a, b):
    return torch.cosine_similarity(a.double().cpu().flatten(), b.double().cpu().flatten(), dim=0).item()


def test_a_step_does_not_wait_for_the_device(folder):
    guidance = build(folder, "cuda", dtype=torch.float16, vae_dtype=torch.float16)
    inputs = step(guidance)
    guidance(*inputs, 0.5)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = guidance(*inputs, 0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
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
        guidance(*step(guidance), 0.5).gradient
        for guidance in (build(folder, "cuda", dtype=dtype, vae_dtype=vae_dtype), build(folder, "cpu"))
    )
    assert found.dtype == torch.float32
    assert cosine(found, expected) > least


@pytest.mark.filterwarnings("ignore")  # the compiler warns about the card's precision settings
def test_compiled_modules_give_the_same_gradient(folder):
    plain = build(folder, "cuda")
    fast = build(folder, "cuda", channels_last=True, plain_attention=True, compile=True)
    found, expected = (guidance(*step(guidance), 0.5).gradient for guidance in (fast, plain))
    assert cosine(found, expected) > 0.999


def test_text_encoders_leave_no_memory_behind(folder):
    source = resolve_model(folder)
    encode_prompts(source, ["a cat"], device="cuda")
    before = torch.cuda.memory_allocated()
    embedding = encode_prompts(source, ["a cat"], device="cuda")
    kept = sum(tensor.numel() * tensor.element_size() for tensor in (embedding.tokens, embedding.pooled))
    assert torch.cuda.memory_allocated() - before <= 2 * kept + 4096
