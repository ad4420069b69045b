"""A style image by IP-Adapter: equal to diffusers' own pipelines, exact without weight, beside the rest."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import write_tiny_adapter, write_tiny_controlnet, write_tiny_sd, write_tiny_sdxl

from pgc3d.build.models import LoadedModels, LocatedModel, locate_model
from pgc3d.config import ModelConfig
from pgc3d.diffusion.controlnet import Control, control_residuals
from pgc3d.diffusion.fast.accelerate import accelerate
from pgc3d.diffusion.latent import select
from pgc3d.diffusion.style import (
    encode_style,
    resolve_style,
    with_style,
)
from pgc3d.diffusion.zero123 import clip_pixels
from pgc3d.errors import ConfigError, WeightsNotFoundError
from pgc3d.requirements import ModelUse
from pgc3d.run_config import StyleConfig

CPU = torch.device("cpu")
KINDS = ["sdxl", "sd", "sdxl-plus"]
SIDE = 48  # of the style image


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("style")
    models = {"sdxl": write_tiny_sdxl(folder / "sdxl"), "sd": write_tiny_sd(folder / "sd")}
    for kind in KINDS:
        write_tiny_adapter(folder / f"{kind}-adapter", models[kind.split("-")[0]], plus="plus" in kind)
    write_tiny_controlnet(folder / "sdxl-net", models["sdxl"])
    return folder


def style_image():
    return torch.rand(SIDE, SIDE, 3, generator=torch.Generator().manual_seed(3))


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def located(root, kind, weight=1.0, **settings) -> LocatedModel:
    style = StyleConfig(adapter=str(root / f"{kind}-adapter"), weight=weight)
    config = ModelConfig(name=str(root / kind.split("-")[0]), style=style, **settings)
    return locate_model(config, ModelUse(), CPU, styled=weight is not None)


def store(model: LocatedModel) -> LoadedModels:
    return LoadedModels({"text": model}, CPU, style=style_image)


def predict(models: LoadedModels, *, styled=True, change=None, residuals=None):
    """The predictions without and with the prompt, whose text has the style where it is `styled`."""
    loaded, texts = models.get("text", ModelUse()), models.embed("text", ("", "a red chair"))
    model, style = loaded.diffusion, models.style("text")
    texts = [select(texts, torch.tensor([row])) for row in range(2)]
    if styled and style is not None:
        texts = [with_style(texts[0], style.empty), with_style(texts[1], style.image)]
    if change is not None:
        model = change(model)
    return torch.cat(
        model.predict(
            draw(1, 4, 8, 8),
            torch.tensor([500]),
            unconditional=texts[0],
            conditional=texts[1],
            time_ids=model.time_ids(64, 64),
            residuals=residuals,
        )
    )


@pytest.mark.parametrize(("kind", "weight"), [*((kind, 1.0) for kind in KINDS), ("sdxl", 0.4)])
@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler")
def test_predictions_are_those_of_diffusers_own_adapter(root, kind, weight):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    models = store(located(root, kind, weight))
    adapter = models.located["text"].style
    of = StableDiffusionXLPipeline if kind.startswith("sdxl") else StableDiffusionPipeline
    parts = {} if kind.startswith("sdxl") else {"safety_checker": None, "requires_safety_checker": False}
    pipeline = of.from_pretrained(root / kind.split("-")[0], feature_extractor=None, **parts)
    pipeline.load_ip_adapter(
        str(adapter.path.parent), subfolder="", weight_name=adapter.path.name, image_encoder_folder=None
    )
    pipeline.set_ip_adapter_scale(weight)
    texts = models.embed("text", ("", "a red chair"))
    added = {"image_embeds": [_features(adapter)]}
    if kind.startswith("sdxl"):
        ids = models.get("text", ModelUse()).diffusion.time_ids(64, 64)
        added |= {"text_embeds": texts.pooled, "time_ids": ids.expand(2, -1)}
    with torch.no_grad():
        expected = pipeline.unet(
            draw(1, 4, 8, 8).expand(2, -1, -1, -1),
            torch.tensor([500, 500]),
            encoder_hidden_states=texts.tokens,
            added_cond_kwargs=added,
        ).sample
    found = predict(models)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found[1] - predict(store(located(root, kind, 0.0)))[1]).norm() > 0.02 * found[1].norm()


@torch.no_grad()
def _features(adapter):
    """What diffusers' pipelines compute of an empty image and of the image: [2, 1, D] or [2, 1, T, D]."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

    encoder = CLIPVisionModelWithProjection.from_pretrained(adapter.encoder)
    settings = {"size": 32, "image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
    pixels = clip_pixels(style_image()[None], settings)
    if adapter.patches:
        hidden = [encoder(part, output_hidden_states=True).hidden_states[-2] for part in (0 * pixels, pixels)]
        return torch.cat(hidden)[:, None]
    embedding = encoder(pixels).image_embeds
    return torch.cat([torch.zeros_like(embedding), embedding])[:, None]


def test_pixels_are_those_of_the_librarys_image_processor():
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    smooth = torch.nn.functional.avg_pool2d(style_image().permute(2, 0, 1), 5, stride=1, padding=2)
    stored = (255 * smooth.permute(1, 2, 0)).round().to(torch.uint8)  # noise would overshoot in both
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = processor(Image.fromarray(stored.numpy()), return_tensors="pt").pixel_values
    settings = {"size": 32, "image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
    found = clip_pixels(stored.float()[None] / 255, settings)
    assert (found - expected).abs().max() < 2 / 255 / min(OPENAI_CLIP_STD)  # the library's are rounded


@pytest.mark.parametrize("kind", KINDS)
def test_weight_zero_is_no_adapter_at_all(root, kind):
    plain = located(root, kind)
    expected = predict(store(replace(plain, style=None)))
    assert torch.equal(predict(store(located(root, kind, 0.0))), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_accelerated_network_gives_the_same(root, kind):
    models = store(located(root, kind))
    expected = predict(models)

    def fused(model):
        from pgc3d.diffusion.fast.unet import fuse_projections, replace_blocks

        replace_blocks(model.unet)
        fuse_projections(model.unet)
        assert sum(hasattr(part, "to_kv_style") for part in model.unet.modules()) > 0
        assert all(getattr(part, "to_k", None) is None for part in model.unet.modules())
        return accelerate(model, compiled=False)

    found = predict(models, change=fused)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


TRACE = """
import sys
import torch
from pgc3d.diffusion.fast.accelerate import BLOCKS
from pgc3d.diffusion.fast.unet import fuse_projections, replace_blocks
from pgc3d.diffusion.models import load_latent_diffusion
from pgc3d.diffusion.style import load_style, resolve_style
from pgc3d.run_config import StyleConfig
from pgc3d.diffusion.models import resolve_model

folder = resolve_model(sys.argv[1])
adapter = resolve_style(StyleConfig(adapter=sys.argv[2]), folder)
unet = load_latent_diffusion(folder).unet
load_style(unet, adapter)
replace_blocks(unet)
fuse_projections(unet)
for block in unet.modules():
    if type(block).__name__ in BLOCKS:
        block.compile(dynamic=False, fullgraph=True, backend="eager")
tokens = torch.zeros(2, 77 + adapter.tokens, unet.config.cross_attention_dim)
with torch.no_grad():
    unet(torch.zeros(2, 4, 8, 8), torch.tensor([5, 5]), encoder_hidden_states=tokens)
"""


@pytest.mark.slow
def test_blocks_with_a_style_are_compiled_as_one_graph_each(root):
    """A break in a graph is an error here; without the checks of shapes, which the compiler cannot trace."""
    arguments = [sys.executable, "-c", TRACE, str(root / "sd"), str(root / "sd-adapter")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_controlnets_see_the_texts_without_the_image(root):
    use = ModelUse(controls=(str(root / "sdxl-net"),))
    plain = replace(located(root, "sdxl", 0.0), style=None)
    with_net = locate_model(plain.config, use, CPU, styled=True)
    shown = draw(1, 64, 64, 3, seed=5).sigmoid()

    def residuals_of(models):
        network = models.get("text", use).controls[str(root / "sdxl-net")]
        return lambda *batch: control_residuals([(Control(network, "depth"), shown)], *batch)

    off, without = store(with_net), store(replace(with_net, style=None))
    expected = predict(without, residuals=residuals_of(without))
    assert torch.equal(predict(off, residuals=residuals_of(off)), expected)
    on = locate_model(located(root, "sdxl").config, use, CPU, styled=True)
    models = store(on)
    assert (predict(models, residuals=residuals_of(models)) - expected).norm() > 1e-3 * expected.norm()


def test_the_negative_prompt_has_an_empty_image(root):
    """The prediction without the prompt does not depend on the style image."""
    found = []
    for image in (style_image(), 1 - style_image()):
        models = LoadedModels({"text": located(root, "sdxl")}, CPU, style=lambda image=image: image)
        found.append(predict(models))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.allclose(found[0][1], found[1][1])


def adapter_of(path: Path | None, model, **settings):
    name = None if path is None else str(path)
    return resolve_style(StyleConfig(adapter=name, **settings), model)


def test_a_file_that_is_no_adapter_or_of_another_model_is_refused(root, tmp_path):
    from safetensors.torch import save_file

    sdxl = located(root, "sdxl").folder
    with pytest.raises(ConfigError, match=r"must go with a model of a kind .* got .*sdxl; use --guidance"):
        adapter_of(None, sdxl)
    with pytest.raises(ConfigError, match=r"must fit the model .* whose ip_adapter\.1\.to_k_ip\.weight is"):
        adapter_of(located(root, "sd").style.path, sdxl)
    other = tmp_path / "lora.safetensors"
    save_file({"lora.up": torch.zeros(2, 2)}, other)
    with pytest.raises(ConfigError, match=r"must be an IP-Adapter, plain or plus"):
        adapter_of(other, sdxl)
    save_file({"image_proj.proj.weight": torch.zeros(8, 2)}, other)
    with pytest.raises(ConfigError, match=r"with layers ip_adapter\.1\.to_k_ip\.weight and so on"):
        adapter_of(other, sdxl)
    other.write_bytes(b"no safetensors")
    with pytest.raises(WeightsNotFoundError, match="must be a whole safetensors file"):
        adapter_of(other, sdxl)


def test_pickles_and_missing_files_are_refused_with_what_to_do(root, tmp_path):
    model, source = located(root, "sdxl").folder, located(root, "sdxl").style.path
    pickle = tmp_path / "adapter" / "ip-adapter.bin"
    pickle.parent.mkdir()
    pickle.write_bytes(b"\x80\x04")
    for given in (pickle, Path("h94/IP-Adapter:models/ip-adapter_sd15.bin")):
        with pytest.raises(WeightsNotFoundError, match=r"got the pickle .* never loaded; use the file of"):
            adapter_of(given, model)
    with pytest.raises(WeightsNotFoundError, match=r"only ip-adapter\.bin, a pickle"):
        adapter_of(pickle.parent, model)
    with pytest.raises(WeightsNotFoundError, match="which does not exist; one of the hub is"):
        adapter_of(tmp_path / "missing.safetensors", model)
    alone = pickle.parent / "ip.safetensors"
    alone.write_bytes(source.read_bytes())
    with pytest.raises(WeightsNotFoundError, match="CLIP image encoder with projection_dim 48 in a folder"):
        adapter_of(alone, model)
    (pickle.parent / "image_encoder").symlink_to(source.parent / "image_encoder")
    assert adapter_of(pickle.parent, model).path == alone
    alone.with_name("second.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="must be named"):
        adapter_of(pickle.parent, model)


def test_tokens_do_not_depend_on_the_size_of_the_image(root):
    adapter = located(root, "sdxl").style
    smooth = torch.linspace(0, 1, 32)[:, None, None].expand(32, 32, 3)
    large = smooth.repeat_interleave(8, 0).repeat_interleave(8, 1)
    found = [encode_style(adapter, image, device=CPU, dtype=torch.float32) for image in (smooth, large)]
    difference = (found[0].image - found[1].image).norm() / (found[0].image - found[0].empty).norm()
    assert difference < 0.1
