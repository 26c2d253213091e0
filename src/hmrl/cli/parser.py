"""Reading the command line and its files: what is wrong there is said in one plain sentence."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser

from hmrl.cli.messages import mistake_behind
from hmrl.cli.shipped import config_file
from hmrl.system.errors import UserError
from hmrl.system.paths import local_path
from hmrl.types import Acting

INVOCATION = ("ckpt_path", "overwrite")  # of one command, and no configuration
_LAST_SEED = 2**32 - 1  # NumPy's
_MAPPING = "a mapping of keys to values"
# What jsonargparse expects, by its last word for it.
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "tuple": "a list",
    "Sequence": "a list",
    "dict": _MAPPING,
    "NoneType": "null",
}
# Its other messages, white space made single.
_SENTENCES = {
    "File does not exist: '(.*)'": "--config is {}, but there is no such file or name: use one that exists",
    "Problems parsing config: (.*)": "this is no YAML, but it must be: {}",
    "Unexpected config: (.+)": f"the file holds {{}}, but it must hold {_MAPPING}",
    "Unexpected config:": f"the file is empty, but it must hold {_MAPPING}",
    r"argument (\S+) --> (\S+): ": "{1} cannot be set: it follows from {0}",
    'Linked "(.+?)" must be given via "(.+?)"': "{} cannot be set: it follows from {}",
}


class Parser(LightningArgumentParser):
    """One sentence for a mistake, instead of a page of usage."""

    def parse_args(self, args: Sequence[str] | None = None, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Configurations may be named as the package's own are; without any, it is ``ml10``."""
        words = list(sys.argv[1:] if args is None else args)
        given = [
            i for i, word in enumerate(words) if word.startswith("--config=") or word in ("--config", "-c")
        ]
        if words and not words[0].startswith("-") and not given:
            words[1:1], given = ["--config", "ml10"], [1]
        for i in given:
            if words[i].startswith("--config="):
                words[i] = f"--config={config_file(words[i].removeprefix('--config='))}"
            elif i + 1 < len(words):
                words[i + 1] = config_file(words[i + 1])
        config: Namespace = super().parse_args(words, **kwargs)
        return config

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """A seed must be a number, where Lightning would take ``true``, too; a directory must be possible."""
        if "--seed_everything" in args:
            kwargs |= {"type": _Seed(), "help": "One seed for networks, goals, acting and learning."}
        if "--run_dir" in args:
            kwargs |= {"type": _Directory()}
        return super().add_argument(*args, **kwargs)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Name the file that is wrong."""
        try:
            config: Namespace = super().parse_path(path, *args, **kwargs)
        except UserError as error:
            raise UserError(f"--config {path}: {error}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"--config {path} is no text, but it must be YAML: {error}") from error
        if config.get("run_dir", "") is None:  # about which jsonargparse asks no type of ours
            raise UserError(f"--config {path}: run_dir is null, but it must be a path")
        for key in INVOCATION:
            if config.get(key):
                raise UserError(
                    f"--config {path}: {key} is {config[key]}, but it belongs to one command and not into a "
                    f"configuration: delete it there, and give --{key} where it is meant"
                )
        for section in self.groups or ():  # these have no type of their own
            if not isinstance(value := config.get(section, {}), dict | Namespace | str):
                raise UserError(f"--config {path}: {section} is {_plain(value)}, but it must be {_MAPPING}")
        return config

    def validate(self, namespace: Namespace, skip_unset: bool = True, *args: Any, **kwargs: Any) -> None:
        """No key may be ``null`` that was not made for it, either."""
        super().validate(namespace, False, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """What a configuration class has said, or else jsonargparse's words made plain."""
        if not self.exit_on_error:  # a nested parser: another type may fit
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise mistake_behind(ex) or UserError(_sentence(message, parser.get_defaults().keys())) from ex


class _Seed:
    def __call__(self, value: Any) -> int:
        if not re.fullmatch(r"\d+", str(value)) or int(value) > _LAST_SEED:
            raise UserError(f"seed_everything is {_plain(value)}, but it must be {self}")
        return int(value)

    def __repr__(self) -> str:  # in the help, too
        return f"a whole number from 0 to {_LAST_SEED}"


class _Directory:
    def __call__(self, value: Any) -> str:
        return str(local_path(value, "run_dir"))

    def __repr__(self) -> str:
        return "a path"


def _sentence(message: str, known: Iterable[str]) -> str:
    """With the key, the value and what would be right, in this order.

    Args:
        message: of jsonargparse.
        known: all keys there are.
    """
    words = " ".join(message.replace('in "<unicode string>"', "").split())
    if found := re.search(r"unrecognized arguments: (?:--)?([^\s=]+)|[oO]ption '(.+?)'", words):
        return _unknown(_key(words, found[1] or found[2]), known)
    if found := re.search(r"Unable to load config '(.*?)'", words):
        return f"{_key(words)} is {found[1]}, but it must be {_MAPPING}"
    for pattern, sentence in _SENTENCES.items():
        if found := re.search(pattern, words):
            return sentence.format(*found.groups())
    asked = r"(?:Expected an?|Not a valid subclass of) (.+?)(?:\. Got value: .*)?$"
    expected = [x for x in re.findall(asked, message, re.MULTILINE) if not x.startswith("path ")]
    values = re.search(r"(?:Got|Given) value: ?(.*)", message)
    if not expected or not values:
        return re.sub(r'Parser key "(.+?)"', r"\1", words)
    key = _key(words)
    if key not in _parts(words):
        expected = expected[:1]  # of the inner key; the others are the outer one's
    right = " or ".join(dict.fromkeys(_type(x) for x in expected))
    return f"{key} is {_plain(values[1])}, but it must be {right}"


def _unknown(key: str, known: Iterable[str]) -> str:
    names = [name.replace(".init_args.", ".") for name in known if not re.search(r"__|class_path$", name)]
    section = key.rpartition(".")[0]
    if section.startswith("data.modes."):
        names = [f"{section}.{field.name}" for field in fields(Acting)]
    close = get_close_matches(key, names)
    return f"there is no key {key}: " + (f"did you mean {' or '.join(close)}?" if close else "see --help")


def _parts(words: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r'Parser key "(.+?)"', words)))


def _key(words: str, *names: str) -> str:
    """The dotted key that a message is about, of which it has the parts from the outside in."""
    outer, *inner = _parts(words) + list(names)
    if found := re.search(r"NestedArg\(key='(.+?)'", words):
        return f"{outer}.{found[1]}"
    mode = re.findall(r"Given value: {.*?'([^']+)': (?:{|None)", words) if outer == "data.modes" else []
    return ".".join([outer, *mode, *inner])


def _plain(value: Any) -> str:
    text = re.sub(r"^NestedArg\(key=.*?, val=(.*)\)$", r"\1", str(value))
    return {"": "''", "None": "null"}.get(text, text)


def _type(expected: str) -> str:
    if found := re.fullmatch(r"typing\.Literal\[(.*)\]", expected):
        return f"one of {found[1]}".replace("'", "")
    if found := re.fullmatch(r"tuple with (\d+) elements", expected):
        return f"a list of {found[1]}"
    if found := re.fullmatch(r"<class '(?:\w+\.)*(\w+)'>", expected):
        return _TYPES.get(found[1], _MAPPING)
    return _TYPES.get(expected, _MAPPING)
