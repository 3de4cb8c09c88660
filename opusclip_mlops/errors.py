"""What can go wrong, as a tree.

OpusclipError
├── ConfigError       a setting is unknown, malformed or out of range
├── RecordError       a key, step or value that MLflow would refuse
├── VideoError        a clip that cannot be read, or cannot be encoded
├── DataError         a dataset that holds nothing to train on
├── CheckpointError   a checkpoint that is not whole, or not of this model
├── DeliveryError     something logged has not arrived (yet)
└── RegistryError     a model that cannot be registered
"""


class OpusclipError(Exception):
    """Any error this package raises on purpose."""


class ConfigError(OpusclipError, ValueError):
    """A setting is unknown, malformed or out of range."""


class RecordError(OpusclipError, ValueError):
    """A key, step or value that the record cannot hold."""


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
