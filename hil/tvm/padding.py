"""An input with its pads around it, copied into a buffer of the kernel."""

from tvm.script.ir_builder import tirx as T

from hil.tvm.shapes import Convolution, round_up
from hil.tvm.vectors import Buffer, Expression, load, scratch, store


def padded_input(
    given: Buffer, shape: Convolution, content: str, pad: Expression, overrun: int
) -> Buffer:
    """Copy an input into a new buffer with `pad` all around, and return that.

    Args:
        given: the input.
        shape: of the convolution.
        content: type of the input.
        pad: what pads hold.
        overrun: elements behind the end that may be read, whatever they hold.
    """
    height, width = shape.padded
    top, left, bottom, right = shape.pads
    step = shape.in_step
    room = scratch(round_up(height * width * step + overrun, 64), content)
    row, count = width * step, shape.width * step

    def fill(start: Expression, elements: int) -> None:
        lanes = _lanes(elements)
        if elements:
            with T.serial(elements // lanes) as i:
                store(room, start + i * lanes, T.broadcast(pad, lanes), lanes)

    fill(0, top * row)
    with T.serial(shape.height) as line:
        start = (line + top) * row
        fill(start, left * step)
        lanes = _lanes(count)
        with T.serial(count // lanes) as i:
            part = load(given, line * count + i * lanes, content, lanes)
            store(room, start + left * step + i * lanes, part, lanes)
        fill(start + left * step + count, right * step)
    fill((top + shape.height) * row, bottom * row)
    return room


def _lanes(count: int) -> int:
    """The widest vector that divides `count`."""
    return next((lanes for lanes in (64, 32, 16, 8, 4) if count % lanes == 0), 1)
