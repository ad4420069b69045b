"""The rules of the design that a reviewer would otherwise have to look for."""

import ast
import importlib
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = Path(importlib.import_module("pgc3d").__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TEST_FILES = sorted(Path(__file__).parent.glob("*.py"))
MAX_LINES = 400

# From the top down; a module may import from its own layer and from those below it.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("viewer",),
    ("report",),
    ("batch",),
    ("evaluation",),
    ("pipeline", "presets", "given_settings", "pipelines", "doctor"),
    ("execution",),
    ("stages", "assets", "continuation"),
    ("session",),
    ("tensorboard",),
    ("events", "clip_images", "environment"),
    ("checkpoint", "planning", "model_record"),
    ("build",),
    ("run_directory",),
    ("checkpoint_files",),
    ("optimize", "config"),
    ("stage_config", "clip_rules", "early_config"),
    ("clip_text",),
    ("layers",),
    ("yaml_text",),
    ("inputs", "exporting"),
    ("mesh_io", "backgrounds"),
    ("guidance", "representation"),
    ("context",),
    ("rendering",),
    ("diffusion", "geometry", "kernels", "mini"),
    ("run_config", "export_config", "image_config"),
    ("images", "stopwatch", "memory", "measurements", "parallel", "devices"),
    ("cover_cameras",),
    ("cameras", "prompts", "adaptive_clip", "relative_clip"),
    ("pgc",),
    ("prompt_weights", "view_config", "view_prompts"),
    ("ranges", "requirements"),
    ("schedules",),
    ("interfaces",),
    ("parameters", "disk", "run_files"),
    ("task",),
    ("types", "shard", "errors", "plain_files", "records", "signals", "choices", "colors"),
    ("imports", "start_times", "__init__"),
)


def layer(module):
    part = module.removeprefix("pgc3d").removeprefix(".").split(".")[0] or "__init__"
    return next(index for index, names in enumerate(LAYERS) if part in names)


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("pgc3d"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pgc3d"):
            if node.module == "pgc3d":
                names = (alias.name for alias in node.names)
                known = {name for names in LAYERS for name in names}
                yield from (f"pgc3d.{name}" if name in known else "pgc3d" for name in names)
            else:
                yield node.module


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_downwards(path):
    own = layer(module_name(path))
    # The package's face names for type checkers what it imports when it is used.
    found = () if path == PACKAGE / "__init__.py" else imports(path)
    upwards = [name for name in found if layer(name) < own]
    assert not upwards


def test_clipping_stands_alone():
    assert not list(imports(PACKAGE / "pgc.py"))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) < MAX_LINES


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.stem)
def test_files_of_tests_stay_readable_and_lose_no_test(path):
    assert len(path.read_text().splitlines()) < MAX_LINES
    names = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert len(names) == len(set(names))  # a second function of a name replaces the first


def test_folders_are_one_level_deep():
    deeper = {path.parent for path in FILES if len(path.relative_to(PACKAGE).parts) > 2}
    assert deeper == {PACKAGE / "diffusion" / "fast"}


def configurations():
    """Every configuration class of the package, with the file that defines it."""
    return {
        node.name: path
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Clip", "Scale", "Formula"))
    }


def compared_classes(tree):
    """Names of the classes that a file compares with: in isinstance, issubclass, type(x) is, and match."""
    for node in ast.walk(tree):
        found = []
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"isinstance", "issubclass"}:
            found = node.args[1:]
        elif isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            if any(isinstance(side, ast.Call) and getattr(side.func, "id", "") == "type" for side in sides):
                found = sides
        elif isinstance(node, ast.MatchClass):
            found = [node.cls]
        for part in (inner for item in found for inner in ast.walk(item)):
            yield getattr(part, "id", None) or getattr(part, "attr", None)


def test_no_code_outside_a_configurations_own_file_compares_its_class():
    """So that a new member of a family needs no other place to be changed."""
    known = configurations()
    aliases = ("GuidanceConfig", "FormulaConfig", "RepresentationConfig", "CameraConfig", "ClipConfig")
    found = [
        (module_name(path), name)
        for path in FILES
        for name in compared_classes(ast.parse(path.read_text()))
        if name in aliases or known.get(name, path) != path
    ]
    assert found == []
    examples = {"SdsConfig", "DMTetConfig", "OrbitConfig", "PixelClip", "GlobalScale", "CsdFormula"}
    assert examples <= known.keys()


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(x, SdsConfig)",
        "isinstance(x, (int, sds.SdsConfig))",
        "isinstance(x, A | SdsConfig)",
        "type(x) is SdsConfig",
        "match x:\n    case SdsConfig(): pass",
    ],
)
def test_comparisons_with_a_class_are_found(code):
    assert "SdsConfig" in set(compared_classes(ast.parse(code)))


def test_layers_name_each_module_once():
    names = sorted(name for names in LAYERS for name in names)
    assert all(first != second for first, second in pairwise(names))


def test_only_the_command_line_prints():
    for path in FILES:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        prints = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert not prints or path.parent == PACKAGE / "cli", path


LIGHT = {
    "pgc3d": {"torch", "numpy"},
    "pgc3d.cli.app": {"torch", "numpy", "omegaconf"},
    "pgc3d.pgc": {"diffusers", "transformers", "trimesh", "numba"},
    "pgc3d.pipeline": {"diffusers", "transformers", "trimesh", "xatlas", "nvdiffrast", "triton"},
}


REFUSED = (  # for reasons that no tensor is needed for
    "text ''", "text x --quality best", "text x --config none.yaml", "image none.png", "texture none.glb x",
    "resume none", "export none", "render none", "report none", "batch none.txt",
    "texture a.glb x --set run.stps=3", "text x --set run.seed=many", "text x --set exprt.faces=3",
    "text x --set =",
    "texture a.glb x --clip pixle", "image a.png --clip pngd=x", "text x --config bad.yaml",
    "texture a.glb x --config misspelt.yaml", "text x --guidance sdxx", "config show --set models.text.nme=x",
    "config validate bad.yaml",
)  # fmt: skip


def test_arguments_are_refused_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "bad.yaml").write_text("run: {seed: [")
    (tmp_path / "misspelt.yaml").write_text("logging: {log_evry: 5}")
    code = "import shlex, sys\nfrom pgc3d.cli.app import main\n" + "".join(
        f"try: main(shlex.split({line!r}))\nexcept SystemExit as end: print(end.code)\n" for line in REFUSED
    )
    code += "print(*({'torch', 'numpy'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert found.stdout == len(REFUSED) * "2\n" + "\n", found.stderr


def test_imports_stay_light():
    """In one process, each after the others: what none of them may bring is not there after it."""
    code = "".join(
        f"import sys, {module}; print(*({heavy} & set(sys.modules)))\n" for module, heavy in LIGHT.items()
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == len(LIGHT) * "\n"
