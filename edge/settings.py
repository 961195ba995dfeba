"""From TOML text to checked structs, for every settings file: all problems at once, in an operator's words.

msgspec stops at the first problem, and its messages are a programmer's. So a walk over the structs finds every
problem first, and msgspec converts what passed.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin

import msgspec
import tomli_w
from msgspec import inspect

from edge.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T", bound=msgspec.Struct)

# No settings file is near this; a path to a disk image or a log is refused instead of read into memory.
LARGEST_BYTES: Final = 1 << 20
MASK: Final = "********"
_SECRET_KEY: Final = re.compile(r"pass(word|wd|phrase)?$|secret|token", re.IGNORECASE)
_URL_PASSWORD: Final = re.compile(r"(://[^:/@\s]*):[^/\s]+@")
_ASSIGNED_SECRET: Final = re.compile(r"(?i)\b((?:user-|proxy-)?(?:pw|pwd|passwd|password|secret|token)=)[^\s&]+")


@dataclass(frozen=True)
class Rule:
    """A check over several keys of one table.

    Attributes:
        keys: what it looks at; the check is left out while one of them is wrong by itself.
        problem: takes their values as written, or else their defaults, and says what is wrong, or None.
    """

    keys: tuple[str, ...]
    problem: Callable[..., str | None]


Rules = Mapping[type[msgspec.Struct], tuple[Rule, ...]]


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: no such file, not readable, not UTF-8, or not TOML; says where.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(str(path), ["it is not a file: name the TOML file itself"])
        with path.open("rb") as file:
            raw = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise ConfigError(str(path), [f"it cannot be read: {error.strerror or error}"]) from error
    if len(raw) > LARGEST_BYTES:
        raise ConfigError(str(path), [f"it is larger than {LARGEST_BYTES} bytes: it is not a settings file"])
    return parse_toml(raw, str(path))


def parse_toml(raw: bytes, origin: str) -> dict[str, Any]:
    """The tables of TOML text; `origin` names it in errors.

    Raises:
        ConfigError: not UTF-8, or not TOML; says in which line.

    >>> parse_toml(b"[mqtt]\\nport = 1883", "edge.toml")
    {'mqtt': {'port': 1883}}
    """
    try:
        text = raw.decode("utf-8-sig")  # Windows editors put a byte order mark in front
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(origin, [f"line {line} is not UTF-8 text: save the file as UTF-8"]) from error
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(origin, [f"it is not valid TOML: {error}"]) from error


def check(data: Mapping[str, Any], cls: type[T], origin: str, rules: Rules | None = None) -> T:
    """Plain data as a struct of type `cls`.

    Raises:
        ConfigError: with every problem found, each with its dotted path, its value and what is allowed.
    """
    problems = find_problems(data, cls, rules)
    if problems:
        raise ConfigError(origin, problems)
    try:
        return msgspec.convert(data, cls)
    except msgspec.ValidationError as error:  # the walk let something through: msgspec has the last word
        raise ConfigError(origin, [str(error)]) from error


def find_problems(data: Any, cls: type[msgspec.Struct], rules: Rules | None = None) -> list[str]:
    """Everything that keeps `data` from being a `cls`; empty when nothing does.

    >>> class Broker(msgspec.Struct, forbid_unknown_fields=True):
    ...     port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 1883
    >>> find_problems({"port": 0, "prot": 1}, Broker)
    ['prot: unknown key; did you mean `port`?', 'port = 0: must be a whole number from 1 to 65535']
    """
    walk = _Walk(rules or {})
    walk.table(data, cls, "")
    return walk.problems


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The rest of a sentence about an unknown word: the known one it resembles, else all of them.

    >>> did_you_mean("prot", ["host", "port"]), did_you_mean("zzz", ["host", "port"])
    ('did you mean `port`?', 'known: `host`, `port`')
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    return "known: " + ", ".join(f"`{name}`" for name in names) if names else "none is known here"


def mask_text(text: str) -> str:
    """Text without the passwords that URLs and command lines carry.

    >>> mask_text("rtsp://admin:pa@ss@10.0.0.7/live"), mask_text("rtspsrc user-pw=hunter2 latency=0")
    ('rtsp://admin:********@10.0.0.7/live', 'rtspsrc user-pw=******** latency=0')
    """
    return _ASSIGNED_SECRET.sub(rf"\1{MASK}", _URL_PASSWORD.sub(rf"\1:{MASK}@", text))


def mask(value: Any, key: str = "") -> Any:
    """Plain data with every secret masked and what is not set (None) left out.

    >>> mask({"username": "line1", "password": "hunter2", "ca_file": None})
    {'username': 'line1', 'password': '********'}
    """
    if isinstance(value, Mapping):
        return {k: mask(v, k) for k, v in value.items() if v is not None}
    if _SECRET_KEY.search(key):
        return MASK
    if isinstance(value, list | tuple):
        return [mask(item) for item in value]
    return mask_text(value) if isinstance(value, str) else value


def to_toml(struct: msgspec.Struct, masked: bool = False) -> str:
    """A struct as TOML text; what is not set is left out."""
    data = msgspec.to_builtins(struct)
    return tomli_w.dumps(mask(data) if masked else _without_none(data))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(item) for item in value] if isinstance(value, list | tuple) else value


class _Walk:
    """One walk over data and its struct types, side by side, collecting problems."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._bad: set[str] = set()  # paths with a problem of their own, not of something below them
        self.problems: list[str] = []

    def table(self, value: Any, cls: type[msgspec.Struct], path: str) -> None:
        """A table against a struct: unknown and missing keys, each field, then the rules over several keys."""
        if not isinstance(value, Mapping):
            return self._refuse(path, f"{_show(path, value)}: must be a table, written [{path}]")
        tag_field = cls.__struct_config__.tag_field
        fields = {field.encode_name: field for field in msgspec.structs.fields(cls)}
        known = {*fields, tag_field} if tag_field else set(fields)
        for key in value:
            if key not in known:
                self._refuse(_join(path, key), f"{_join(path, key)}: unknown key; {did_you_mean(key, known)}")
        for name, field in fields.items():
            if name in value:
                self._value(value[name], field.type, _join(path, name))
            elif field.required:
                what = allowed(inspect.type_info(field.type))
                self._refuse(_join(path, name), f"{_join(path, name)}: missing; it must be given: {what}")
        self._apply_rules(value, cls, path)
        return None

    def _apply_rules(self, value: Mapping[str, Any], cls: type[msgspec.Struct], path: str) -> None:
        defaults = {field.encode_name: _default(field) for field in msgspec.structs.fields(cls)}
        for rule in self._rules.get(cls, ()):
            if not any(_join(path, key) in self._bad for key in rule.keys):
                problem = rule.problem(*(value.get(key, defaults[key]) for key in rule.keys))
                if problem:
                    self.problems.append(f"{path}: {problem}" if path else problem)

    def _value(self, value: Any, type_: Any, path: str) -> None:
        info = inspect.type_info(type_)
        if value is not None and (optional := _optional_struct(info)) is not None:
            self.table(value, optional.cls, path)
        elif isinstance(info, inspect.StructType):
            self.table(value, info.cls, path)
        elif _cases(info):
            self._tagged(value, _cases(info), path)
        elif isinstance(info, inspect.ListType) and isinstance(value, list) and value and _has_tables(info):
            for number, item in enumerate(value, 1):
                self._value(item, _argument(type_, 0), f"{path}[{_label(item, number)}]")
        elif isinstance(info, inspect.ListType) and isinstance(value, Mapping) and _has_tables(info):
            self._refuse(path, f"{path}: must be written [[{path}]], with double brackets, once for each")
        elif isinstance(info, inspect.DictType) and isinstance(value, Mapping):
            for key, item in value.items():
                if not _converts(key, _argument(type_, 0)):
                    what = allowed(inspect.type_info(_argument(type_, 0)))
                    self._refuse(_join(path, key), f"{path}: the key {_text(key)} must be {what}")
                self._value(item, _argument(type_, 1), _join(path, key))
        else:
            self._leaf(value, type_, path)

    def _tagged(self, value: Any, cases: dict[str, inspect.StructType], path: str) -> None:
        """A table whose kind one of its keys names."""
        key = str(next(iter(cases.values())).tag_field)
        if not isinstance(value, Mapping):
            return self._refuse(path, f"{_show(path, value)}: must be a table")
        kind = value.get(key)
        case = cases.get(kind) if isinstance(kind, str) else None
        if case is not None:
            return self.table(value, case.cls, path)
        one_of = ", ".join(f'"{name}"' for name in sorted(cases))
        where = _join(path, key)
        self._refuse(where, f"{_show(where, kind) if key in value else f'{where}: missing'}: must be one of {one_of}")
        for name, type_ in _common_fields(cases).items():
            if name in value:
                self._value(value[name], type_, _join(path, name))
        return None

    def _leaf(self, value: Any, type_: Any, path: str) -> None:
        if not _converts(value, type_):
            self._refuse(path, f"{_show(path, value)}: must be {allowed(inspect.type_info(type_))}")
        elif not _finite(value):
            self._refuse(path, f"{_show(path, value)}: must be a finite number")

    def _refuse(self, path: str, problem: str) -> None:
        self._bad.add(path)
        self.problems.append(problem)


def allowed(info: inspect.Type) -> str:
    """What a value of a type may be, in words.

    >>> allowed(inspect.type_info(Annotated[float, msgspec.Meta(gt=0)]))
    'a number above 0'
    """
    if isinstance(info, inspect.Metadata):
        description = (info.extra_json_schema or {}).get("description")
        return str(description) if description else allowed(info.type)
    if isinstance(info, inspect.IntType | inspect.FloatType):
        return ("a whole number" if isinstance(info, inspect.IntType) else "a number") + _range(info)
    if isinstance(info, inspect.LiteralType):
        return "one of " + ", ".join(f'"{v}"' for v in info.values)
    if isinstance(info, inspect.UnionType):
        return " or ".join(allowed(t) for t in info.types if not isinstance(t, inspect.NoneType))
    if isinstance(info, inspect.ListType):
        least = f" of at least {info.min_length}" if info.min_length else ""
        return f"a list{least}, each {allowed(info.item_type)}"
    if isinstance(info, inspect.TupleType):
        return f"a list of {len(info.item_types)} values, each {allowed(info.item_types[0])}"
    return _PLAIN.get(type(info), "of another type")


_PLAIN: Final[Mapping[type[inspect.Type], str]] = {
    inspect.BoolType: "true or false",
    inspect.StrType: "text",
    inspect.DictType: "a table",
    inspect.StructType: "a table",
}


def _range(info: inspect.IntType | inspect.FloatType) -> str:
    if info.ge is not None and info.le is not None:
        return f" from {info.ge:g} to {info.le:g}" if info.le < 1e6 else f" from {info.ge:g} to {info.le}"
    if info.gt is not None and info.lt is not None:
        return f" between {info.gt:g} and {info.lt:g}, without these two"
    low = f"above {info.gt:g}" if info.gt is not None else f"at least {info.ge:g}" if info.ge is not None else ""
    high = f"below {info.lt:g}" if info.lt is not None else f"at most {info.le:g}" if info.le is not None else ""
    return (" " + " and ".join(part for part in (low, high) if part)).rstrip()


def _optional_struct(info: inspect.Type) -> inspect.StructType | None:
    """The struct of a field that may also be None; None for every other type."""
    types = info.types if isinstance(info, inspect.UnionType) else ()
    present = [t for t in types if not isinstance(t, inspect.NoneType)]
    only = present[0] if len(present) == 1 and len(types) == 2 else None
    return only if isinstance(only, inspect.StructType) else None


def _cases(info: inspect.Type) -> dict[str, inspect.StructType]:
    """The structs of a tagged union by tag; empty for every other type."""
    types = info.types if isinstance(info, inspect.UnionType) else ()
    return {str(t.tag): t for t in types if isinstance(t, inspect.StructType) and t.tag is not None}


def _common_fields(cases: dict[str, inspect.StructType]) -> dict[str, Any]:
    """Names and types of the fields that every case has alike."""
    each = [{f.encode_name: f.type for f in msgspec.structs.fields(case.cls)} for case in cases.values()]
    return {name: type_ for name, type_ in each[0].items() if all(other.get(name) == type_ for other in each)}


def _has_tables(info: inspect.ListType) -> bool:
    return isinstance(info.item_type, inspect.StructType) or bool(_cases(info.item_type))


def _converts(value: Any, type_: Any) -> bool:
    try:
        msgspec.convert(value, type_)
    except msgspec.ValidationError:
        return False
    return True


def _argument(type_: Any, index: int) -> Any:
    """The type of a list's items (0), or of a dict's keys (0) or values (1)."""
    plain = get_args(type_)[0] if get_origin(type_) is Annotated else type_
    return get_args(plain)[index]


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default is not msgspec.NODEFAULT:
        return field.default
    return field.default_factory() if field.default_factory is not msgspec.NODEFAULT else None


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _label(item: Any, number: int) -> str:
    """What to call a list's item: its id if it has one, else its place, counted from 1."""
    name = item.get("id") if isinstance(item, Mapping) else None
    return f'"{name}"' if isinstance(name, str) else str(number)


def _show(path: str, value: Any) -> str:
    """`path = value` as the file has it, shortened, without secrets."""
    return f"{path} = {_text(mask(value, path.rpartition('.')[2]))}"


def _text(value: Any) -> str:
    # JSON looks as TOML does for what people write by hand, but it has no inf and nan.
    text = repr(value) if isinstance(value, float) else msgspec.json.encode(value, enc_hook=str).decode()
    return text if len(text) <= 60 else text[:57] + "..."


def _finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)
