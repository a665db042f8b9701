"""The ChArUco board of `visuomotor.calibrate`: what it is, and its picture to print."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np

from visuomotor.errors import UserError

MAX_SQUARE = 1.0  # m
INCH = 0.0254  # m
EDGE = 0.25  # squares of white around a printed board, and as much again below what is written
LINE = 0.15  # squares, at most: the height of what is written
MIN_CELL = 4  # pixels of a marker's cell that is printed
MAX_PIXELS = 150_000_000  # of a printed board: 8 x 6 squares of 30 mm at 1200 dpi have 108
PNG_HEAD = 33  # bytes: the signature (8) and the chunk IHDR (25)


@dataclass(frozen=True)
class BoardConfig:
    columns: int = 8  # squares
    rows: int = 6
    square: float = 0.03  # m
    marker: float = 0.022  # m
    dictionary: str = "DICT_4X4_50"

    def validate(self) -> None:
        if self.columns < 3 or self.rows < 3:
            raise UserError("board: expected at least 3 x 3 squares")
        if not 0.0 < self.marker < self.square:
            raise UserError("board.marker: expected more than 0 and less than board.square")
        if self.square > MAX_SQUARE:
            raise UserError(f"board.square={self.square}: expected up to {MAX_SQUARE:g} m")
        if not self.dictionary.startswith("DICT_") or not hasattr(cv2.aruco, self.dictionary):
            raise UserError(f"board.dictionary={self.dictionary}: expected one like DICT_4X4_50")
        markers, known = self.columns * self.rows // 2, len(dictionary_of(self).bytesList)
        if markers > known:
            raise UserError(
                f"board: {self.columns} x {self.rows} squares need {markers} markers, "
                f"{self.dictionary} has {known}"
            )


def dictionary_of(config: BoardConfig) -> cv2.aruco.Dictionary:
    return cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, config.dictionary))


def make_board(config: BoardConfig) -> cv2.aruco.CharucoBoard:
    return cv2.aruco.CharucoBoard(
        (config.columns, config.rows), config.square, config.marker, dictionary_of(config)
    )


def board_png(config: BoardConfig, dpi: int) -> bytes:
    """A file that is printed at its own size; squares have a whole number of pixels, so that its
    resolution is `dpi` nearly. Raises UserError if it is too large, or its markers too small."""
    side = round(config.square / INCH * dpi)
    cells = dictionary_of(config).markerSize + 2
    if side * config.marker / config.square < MIN_CELL * cells:
        raise UserError(
            f"board.marker={config.marker}: too small for board_dpi={dpi}; take more of either"
        )
    if config.columns * config.rows * side**2 > MAX_PIXELS:
        raise UserError(
            f"board: {config.columns} x {config.rows} squares of {config.square} m are too large "
            f"for board_dpi={dpi}; take fewer dpi"
        )
    encoded = cv2.imencode(".png", board_picture(config, side))[1].tobytes()
    # The chunk pHYs (https://www.w3.org/TR/png-3/#11pHYs): pixels a metre, across and down.
    per_metre = round(side / config.square)
    body = b"pHYs" + struct.pack(">IIB", per_metre, per_metre, 1)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return encoded[:PNG_HEAD] + chunk + encoded[PNG_HEAD:]


def board_picture(config: BoardConfig, side: int) -> np.ndarray:
    """(h, w) uint8, with what the board is below it. side: pixels of a square."""
    width, height = config.columns * side, config.rows * side
    board = make_board(config).generateImage((width, height), marginSize=0)
    text = (
        f"{config.columns} x {config.rows} squares of {1000 * config.square:g} mm, markers of "
        f"{1000 * config.marker:g} mm, {config.dictionary}. Print at 100 %, then measure."
    )
    font = cv2.FONT_HERSHEY_SIMPLEX
    (wide, high), _ = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(width / wide, LINE * side / high)
    edge, line = round(EDGE * side), round(scale * high)
    picture = np.full((height + 3 * edge + line, width + 2 * edge), 255, np.uint8)
    picture[edge : edge + height, edge : edge + width] = board
    below = (edge, height + 2 * edge + line)
    cv2.putText(picture, text, below, font, scale, 0, max(1, round(scale)), cv2.LINE_AA)
    return picture
