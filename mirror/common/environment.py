"""The names of the environment variables that the mirror reads, in a module of their own so that help loads quickly."""

from typing import Final

FILE_VARIABLE: Final = "PPS_MIRROR_CONFIG"
TOKEN_VARIABLE: Final = "DATAROBOT_API_TOKEN"  # noqa: S105 - the name of a variable
PREFIX: Final = "PPS_MIRROR__"
"""Variables of keys begin with this. Those with one underscore are not ours: Kubernetes sets PPS_MIRROR_PORT, say."""
