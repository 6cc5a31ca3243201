"""The coupling's elementwise operations on the GPU; see derivations/14-coupling.md."""

import math

from snfnp.ops.channels.gpu import channel_blocks, partial_sums
from snfnp.ops.coupling.definition import Coupling


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
        blocks, partial = partial_sums(self.device, out, 1)
        arrays = {"out": out, "a": a, "g_b": g_b, "partial": partial}
        sizes = {"add": add, "size": out.size, "channels": out.shape[1]}
        arrived = self.device.counters
        self.device.launch(
            "bias_relu_backward", out.dtype, blocks, **arrays, **sizes, arrived=arrived
        )

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
