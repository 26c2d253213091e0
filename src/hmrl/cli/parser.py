"""Reading the command line and its files: what is wrong there is said in one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser

from hmrl.cli.messages import mistake_behind
from hmrl.cli.shipped import config_file
from hmrl.system.errors import UserError
from hmrl.system.paths import local_path

INVOCATION = ("ckpt_path", "overwrite")  # of one command, and no configuration
_LAST_SEED = 2**32 - 1  # NumPy's


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
                raise UserError(f"--config {path}: {section} is {_plain(value)}, but it must be a mapping")
        return config

    def validate(self, namespace: Namespace, skip_unset: bool = True, *args: Any, **kwargs: Any) -> None:
        """No key may be ``null`` that was not made for it, either."""
        super().validate(namespace, False, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """What a configuration class has said, or else jsonargparse's words, in one line."""
        if not self.exit_on_error:  # a nested parser: another type may fit
            super().error(message, ex)
        raise mistake_behind(ex) or UserError(" ".join(message.split())) from ex


class _Seed:
    def __call__(self, value: Any) -> int:
        if not str(value).isdecimal() or int(value) > _LAST_SEED:
            raise UserError(f"seed_everything is {_plain(value)}, but it must be {self}")
        return int(value)

    def __repr__(self) -> str:  # in the help, too
        return f"a whole number from 0 to {_LAST_SEED}"


class _Directory:
    def __call__(self, value: Any) -> str:
        return str(local_path(value, "run_dir"))

    def __repr__(self) -> str:
        return "a path"


def _plain(value: Any) -> Any:
    return "null" if value is None else value
