"""A terminal for tests: a pty of a given size, and the screen that a person would see."""

import fcntl
import os
import pty
import re
import struct
import termios
import threading
import time
from collections.abc import Iterator
from typing import TextIO

_PIECES = re.compile("\x1b\\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Screen:
    """Rows of text, a cursor, and the few control sequences that programs here use; others are an error."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[str] = [""]
        self.breaks: list[bool] = [False]  # whether a row goes on in the next one
        self.row = self.column = 0

    def feed(self, text: str) -> None:
        for piece in _PIECES.finditer(text):
            argument, command, control, plain = piece.groups()
            if control == "\r":
                self.column = 0
            elif control == "\n":
                self._move_down(False)
            elif plain is not None:
                for char in plain:
                    self._put(char)
            elif command == "J" and not argument:
                self._cut()
                del self.rows[self.row + 1 :], self.breaks[self.row + 1 :]
            elif command == "K" and argument == "2":
                self.rows[self.row], self.breaks[self.row] = "", False
            elif command == "A":
                self.row = max(self.row - int(argument or 1), 0)
            else:
                assert command == "m" or argument == "?25", piece[
                    0
                ]  # colours, and whether the cursor is seen

    @property
    def lines(self) -> list[str]:
        """Rows without spaces at their end, and without empty ones at the end."""
        rows = [row.rstrip() for row in self.rows]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    @property
    def wrapped(self) -> list[str]:
        """Rows that go on in the next one."""
        return [row for row, goes_on in zip(self.rows, self.breaks, strict=True) if goes_on]

    def _cut(self) -> None:
        self.rows[self.row] = self.rows[self.row][: self.column]
        self.breaks[self.row] = False

    def _move_down(self, goes_on: bool) -> None:
        self.breaks[self.row] = goes_on
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")
            self.breaks.append(False)

    def _put(self, char: str) -> None:
        if self.column == self.columns:
            self._move_down(True)
            self.column = 0
        text = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = text[: self.column] + char + text[self.column + 1 :]
        self.column += 1


class Terminal:
    """A pty; `stream` is where a program writes.

    Attributes:
        stream: its own end, a text stream that is a terminal.
        shown: all that was written, as it came.
    """

    def __init__(self, columns: int = 80, rows: int = 24, encoding: str = "utf-8") -> None:
        self.columns, self.shown = columns, ""
        self._master, slave = pty.openpty()
        self.stream: TextIO = open(slave, "w", encoding=encoding, errors="replace")  # noqa: SIM115
        self.resize(columns, rows)
        self._reader = threading.Thread(target=self._read, daemon=True)  # or its buffer would fill
        self._reader.start()

    def resize(self, columns: int, rows: int = 24) -> None:
        fcntl.ioctl(self.stream.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> Screen:
        """Return what is on the screen in the end."""
        self.stream.close()
        self._reader.join(10)
        os.close(self._master)
        screen = Screen(self.columns)
        screen.feed(self.shown)
        return screen

    def look(self) -> Screen:
        """Return what is on the screen now."""
        mark = "\x1b[0m\x1b[0m"  # unlike anything that is drawn
        seen = self.shown.count(mark)
        self.stream.write(mark)
        self.stream.flush()
        while self.shown.count(mark) == seen:
            time.sleep(0.001)
        screen = Screen(self.columns)
        screen.feed(self.shown)
        return screen

    def frames(self) -> Iterator[list[str]]:
        """Yield the lines of each drawing, after which the cursor goes back to its first row; call it after `close`."""
        for piece in re.split("\r\x1b\\[2K(?:\x1b\\[1A\x1b\\[2K)*", self.shown):
            screen = Screen(10**6)
            screen.feed(piece)
            yield screen.lines

    def _read(self) -> None:
        content = b""
        try:
            while data := os.read(self._master, 65536):
                content += data
                self.shown = content.decode("utf-8", "replace")
        except OSError:  # Linux says so when the other end is closed
            pass
