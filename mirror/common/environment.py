"""The names of the environment variables that the mirror reads, apart so that help and version load no more."""

from typing import Final

FILE_VARIABLE: Final = "PPS_MIRROR_CONFIG"
TOKEN_VARIABLE: Final = "DATAROBOT_API_TOKEN"  # noqa: S105 - the name of a variable
PREFIX: Final = "PPS_MIRROR__"
"""What the variables of keys begin with. One underscore is not ours: Kubernetes sets PPS_MIRROR_PORT and the like."""
