"""The coupling's elementwise operations on the GPU; see derivations/14-coupling.md."""

import math

from snfnp.ops.channels.gpu import channel_blocks
from snfnp.ops.coupling.definition import Coupling
from snfnp.ops.gpu import source

# With more columns in the first factor, cuBLAS's product and a pass over the result are faster than
# `product_relu` (an estimate, for tensor cores).
_THIN = 72


class GpuCoupling(Coupling):
    """The ReLU's epilogues are kernels of our own: cuBLASLt's is reported to make a NaN 0."""

    # Large products fill a GPU: usually all rows at once. A hidden layer of 512 takes 268 MB.
    network_values = (1 << 17) * 512
    keeps_first = True  # caching beats recomputing

    def bias_relu(self, out, b):
        blocks, _ = channel_blocks(out.size, out.shape[1], 4)
        sizes = {"size": out.size, "channels": out.shape[1]}
        self.device.launch("bias_relu", out.dtype, blocks, out=out, b=b, **sizes)
        return out

    def bias_relu_backward(self, out, a, g_b, add=False):
        blocks, groups = channel_blocks(out.size, out.shape[1], 4)
        sums = self.device.empty((groups, out.shape[1]), out.dtype)
        own = {"out": out, "a": a, "sums": sums, "size": out.size, "channels": out.shape[1]}
        self.device.launch("bias_relu_backward", out.dtype, blocks, **own)
        self._add_up(sums, g_b, add)

    def product_relu(self, x, w, b, out):
        if x.shape[1] > _THIN:
            return super().product_relu(x, w, b, out)
        self._product_relu(x, w, out, b=b, a=None, sums=None)
        return out

    def product_relu_backward(self, d, w, a, out, g_b, add=False):
        if d.shape[1] > _THIN:
            super().product_relu_backward(d, w, a, out, g_b, add)
            return
        tiles = -(-len(out) // source.constant("coupling", "SIDE"))
        sums = self.device.empty((tiles, out.shape[1]), out.dtype)
        self._product_relu(d, w, out, b=None, a=a, sums=sums)
        self._add_up(sums, g_b, add)

    def _product_relu(self, x, w, out, **more):
        side, (rows, columns) = source.constant("coupling", "SIDE"), out.shape
        sizes = {"rows": rows, "inner": x.shape[1], "columns": columns}
        tiles = -(-rows // side) * -(-columns // side)
        self.device.launch("product_relu", out.dtype, tiles, x=x, w=w, out=out, **more, **sizes)

    def _add_up(self, rows, g_b, add):
        if add:
            g_b += self.channels.sum(rows)
        else:
            self.channels.sum(rows, out=g_b)

    def forward(self, x, h):
        device = self.device
        z, ldj = device.empty(x.shape, x.dtype), device.empty(len(x), x.dtype)
        s = device.empty((*x.shape[:3], x.shape[3] // 2), x.dtype)
        arrays = {"x": x, "h": h, "z": z, "ldj": ldj, "s": s}
        device.launch("affine_coupling", x.dtype, len(x), **arrays, **_sizes(x))
        return z, ldj, s

    def inverse(self, z, h):
        device = self.device
        x = device.empty(z.shape, z.dtype)
        device.launch("affine_coupling_inverse", z.dtype, len(z), z=z, h=h, x=x, **_sizes(z))
        return x

    def backward(self, x, s, dz, dldj):
        device = self.device
        dx, dh = device.empty(x.shape, x.dtype), device.empty(x.shape, x.dtype)
        arrays = {"x": x, "s": s, "dz": dz, "dldj": dldj, "dx": dx, "dh": dh}
        device.launch("affine_coupling_backward", x.dtype, len(x), **arrays, **_sizes(x))
        return dx, dh


def _sizes(x) -> dict[str, int]:
    """Half the channels of images (N, H, W, C), and of a sample's values: names of parameters."""
    return {"half": x.shape[3] // 2, "values": math.prod(x.shape[1:]) // 2}
