"""What this project adds to the metadata of a TUF repository: the same words for who publishes and for who believes."""

from __future__ import annotations

from typing import Final

PRODUCT_ROLE: Final = "product-"  # and a product: the role that signs `<product>/*`

# Fields of ours in the signed metadata.
DEVELOPMENT: Final = "x-edge-development"  # true in a root that was made for development
SIGNED_AT: Final = "x-edge-signed"  # when a timestamp was signed, whole seconds since 1970
REVOKED: Final = "x-edge-revoked"  # keys that were taken back: a list of {keyid, role, on, reason, key}
