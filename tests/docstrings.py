"""``python -m tests.docstrings``: which docstrings say tensor shapes, and which say what their function raises.

A tensor function has a parameter or return value annotated as Tensor or ndarray; its docstring or comments give a shape
such as (B, T). A raising function has a ``raise`` in its own body; its docstring says "Raises".
"""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "manners"
MIN_SHAPES, MIN_RAISES = 0.95, 0.90
NAMED = "b|t|d|r|in|out|heads|rows|capacity|max_new_tokens|response_length|batch_size|features|groups|models|times"
DIMENSION = rf"(?:\d*(?:[A-Z][₀-₉]?|{NAMED})(?:\s?[-+−·*/]\s?\w+)*|\d+(?:\s?\+\s?\w+)?|…|\.\.\.)"
SHAPE = re.compile(rf"\({DIMENSION}(?:, ?{DIMENSION})*,?\)|→ \(\)|loss \(\)|: \(\)|\bscalar\b")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def is_tensor_function(function: Function) -> bool:
    a = function.args
    args = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    annotations = [*(arg.annotation for arg in args), function.returns]
    return any(re.search(r"\b(Tensor|ndarray)\b", ast.unparse(node)) for node in annotations if node)


def is_raising_function(function: Function) -> bool:
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Raise):
            return True
        if not isinstance(node, Function | ast.Lambda | ast.ClassDef):
            todo += ast.iter_child_nodes(node)
    return False


def comments_of(source: str, function: Function) -> str:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = range(function.lineno, (function.end_lineno or function.lineno) + 1)
    return "\n".join(token.string for token in tokens if token.type == tokenize.COMMENT and token.start[0] in lines)


def says_shape(source: str, function: Function) -> bool:
    return bool(SHAPE.search(f"{ast.get_docstring(function)}\n{comments_of(source, function)}"))


def says_raises(source: str, function: Function) -> bool:
    return bool(re.search(r"\bRaises?\b", ast.get_docstring(function) or ""))


def share(
    applies: Callable[[Function], bool], documented: Callable[[str, Function], bool], package: Path = PACKAGE
) -> tuple[float, list[str]]:
    """The share of the functions to which it applies that are documented, and the places of the others."""
    number, missing = 0, []
    for path in sorted(package.rglob("*.py")):
        source = path.read_text()
        for function in filter(applies, functions_of(ast.parse(source))):
            number += 1
            if not documented(source, function):
                missing.append(f"{path.relative_to(package)}:{function.lineno} {function.name}")
    return (number - len(missing)) / max(number, 1), missing


def shapes(package: Path = PACKAGE) -> tuple[float, list[str]]:
    return share(is_tensor_function, says_shape, package)


def raises(package: Path = PACKAGE) -> tuple[float, list[str]]:
    return share(is_raising_function, says_raises, package)


if __name__ == "__main__":
    for title, (documented, missing) in (("shapes of tensors", shapes()), ("what is raised", raises())):
        print(f"{title}: {documented:.1%} documented", *missing, sep="\n  ")
