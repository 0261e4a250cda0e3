"""Counts what makes code hard to follow, and fails when a count rises.

`python tests/test_structure.py` lists what is counted.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "strongroom"
LONGEST_FUNCTION = 50

# Lower these when the counts have fallen. Only a feature is a reason to raise the lines.
MOST_CALLABLES = 8
MOST_LATE_ATTRIBUTES = 0
MOST_LINES = 29_700

NO_WIRING = {"Clock", "Upgrade", "Make"}
"""Functions that a constructor may well be given: a source of time, and a user's own."""
USERS_FUNCTIONS = {"Operation(function)", "Case.run"}

Function = ast.FunctionDef | ast.AsyncFunctionDef

FILES = {path: ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}


def callables_given_to_constructors() -> list[str]:
    """Parameters of `__init__` and fields of dataclasses that are functions.

    There, go-to-definition stops.
    """
    aliases = {"Callable"} | {
        name
        for tree in FILES.values()
        for node in tree.body
        if isinstance(node, ast.Assign) and "Callable" in names_in(node.value)
        for name in names_in(node.targets[0])
    } - NO_WIRING
    found = []
    for path, node in classes():
        for name, annotation in constructor_arguments(node):
            if names_in(annotation) & aliases and name not in USERS_FUNCTIONS:
                found.append(place(path, annotation, name))
    return found


def attributes_that_appear_later() -> list[str]:
    """Attributes first assigned outside `__init__`, in the class and in those it inherits from."""
    bases = {node.name: node.bases for _, node in classes()}
    declared: dict[str, set[str]] = {}
    for _, node in classes():
        declared.setdefault(node.name, set()).update(attributes_declared(node))

    def known(name: str) -> set[str]:
        own = declared.get(name, set())
        above = [names_in(base) - {name} for base in bases.get(name, [])]
        return own.union(*(known(each) for names in above for each in names))

    found = []
    for path, node in classes():
        seen = known(node.name)
        for method in methods(node):
            for target, attribute in assigned_to_self(method):
                if attribute not in seen:
                    seen.add(attribute)
                    found.append(place(path, target, f"{node.name}.{attribute}"))
    return found


def long_functions() -> list[str]:
    """Functions of more lines than fit on a screen."""
    found = []
    for path, tree in FILES.items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    found.append(place(path, node, f"{node.name} has {lines} lines"))
    return found


def source_lines() -> int:
    """The lines of all files together."""
    return sum(len(path.read_text().splitlines()) for path in FILES)


def test_few_callables_are_given_to_constructors() -> None:
    found = callables_given_to_constructors()
    assert len(found) <= MOST_CALLABLES, found


def test_few_attributes_appear_after_the_constructor() -> None:
    found = attributes_that_appear_later()
    assert len(found) <= MOST_LATE_ATTRIBUTES, found


def test_every_function_fits_on_a_screen() -> None:
    assert long_functions() == []


def test_the_source_does_not_grow() -> None:
    assert source_lines() <= MOST_LINES


# --- reading the source -----------------------------------------------------------------------


def classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    for path, tree in FILES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                yield path, node


def methods(node: ast.ClassDef) -> list[Function]:
    return [each for each in node.body if isinstance(each, Function)]


def constructor_arguments(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for each in node.body:
        if isinstance(each, Function) and each.name == "__init__":
            for argument in (*each.args.posonlyargs, *each.args.args, *each.args.kwonlyargs):
                if argument.annotation:
                    yield f"{node.name}({argument.arg})", argument.annotation
        elif isinstance(each, ast.AnnAssign) and is_dataclass(node):
            yield f"{node.name}.{ast.unparse(each.target)}", each.annotation


def attributes_declared(node: ast.ClassDef) -> set[str]:
    """What `__init__` assigns, `__slots__` lists, and the body of a class gives a value.

    A dataclass's or Struct's fields are there from the start; a bare annotation in another class
    only promises an attribute.
    """
    found = {
        attribute
        for method in methods(node)
        if method.name in {"__init__", "__post_init__", "__new__"}
        for _, attribute in assigned_to_self(method)
    }
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and (each.value or has_generated_init(node)):
            found |= names_in(each.target)
        elif isinstance(each, ast.Assign):
            found |= names_in(each.targets[0])
    return found


def has_generated_init(node: ast.ClassDef) -> bool:
    bases = {ast.unparse(base) for base in node.bases}
    return is_dataclass(node) or bool(
        bases & {"BaseModel", "Struct", "msgspec.Struct", "NamedTuple"}
    )


def is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(each) for each in node.decorator_list)


def assigned_to_self(method: Function) -> Iterator[tuple[ast.Attribute, str]]:
    """The `self.name` that a method assigns to, in tuples, `with` and loops too."""
    arguments = [*method.args.posonlyargs, *method.args.args]
    if not arguments:
        return
    itself = arguments[0].arg
    for node in ast.walk(method):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == itself
        ):
            yield node, node.attr


def names_in(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def place(path: Path, node: ast.stmt | ast.expr | ast.arg, what: str) -> str:
    return f"{path.relative_to(SOURCE)}:{node.lineno} {what}"


if __name__ == "__main__":
    for counted in (callables_given_to_constructors, attributes_that_appear_later, long_functions):
        found = counted()
        print(f"{counted.__name__}: {len(found)}", *found, sep="\n    ")
    print(f"source_lines: {source_lines()}")
