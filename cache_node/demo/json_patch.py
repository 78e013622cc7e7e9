"""JSON Patch (RFC 6902) as far as Kratos' admin API takes it: add, replace and remove."""

from __future__ import annotations

from typing import Any

from cache_node.demo.wire import Json, Refusal


def apply_patch(document: Json, operations: Any) -> Json:
    """Apply `operations` to `document` in place and return it.

    Only the document's own top-level names may be touched.  As at Kratos, parents that are missing are made, and a
    value to remove may be missing.  Raises Refusal (400).
    """
    if not isinstance(operations, list) or not all(isinstance(each, dict) for each in operations):
        raise _refused("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    for operation in operations:
        kind, pointer = operation.get("op"), operation.get("path")
        if kind not in ("add", "replace", "remove"):
            raise _refused(f"unsupported operation: {kind}")
        path = _parsed(pointer)
        if path[0] not in document:
            raise _refused(f"patch includes denied path: {pointer}")
        try:
            _change(document, path, kind, operation.get("value"))
        except (ValueError, IndexError, TypeError):
            raise _refused(f"{kind} operation does not apply: doc is missing path: {pointer}") from None
    return document


def _refused(message: str) -> Refusal:
    return Refusal(400, message, reason="An error occured when applying the JSON patch")


def _parsed(pointer: Any) -> list[str]:
    """The reference tokens of a JSON Pointer (RFC 6901) that names more than the whole document."""
    if not isinstance(pointer, str) or not pointer.startswith("/"):
        raise _refused(f"patch includes denied path: {pointer}")
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer[1:].split("/")]


def _change(document: Json, path: list[str], kind: str, value: Any) -> None:
    parent: Any = document
    for token in path[:-1]:
        if isinstance(parent, list):
            parent = parent[int(token)]
            continue
        if parent.get(token) is None:
            parent[token] = {}
        parent = parent[token]
    last = path[-1]
    if isinstance(parent, list):
        if kind == "add":
            parent.insert(len(parent) if last == "-" else int(last), value)
        elif kind == "replace":
            parent[int(last)] = value
        else:
            del parent[int(last)]
    elif not isinstance(parent, dict):
        raise TypeError(last)
    elif kind == "remove":
        parent.pop(last, None)
    else:
        parent[last] = value
