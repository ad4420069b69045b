"""What a texture costs, said before a run starts."""

import torch

from pgc3d.errors import OutOfMemoryError

# Bytes of a texel at the peak on a CPU: of an export 104 were measured at 4096, the comparison with the file
# included; of a learnt image (itself, gradient, moments, mip levels with theirs, checkpoint) 142 at 2048.
BAKE_BYTES = 110
IMAGE_BYTES = 150


def require_texture_memory(texture_size: int, image_size: int, device: torch.device) -> None:
    """Refuse textures that do not fit into what the device has free.

    Args:
        texture_size: side of the texture to bake.
        image_size: side of the image that is learnt, 0 for none.
        device: where both are made.

    Raises:
        OutOfMemoryError: they do not fit.
    """
    needed = BAKE_BYTES * texture_size**2 + IMAGE_BYTES * image_size**2
    free = free_memory(device)
    if needed > free:
        raise OutOfMemoryError(
            f"a texture of {max(texture_size, image_size)} must fit the memory of {device.type}, but needs "
            f"about {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB free; lower --texture-size"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that a new job can have."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return int(psutil.virtual_memory().available)
