"""Makes whole, clean, bounded lines of the pieces of a file.

Called by readers. Pure. What a program prints may be anything: what leaves here is valid UTF-8 without NULs, one line
end for each that went in, and no line much longer than BLOCK_BYTES.
"""

from __future__ import annotations

BLOCK_BYTES = 1 << 16
"""What a reader takes from its file at once, and the longest line that it passes on whole."""


class Lines:
    """The lines of one reader; holds at most BLOCK_BYTES of a line that has not ended yet."""

    def __init__(self) -> None:
        self._begun = bytearray()
        self._length = 0
        self._lost = False

    def take(self, piece: bytes) -> bytes:
        """The lines that `piece`, of at most BLOCK_BYTES, completes."""
        first, newline, others = piece.partition(b"\n")
        self._add(first)
        if not newline:
            return b""
        last = others.rfind(b"\n") + 1
        block = clean(self._completed(b"\n") + others[:last])
        self._add(others[last:])
        return block

    def jump(self, *, torn: bool) -> None:
        """What follows is not what came next: drop the line that was begun; with `torn` also what ends at the next."""
        self._begun.clear()
        self._length = 0
        self._lost = torn

    def rest(self, *, end: bytes) -> bytes:
        """The line that has not ended yet, with `end` at its end."""
        return clean(self._completed(end)) if self._length else b""

    def _add(self, part: bytes) -> None:
        self._length += len(part)
        self._begun += part[: BLOCK_BYTES - len(self._begun)]

    def _completed(self, end: bytes) -> bytes:
        line = b""
        if not self._lost:
            if self._length > len(self._begun):
                _end_with_a_character(self._begun)
                end = f" [cut: {self._length - len(self._begun)} more bytes]".encode() + end
            line = bytes(self._begun) + end
        self._begun.clear()
        self._length = 0
        self._lost = False
        return line


def clean(block: bytes) -> bytes:
    """`block` without NULs, as valid UTF-8."""
    if block.isascii():
        return block.replace(b"\0", b"")
    return block.replace(b"\0", b"").decode("utf-8", "replace").encode()


def _end_with_a_character(text: bytearray) -> None:
    """Take the beginning of a character off the end of `text`, if it was cut within one."""
    for length in range(1, min(4, len(text)) + 1):
        byte = text[-length]
        if byte & 0xC0 == 0x80:
            continue  # in the middle of a character: its first byte tells how long it is
        whole = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        if whole > length:
            del text[-length:]
        return
