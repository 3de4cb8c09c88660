"""What can go wrong, as a tree.

OpusclipError
├── ConfigError       a setting is unknown, malformed or out of range
├── RecordError       a key, step or value that MLflow would refuse
│   └── RecordTypeError   one of another type: a TypeError too
├── VideoError        a clip that cannot be read, or cannot be encoded
├── DataError         a dataset that holds nothing to train on
├── CheckpointError   a checkpoint that is not whole, or not of this model
├── DeliveryError     something logged has not arrived (yet)
├── RegistryError     a model that cannot be registered
├── WeightsError      a network's weights that are not there, or not those meant
├── LaunchError       a scheduler that refused, or does not answer
├── PassportError     values that were not measured alike, and cannot be compared
└── PanelError        a panel, or its samples, that do not fit each other
"""


class OpusclipError(Exception):
    """Any error this package raises on purpose."""


class ConfigError(OpusclipError, ValueError):
    """A setting is unknown, malformed or out of range."""


class RecordError(OpusclipError, ValueError):
    """A key, step or value that the record cannot hold."""


class RecordTypeError(RecordError, TypeError):
    """A key, step or value of a type that the record cannot hold; a `TypeError` too."""


class VideoError(OpusclipError, ValueError):
    """A clip that cannot be read, understood or encoded."""


class DataError(OpusclipError, ValueError):
    """A dataset that holds nothing to train on."""


class CheckpointError(OpusclipError):
    """A checkpoint that is not whole, or does not fit the model."""


class DeliveryError(OpusclipError):
    """Something that was logged has not arrived within the time given."""


class RegistryError(OpusclipError):
    """A model that cannot be registered."""


class WeightsError(OpusclipError):
    """A network's weights that are not there, or not those that were meant."""


class LaunchError(OpusclipError):
    """A job that cannot be launched, asked about or cancelled."""


class PassportError(OpusclipError, ValueError):
    """Values that were not measured alike, and so cannot be compared."""


class PanelError(OpusclipError, ValueError):
    """A panel that is malformed, or samples and runs that do not fit it."""
