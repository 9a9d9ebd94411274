"""The order of taipan-bench's random requests, so that it is known how many blocks they touch."""

MASK = (1 << 64) - 1


class SplitMix64:
    """The generator of bench/src/random.rs."""

    def __init__(self, *parts):
        self.state = 0
        for part in parts:
            self.state ^= part
            self.state = self.bits()

    def bits(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, bound):
        return (self.bits() * bound) >> 64


def distinct_blocks(seed, area_bytes, requests, block_bytes=4096):
    """How many different blocks the first requests of job 0 of `--rw randread` name."""
    random = SplitMix64(seed, 0)
    blocks = (area_bytes - block_bytes) // block_bytes + 1
    return len({random.below(blocks) for _ in range(requests)})
