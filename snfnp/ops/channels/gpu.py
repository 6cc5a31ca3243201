"""Channel sums, shifts, scales and log-densities on the GPU (derivations/13-actnorm-and-1x1.md)."""

import math
from functools import cached_property

from snfnp.ops.channels.definition import Channels, pixels
from snfnp.ops.gpu import source

_MOST_BLOCKS = 1024  # of the kernels over rows of channels
_MOST_GROUPS = 128  # of blocks that share a tile's rows, and whose partial sums one of them adds up


class GpuChannels(Channels):
    """Arrays may be strided, all of a call have one dtype."""

    def sum(self, x, out=None):
        if out is None:
            out = self.device.empty(x.shape[-1], x.dtype)
        blocks, sums = partial_sums(self.device, x, 1)
        self.device.launch(
            "channel_sum",
            x.dtype,
            blocks,
            x=x,
            out=out,
            size=x.size,
            channels=x.shape[-1],
            **sums,
        )
        return out

    # one launch each, of a transposed view's copy
    def squeeze(self, x):
        n, height, width, channels = x.shape
        # n, y, dy, x, dx, c
        cells = x.reshape(n, height // 2, 2, width // 2, 2, channels)
        z = self.xp.ascontiguousarray(cells.transpose(0, 1, 3, 5, 2, 4))
        return z.reshape(n, height // 2, width // 2, 4 * channels)

    def unsqueeze(self, z):
        n, height, width, channels = z.shape
        cells = z.reshape(n, height, width, channels // 4, 2, 2)  # n, y, x, c, dy, dx
        x = self.xp.ascontiguousarray(cells.transpose(0, 1, 4, 2, 5, 3))
        return x.reshape(n, 2 * height, 2 * width, channels // 4)

    def shift_scale(self, x, sign, b, factor, s, out=None):
        ldj = self.device.empty(len(x), x.dtype)
        return self._shift_scale(x, sign, b, factor, s, None, out, ldj), ldj

    def scale_shift(self, z, s, t):
        return self._shift_scale(z, 0.0, None, 1.0, s, t)

    def _shift_scale(self, x, sign, before, factor, s, after, y=None, ldj=None):
        if y is None:
            y = self.device.like(x)
        blocks, _ = channel_blocks(x.size, x.shape[-1], 4)
        self.device.launch(
            "shift_scale",
            x.dtype,
            blocks,
            x=x,
            before=before,
            s=s,
            after=after,
            y=y,
            ldj=ldj,
            sign=sign,
            factor=factor,
            samples=len(x),
            **_sizes(x),
        )
        return y

    def shift_scale_backward(self, dy, y, sign, factor, s, dldj, out):
        g_b, g_s = out
        dx = self.device.like(dy)
        blocks, sums = partial_sums(self.device, dy, 2)
        self.device.launch(
            "shift_scale_backward",
            dy.dtype,
            blocks,
            dy=dy,
            y=y,
            s=s,
            dldj=dldj,
            dx=dx,
            g_b=g_b,
            g_s=g_s,
            sign=sign,
            factor=factor,
            samples=0 if dldj is None else len(dy),
            **sums,
            **_sizes(dy),
        )
        return dx

    def gaussian_log_density(self, z):
        dimension = math.prod(z.shape[1:])
        density = self.device.empty(len(z), z.dtype)
        self.device.launch(
            "gaussian_log_density",
            z.dtype,
            len(z),
            z=z,
            density=density,
            dimension=dimension,
            constant=0.5 * dimension * math.log(2 * math.pi),
        )
        return density

    def total(self, terms):
        return terms[0] if len(terms) == 1 else self._added(*terms)

    @cached_property
    def _added(self):
        return self.device.fuse(_sum)  # one launch for any number of arrays


def _sum(first, *others):
    return sum(others, first)


def _sizes(x) -> dict[str, int]:
    """The sizes of an array (N, ..., C), by the names of parameters."""
    return {"pixels": pixels(x), "size": x.size, "channels": x.shape[-1]}


def channel_blocks(size, channels, values, most=_MOST_BLOCKS) -> tuple[int, int]:
    """The number of blocks for rows of channels, and how many of them share the rows of a tile
    (see rows.cuh). A thread takes `values` values, or more if there would be over `most` blocks."""
    tiles = _tiles(channels)
    lanes = source.THREADS // -(-channels // tiles)
    groups = max(1, min(-(-size // (channels * lanes * values)), most // tiles))
    return tiles * groups, groups


def partial_sums(device, x, sums) -> tuple[int, dict]:
    """The number of blocks that compute `sums` sums over all rows of x, and the arguments by which
    the last of them adds up what each has."""
    channels = x.shape[-1]
    tiles = _tiles(channels)
    groups = _MOST_GROUPS if tiles <= device.counters.size else 1
    blocks, groups = channel_blocks(x.size, channels, 4 * tiles, groups * tiles)
    partial = device.empty((groups, sums, channels), x.dtype)
    return blocks, {"partial": partial, "arrived": device.counters}


def _tiles(channels) -> int:
    return -(-channels // source.constant("channels", "TILE"))
