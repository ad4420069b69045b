"""Tensors and arrays in public signatures and fields have their shapes in the annotation."""

import ast
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(importlib.import_module("pgc3d").__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
BARE = {"Tensor", "torch.Tensor", "np.ndarray"}
SHAPED = {"Float", "Int", "Int32", "Bool", "UInt8", "Num", "Shaped"}  # of jaxtyping
# Their tensors differ in shape: states of modules, gradients of all parameters.
COLLECTIONS = {"Mapping", "dict", "Sequence", "Iterable", "Iterator", "list"}


def array_aliases(tree):
    """Names of a module that stand for arrays of any shape, as `Ints = NDArray[np.int64]`."""
    for node in tree.body:
        value = getattr(node, "value", None)
        if isinstance(value, ast.Subscript) and ast.unparse(value.value) == "NDArray":
            yield ast.unparse(getattr(node, "target", None) or node.targets[0])


def bare(annotation, aliases):
    """The tensors and arrays without a shape in an annotation, outside of collections."""
    if isinstance(annotation, ast.Subscript):
        name = ast.unparse(annotation.value)
        if name == "NDArray":
            yield ast.unparse(annotation)
        if name in {*SHAPED, *COLLECTIONS, "NDArray", "Literal"}:
            return
    if isinstance(annotation, ast.Name | ast.Attribute):
        if ast.unparse(annotation) in BARE | aliases:
            yield ast.unparse(annotation)
        return
    for child in ast.iter_child_nodes(annotation) if annotation is not None else ():
        yield from bare(child, aliases)


def annotations(body, prefix=""):
    """The annotations of public functions, methods and fields below a node, with their names."""
    for node in body:
        name = getattr(node, "name", "")
        if isinstance(node, ast.ClassDef) and not name.startswith("_"):
            yield from annotations(node.body, f"{name}.")
        elif isinstance(node, ast.FunctionDef) and (
            not name.startswith("_") or name in {"__init__", "__call__"}
        ):
            if not any("jit" in ast.unparse(decorator) for decorator in node.decorator_list):
                arguments = node.args
                every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                yield from ((f"{prefix}{name}", item.annotation) for item in every if item.annotation)
                yield f"{prefix}{name}", node.returns
        elif isinstance(node, ast.AnnAssign) and prefix and not ast.unparse(node.target).startswith("_"):
            yield f"{prefix}{ast.unparse(node.target)}", node.annotation


def without_shape(code):
    tree = ast.parse(code)
    aliases = {"Ints", "Floats", *array_aliases(tree)}
    return [name for name, hint in annotations(tree.body) if list(bare(hint, aliases))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_tensors_have_shapes(path):
    assert without_shape(path.read_text()) == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("def f(x: Tensor) -> None: ...", 1),
        ("def f(x: Float[Tensor, 'B 3']) -> torch.Tensor | None: ...", 1),
        ("def f(x: tuple[Tensor, int]) -> NDArray[np.int64]: ...", 2),
        ("Ints = NDArray[np.int64]\ndef f(x: Ints): ...", 1),
        ("def f(x: Sequence[Tensor], state: Mapping[str, Tensor]): ...", 0),
        ("def _f(x: Tensor): ...", 0),
        ("class A:\n    x: Tensor\n    def f(self, y: Tensor): ...", 2),
    ],
)
def test_missing_shapes_are_found(code, count):
    assert len(without_shape(code)) == count
