"""How large blocks are: powers of two, as Triton wants them."""


def power_of_two(least: int, most: int) -> int:
    """The smallest that is at least `least`, or else `most`."""
    power = 1
    while power < least and power < most:
        power *= 2
    return power


def block_of_channels(channels: int, most: int) -> int:
    """Of channels that lie side by side: as many as divide all of them, if these are no few. Then
    none has to be masked, and loads and stores can be wide."""
    block = most
    while block > 1 and channels % block != 0:
        block //= 2
    return block if block >= 8 else power_of_two(channels, most)
