"""The errors a user can cause or meet.

Every error carries one sentence that says what is wrong and, where possible, what to do about it.
The command line prints that sentence and exits with `exit_code`; a traceback means a bug.
"""


class PowerServeError(Exception):
    """Base of every expected error; its text is shown to the user as it is."""

    exit_code = 2


class UsageError(PowerServeError):
    """A flag, parameter or argument has a value that cannot be used."""


class ConfigError(PowerServeError):
    """A configuration file (workspace.json, hparams.json, model.json) is missing or wrong."""


class ModelNotFoundError(PowerServeError):
    """No model answers to the given name or path."""


class ModelFileError(PowerServeError):
    """A model file is unreadable, truncated, foreign or inconsistent."""


class UnsupportedModelError(PowerServeError):
    """The file is sound, but its architecture, tensor type or tokenizer is not supported."""


class TokenizerError(PowerServeError):
    """The vocabulary or merges in a model file cannot be used."""


class TemplateError(PowerServeError):
    """A chat template is broken, forbidden or refuses the conversation."""


class DownloadError(PowerServeError):
    """A model could not be fetched."""


class StoreError(PowerServeError):
    """The model store cannot be read or written."""


class PrefixFileError(PowerServeError):
    """Saved prefixes cannot be written, or not be used."""


class DeviceError(PowerServeError):
    """A phone is missing, unwilling, full, or was cut off."""


class BundleError(PowerServeError):
    """A bundle for another device cannot be built, or would not run there."""


class BackendError(PowerServeError):
    """A backend or its library is missing, incompatible or failed."""


class MemoryLimitError(PowerServeError):
    """Weights, KV cache and buffers would not fit into memory."""


class ContextLengthError(PowerServeError):
    """A prompt is longer than the context it has to fit into."""
