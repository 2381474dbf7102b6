"""A chain of hashes: each link seals its own bytes and everything before it."""

from __future__ import annotations

import hashlib

GENESIS_SHA256 = "0" * 64
"""What stands before the first link."""


def chain_sha256(previous_sha256: str, canonical: bytes) -> str:
    """Link over `canonical`: SHA-256(previous hash as 32 bytes ‖ canonical bytes), lower-case hex."""
    return hashlib.sha256(bytes.fromhex(previous_sha256) + canonical).hexdigest()
