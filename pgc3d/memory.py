"""Free memory of a device, and whether textures fit, checked while a run's inputs are prepared.

Apart from `planning`, the estimate of a step's memory on a GPU: that one needs the located models, and stands
above `build`, where this check is made before any model is located.
"""

import gc

import torch

from pgc3d.errors import OutOfMemoryError

# Bytes at the peak on a CPU, as measured, for each texel and for a band of them: an export and its
# comparison need 0.75 GB at 4096, 0.94 GB with all maps of a material, and at 8192 1.8 GB without them. An
# optimised image (itself, gradient, moments, mip levels, checkpoint) needs 142 for a texel at 2048.
BAKE_BYTES = 45
BAND_BYTES = 400_000_000
IMAGE_BYTES = 150


def require_texture_memory(texture_size: int, image_size: int, device: torch.device) -> None:
    """Check that textures fit into the free memory of a device.

    Args:
        texture_size: side of the texture to bake, in pixels.
        image_size: side of the image that is optimised, in pixels; 0 for none.
        device: that both are computed on.

    Raises:
        OutOfMemoryError: they do not fit.
    """
    needed = BAND_BYTES + BAKE_BYTES * texture_size**2 + IMAGE_BYTES * image_size**2
    free = free_memory(device)
    if needed > free:
        raise OutOfMemoryError(
            f"a texture of {max(texture_size, image_size)} must fit the memory of {device.type}, but needs "
            f"about {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB free; lower --texture-size"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that this process can use on the device: of the GPU, or of the computer's memory.

    What `torch.cuda.set_per_process_memory_fraction` limits a process to is not exceeded.
    """
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        free, total = torch.cuda.mem_get_info(index)
        allowed = int(torch.cuda.get_per_process_memory_fraction(index) * total)
        return min(free, max(0, allowed - torch.cuda.memory_reserved(index)))
    import psutil

    return int(psutil.virtual_memory().available)


def release_memory(device: torch.device) -> None:
    """Give what is no longer used back to the device, as after a network was deleted."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
