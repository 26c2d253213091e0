"""The Lightning shell: module, data module, trainer, callbacks, checkpoints."""
