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

INVOCATION = ("ckpt_path", "overwrite")  # of one command, and no configuration


def seed(value: Any) -> int:
    """What NumPy takes for one; Lightning would take ``true``, too."""
    if not str(value).isdecimal() or int(value) >= 2**32:
        raise UserError(f"seed_everything is {value}, but it must be a whole number from 0 to {2**32 - 1}")
    return int(value)


class Parser(LightningArgumentParser):
    """One sentence for a mistake, instead of a page of usage."""

    def parse_args(self, args: Sequence[str] | None = None, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Configurations may be named as the package's own are; without any, it is ``ml10``."""
        words = list(sys.argv[1:] if args is None else args)
        for i, word in enumerate(words):
            if word.startswith("--config="):
                words[i] = f"--config={config_file(word.removeprefix('--config='))}"
            elif i and words[i - 1] in ("--config", "-c"):
                words[i] = config_file(word)
        given = any(word.split("=")[0] in ("--config", "-c") for word in words)
        if words and not words[0].startswith("-") and not given:
            words[1:1] = ["--config", config_file("ml10")]
        config: Namespace = super().parse_args(words, **kwargs)
        return config

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """The seed is checked."""
        if "--seed_everything" in args:
            kwargs |= {"type": seed, "help": "One seed for networks, goals, acting and learning."}
        return super().add_argument(*args, **kwargs)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Name the file that is wrong."""
        try:
            config: Namespace = super().parse_path(path, *args, **kwargs)
        except (UserError, UnicodeDecodeError) as error:
            raise UserError(f"--config {path}: {error}") from error
        for key in INVOCATION:
            if config.get(key):
                raise UserError(
                    f"--config {path}: {key} is {config[key]}, but it belongs to one command and not into a "
                    f"configuration: delete it there, and give --{key} where it is meant"
                )
        for section in self.groups or ():  # these have no type of their own
            if not isinstance(value := config.get(section, {}), dict | Namespace | str):
                raise UserError(f"--config {path}: {section} is {value}, but it must be a mapping")
        return config

    def validate(self, namespace: Namespace, skip_unset: bool = True, *args: Any, **kwargs: Any) -> None:
        """No key may be ``null`` that was not made for it, either."""
        super().validate(namespace, False, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """What a configuration class has said, or else jsonargparse's words."""
        if not self.exit_on_error:  # a nested parser: another type may fit
            super().error(message, ex)
        raise mistake_behind(ex) or UserError(message) from ex
