"""For Blender's Python (the package `bpy`): import a mesh file, count its parts and render it unlit.

    python blender_scene.py JOB.json

The job, which `check_in_blender.py` writes, has the file, the one to render, a camera and names of results.
Colours are those of the textures: every material emits its base colour, and the view transform is plain sRGB.
"""

import json
import sys
from pathlib import Path
from typing import Any

import bpy  # type: ignore[import-not-found]
from mathutils import Matrix  # type: ignore[import-not-found]

IMPORT = {
    ".glb": lambda path: bpy.ops.import_scene.gltf(filepath=path, import_shading="NORMALS"),
    ".gltf": lambda path: bpy.ops.import_scene.gltf(filepath=path, import_shading="NORMALS"),
    ".obj": lambda path: bpy.ops.wm.obj_import(filepath=path),
    ".usdz": lambda path: bpy.ops.wm.usd_import(filepath=path, import_textures_mode="IMPORT_PACK"),
}


def main(job: dict[str, Any]) -> None:
    """Import, count, render; the counts go to the file `counts` as JSON, the image to `image`."""
    open_file(job["file"])
    counts = count()
    open_file(job["shown"])
    for material in bpy.data.materials:
        emit(material)
    place_camera(job)
    render(job)
    Path(job["counts"]).write_text(json.dumps(counts), encoding="utf-8")


def open_file(name: str) -> None:
    """Import a file into an empty scene."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    IMPORT[Path(name).suffix](name)


def count() -> dict[str, int]:
    """Numbers of what was imported; the shapes that the importer adds for bones are not counted."""
    items = bpy.context.scene.objects
    shapes = {bone.custom_shape for item in items if item.type == "ARMATURE" for bone in item.pose.bones}
    meshes = [item for item in items if item.type == "MESH" and item not in shapes]
    return {
        "meshes": len(meshes),
        "vertices": sum(len(item.data.vertices) for item in meshes),
        "triangles": sum(len(polygon.vertices) - 2 for item in meshes for polygon in item.data.polygons),
        "bones": sum(len(armature.bones) for armature in bpy.data.armatures),
        "actions": len(bpy.data.actions),
        "materials": len(
            {slot.material.name for item in meshes for slot in item.material_slots if slot.material}
        ),
        "images": sum(image.size[0] > 0 for image in bpy.data.images),
    }


def emit(material: Any) -> None:
    """Replace the surface of a material by one that emits its base colour."""
    material.use_nodes = True
    tree = material.node_tree
    surface = next((node for node in tree.nodes if node.type == "BSDF_PRINCIPLED"), None)
    output = next((node for node in tree.nodes if node.type == "OUTPUT_MATERIAL"), None)
    if surface is None or output is None:
        return
    light = tree.nodes.new("ShaderNodeEmission")
    base = surface.inputs["Base Color"]
    light.inputs["Color"].default_value = base.default_value
    if base.is_linked:
        tree.links.new(base.links[0].from_socket, light.inputs["Color"])
    tree.links.new(light.outputs["Emission"], output.inputs["Surface"])


def place_camera(job: dict[str, Any]) -> None:
    """A camera with the job's matrix (of a world with z up) and vertical angle of view."""
    camera = bpy.data.cameras.new("camera")
    camera.sensor_fit, camera.angle = "VERTICAL", job["fovy"]
    camera.clip_start, camera.clip_end = job["near"], job["far"]
    item = bpy.data.objects.new("camera", camera)
    bpy.context.scene.collection.objects.link(item)
    item.matrix_world = Matrix(job["matrix"])
    bpy.context.scene.camera = item


def render(job: dict[str, Any]) -> None:
    """Render with Cycles on white, with a filter of one pixel."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.device, scene.cycles.samples = "CPU", job["samples"]
    scene.cycles.use_denoising = False
    scene.cycles.pixel_filter_type, scene.cycles.max_bounces = "BOX", 0
    scene.cycles.transparent_max_bounces = 8
    scene.render.threads_mode, scene.render.threads = "FIXED", job["threads"]
    scene.render.resolution_x = scene.render.resolution_y = job["side"]
    scene.render.resolution_percentage = 100
    scene.view_settings.view_transform, scene.view_settings.look = "Standard", "None"
    scene.render.film_transparent = False
    scene.world = bpy.data.worlds.new("white")
    scene.world.use_nodes = True
    background = next(node for node in scene.world.node_tree.nodes if node.type == "BACKGROUND")
    background.inputs["Color"].default_value = (1.0, 1.0, 1.0, 1.0)
    scene.render.image_settings.file_format = "PNG"
    scene.render.filepath = job["image"]
    bpy.ops.render.render(write_still=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
