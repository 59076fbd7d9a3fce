"""Looks into a `.pt2` archive before torch reads it, and refuses what could run code.

`torch.export.load` unpickles sample inputs, constants and (in old archives) weights, resolves operators by attribute path, and hands
symbolic shapes to sympy, which evaluates them. So: nothing pickled is let through except sample inputs, which must load with
`weights_only=True`; operators must be named from the namespaces below; shape expressions must be arithmetic on symbols; results
must be made of tuples, lists and dicts. Guards (Python text that torch would run) are never used. Only the standard library here.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tessera.domain.errors import InvalidInput, Unsupported

_RE_EXPORT = "save it again with torch.export.save of a current torch"
_JSON_LIMIT_BYTES = 256 << 20
_OPERATOR = re.compile(r"torch\.ops\.(aten|higher_order)\.[A-Za-z_]\w*(\.[A-Za-z_]\w*)?")
_SCALAR = re.compile(
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|getitem)|math\.(ceil|floor|trunc|sqrt)"
)
_SYMBOLIC = re.compile(r"torch\.sym_(max|min|int|float|not)|torch\.sym_ite|torch\._sym_sqrt")
_SYMBOL = re.compile(r"[A-Za-z_]\w{0,63}")
_CALLS = frozenset(
    {
        "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "ModularIndexing",
        "Pow", "Max", "Min", "Abs", "IntTrueDiv", "FloatTrueDiv", "TruncToInt", "TruncToFloat", "CeilToInt", "FloorToInt", "RoundToInt",
        "ToFloat", "FloatPow", "PowByNatural", "Where", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan",
        "LessThan", "StrictGreaterThan", "GreaterThan", "And", "Or", "Not", "Identity", "floor", "ceiling",
    }
)  # fmt: skip
_PLAIN_TYPES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})


def check_archive(path: Path, shown: str) -> str:
    """Returns the name of the record with the sample inputs, to be read with `weights_only=True` before the archive is loaded.

    Raises:
        InvalidInput: not an archive, or one that contradicts itself; names the record.
        Unsupported: it holds something that runs code, or several programs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _check(archive, path.stat().st_size, shown)
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InvalidInput("file", shown, f"is no .pt2 archive of torch.export.save: {error}") from None


def _check(archive: zipfile.ZipFile, size_bytes: int, shown: str) -> str:
    records: dict[str, zipfile.ZipInfo] = {}
    roots = set()
    for info in archive.infolist():
        root, _, rest = info.filename.partition("/")
        roots.add(root)
        if ".." in info.filename.split("/") or "\\" in info.filename or not rest or rest in records:
            raise InvalidInput(f"{shown}: record", info.filename, "must be below the archive's folder, once")
        if info.file_size > size_bytes:
            raise InvalidInput(f"{shown}: record", info.filename, f"unpacks to {info.file_size} bytes, more than the archive has")
        records[rest] = info
    if len(roots) != 1:
        raise InvalidInput("file", shown, "is no .pt2 archive of torch.export.save: it must hold one folder")
    for name in records:
        if name.startswith("data/aotinductor/") or name.endswith((".so", ".cubin", ".o", ".cpp")):
            raise Unsupported(f"{shown}: {name}: compiled programs are not imported; save the exported program with torch.export.save")
    models = [name for name in records if name.startswith("models/") and name.endswith(".json")]
    if len(models) != 1:
        raise Unsupported(f"{shown}: it holds {len(models)} exported programs ({', '.join(models[:5])}); one per version is imported")
    model = models[0].removeprefix("models/").removesuffix(".json")

    def document(name: str) -> Any:
        if name not in records:
            raise InvalidInput("file", shown, f"lacks the record {name}; {_RE_EXPORT}")
        if records[name].file_size > _JSON_LIMIT_BYTES:
            raise InvalidInput(f"{shown}: record", name, f"at most {_JSON_LIMIT_BYTES} bytes")
        return json.loads(archive.read(records[name]))

    for legacy in (f"data/weights/{model}.pt", f"data/constants/{model}.pt"):
        if legacy in records:
            raise Unsupported(f"{shown}: {legacy} is pickled; {_RE_EXPORT}")
    _check_payload(document(f"data/weights/{model}_weights_config.json"), "weight_", shown)
    _check_payload(document(f"data/constants/{model}_constants_config.json"), "tensor_", shown)
    _check_program(document(models[0]), shown)
    samples = f"data/sample_inputs/{model}.pt"
    document_root = next(iter(roots))
    if samples not in records:
        raise InvalidInput("file", shown, f"lacks the record {samples}; {_RE_EXPORT}")
    return f"{document_root}/{samples}"


def _check_payload(listing: Any, prefix: str, shown: str) -> None:
    entries = listing.get("config") if isinstance(listing, dict) else None
    if not isinstance(entries, dict):
        raise InvalidInput("file", shown, f"has no list of its tensors; {_RE_EXPORT}")
    for name, entry in entries.items():
        path = entry.get("path_name") if isinstance(entry, dict) else None
        if not isinstance(path, str) or "/" in path or not path.startswith(prefix) or entry.get("use_pickle") is not False:
            raise Unsupported(f"{shown}: tensor {name!r} is pickled or an object with code of its own; only plain tensors are imported")


def _check_program(program: Any, shown: str) -> None:
    for key, value in _strings(program):
        if key == "target":
            if not (_OPERATOR.fullmatch(value) or _SCALAR.fullmatch(value) or _SYMBOLIC.fullmatch(value)):
                raise Unsupported(f"{shown}: operator {value[:120]!r}: the flat program knows aten operators and arithmetic on sizes")
        elif key == "expr_str":
            _check_expression(value, shown)
        elif key in ("in_spec", "out_spec"):
            for name, kind in _strings(json.loads(value), only="type"):
                if kind not in _PLAIN_TYPES:
                    raise Unsupported(f"{shown}: {key} has {name} {kind!r}; inputs and outputs must be tensors, tuples, lists and dicts")


def _strings(value: Any, only: str | None = None) -> Iterator[tuple[str, str]]:
    stack = [value]
    while stack:
        found = stack.pop()
        if isinstance(found, dict):
            for key, entry in found.items():
                if isinstance(entry, str) and (only is None or key == only):
                    yield key, entry
                elif not isinstance(entry, str):
                    stack.append(entry)
        elif isinstance(found, list):
            stack.extend(found)


def _check_expression(text: str, shown: str) -> None:
    refusal = InvalidInput(f"{shown}: shape expression", text[:120], "must be arithmetic on symbols")
    if len(text) > 20_000:
        raise refusal
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise refusal from None
    texts = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if not (isinstance(node.func, ast.Name) and node.func.id in _CALLS):
                raise refusal
            if node.func.id == "Symbol" and node.args and isinstance(node.args[0], ast.Constant):
                texts.add(id(node.args[0]))
        elif isinstance(node, ast.Constant):
            fine = (isinstance(node.value, str) and id(node) in texts and _SYMBOL.fullmatch(node.value)) or (
                isinstance(node.value, (int, float, bool)) and abs(node.value) < 2**64
            )
            if not fine:
                raise refusal
        elif isinstance(node, ast.Name):
            if not _SYMBOL.fullmatch(node.id) or node.id.startswith("__"):
                raise refusal
        elif isinstance(node, ast.BinOp):
            if not isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)):  # no power: its size explodes
                raise refusal
        elif not isinstance(
            node,
            (ast.Expression, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.keyword, ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.Load),
        ):
            raise refusal
