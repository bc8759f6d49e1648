"""How the reference reads docstrings, as an extension of griffe.

A table of columns in a docstring stays one, as in `help()`; and `name = _method(module.function)` in a class is a method, with
the function's signature and docstring.
"""

import ast
import re
from collections.abc import Iterator

import griffe

COLUMNS = re.compile(r"\S {3,}\S")


class Docstrings(griffe.Extension):
    """What mkdocstrings loads the package with."""

    def on_instance(self, *, node: ast.AST, obj: griffe.Object, **_) -> None:
        """Every docstring, once read: indented by what is left of it, tables as blocks."""
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if documented and obj.docstring is not None and (text := ast.get_docstring(node, clean=False)):
            obj.docstring.value = with_tables(dedented(text, node.body[0].col_offset))

    def on_package(self, *, pkg: griffe.Module, **_) -> None:
        """Methods, once the package is read."""
        for cls in classes(pkg):
            for name, member in list(cls.members.items()):
                path = wrapped(member)
                if path is not None:
                    first, *rest = path.split(".")
                    function = ".".join([cls.module.resolve(first).removeprefix(f"{pkg.name}."), *rest])
                    cls.set_member(name, method(name, pkg[function], member))


def dedented(text: str, indent: int) -> str:
    """A docstring without its own indentation; `inspect.cleandoc` would take a block's as well, where all lines have it."""
    first, *lines = text.strip().split("\n")
    return "\n".join([first, *(line[min(indent, len(line) - len(line.lstrip())) :].rstrip() for line in lines)])


def with_tables(text: str) -> str:
    """Paragraphs in columns are indented, which makes them blocks of code."""

    def block(paragraph: str) -> str:
        lines = paragraph.split("\n")
        table = not lines[0].startswith(" ") and COLUMNS.search(lines[0]) and len(lines) > 1
        return "\n".join(f"    {line}" for line in lines) if table else paragraph

    return "\n\n".join(block(paragraph) for paragraph in text.split("\n\n"))


def classes(module: griffe.Module) -> Iterator[griffe.Class]:
    """All classes of a package."""
    for member in module.members.values():
        if member.is_alias:
            continue
        if member.is_module:
            yield from classes(member)
        elif member.is_class:
            yield member


def wrapped(member: griffe.Object | griffe.Alias) -> str | None:
    """What `_method(...)` is called with."""
    if member.is_alias or not member.is_attribute or not str(member.value).startswith("_method("):
        return None
    return ast.unparse(ast.parse(str(member.value), mode="eval").body.args[0])


def method(name: str, function: griffe.Function, attribute: griffe.Attribute) -> griffe.Function:
    """The function as a method."""
    first, *others = function.parameters
    parameters = griffe.Parameters(griffe.Parameter("self", kind=first.kind), *others)
    made = griffe.Function(name, parameters=parameters, returns=function.returns, lineno=attribute.lineno)
    made.docstring = function.docstring
    return made
