"""Why a request to the registry gets nothing, each with the code that the distribution specification gives it."""

from mirror.model.errors import MirrorError


class RegistryError(MirrorError):
    """A request to the registry that gets nothing; `code` says why to a program."""

    code = "UNKNOWN"


class NameUnknown(RegistryError):
    """There is no repository of that name."""

    status, code = 404, "NAME_UNKNOWN"


class ManifestUnknown(RegistryError):
    """No image here has that tag or digest, or it cannot be served as a registry's image."""

    status, code = 404, "MANIFEST_UNKNOWN"


class BlobUnknown(RegistryError):
    """No image here has that config or layer."""

    status, code = 404, "BLOB_UNKNOWN"


class Unsupported(RegistryError):
    """The registry is read-only."""

    status, code = 405, "UNSUPPORTED"


class NotYet(RegistryError):
    """The image is on its way. It is 429: of a 503, clients neither show the message nor wait as `Retry-After` says."""

    status, code = 429, "TOOMANYREQUESTS"
