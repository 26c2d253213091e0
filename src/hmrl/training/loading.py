"""An agent and the world that it was trained in, from what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hmrl.system.errors import UserError
from hmrl.system.rules import as_config
from hmrl.training.compatibility import check_deviations, check_settings
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting


def agent_of(checkpoint: dict[str, Any]) -> HierarchicalMetaRL:
    """The module with its weights and average beliefs.

    Args:
        checkpoint: as :func:`hmrl.training.checkpoint.load` returns it, whole or weights-only.

    Raises:
        UserError: if another version of this package wrote it, whose agent would be another one here.
    """
    settings = checkpoint["hyper_parameters"]
    check_settings(settings)
    check_deviations(checkpoint, [as_config(Acting, settings["acting"])], training=False)
    module = HierarchicalMetaRL(**settings)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return module


def data_of(checkpoint: Mapping[str, Any], **settings: Any) -> MetaWorldDataModule:
    """The data module that the agent was trained with, but for ``settings`` of the data module.

    Raises:
        UserError: if the checkpoint does not say, or has settings that this version does not have.
    """
    if "datamodule_hyper_parameters" not in checkpoint:
        raise UserError("the checkpoint does not say in which world its agent was trained")
    try:
        return MetaWorldDataModule(**checkpoint["datamodule_hyper_parameters"] | settings)
    except TypeError as error:  # an argument of another name
        raise UserError(f"the checkpoint's world is of another version of hmrl: {error}") from error
