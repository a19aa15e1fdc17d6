"""The simulated bitstream: a Xilinx `.bit` container whose payload names a design instead of configuring one."""

import struct
from pathlib import Path

from wattbit.errors import WattbitError

SYNC_WORD = bytes.fromhex("aa995566")
MAGIC = b"wattbit simulated design "
DIGEST_DIGITS = 16


def encode(digest: str, part: str) -> bytes:
    """A `.bit` file: header fields a (design), b (part), c (date), d (time), then e, the length of the payload.

    The date is fixed, so that the same design gives the same file.
    """
    payload = b"\xff" * 32 + SYNC_WORD + MAGIC + digest.encode()
    payload += b"\xff" * (-len(payload) % 4)
    header = struct.pack(">H", 9) + bytes.fromhex("0ff00ff00ff00ff000") + struct.pack(">H", 1)
    fields = {"a": "wattbit;UserID=0XFFFFFFFF;Version=virtual", "b": part, "c": "2000/01/01", "d": "00:00:00"}
    for key, text in fields.items():
        value = text.encode() + b"\0"
        header += key.encode() + struct.pack(">H", len(value)) + value
    return header + b"e" + struct.pack(">I", len(payload)) + payload


def read_digest(path: Path) -> str:
    """The design that a simulated bitstream names; WattbitError when it is a real or a broken one."""
    _, found, tail = path.read_bytes().partition(SYNC_WORD + MAGIC)
    digest = tail[:DIGEST_DIGITS].decode("ascii", "replace")
    if not found or len(digest) < DIGEST_DIGITS:
        raise WattbitError(f"{path.name} is not a simulated bitstream; a virtual board loads no other")
    return digest
