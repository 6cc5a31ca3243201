"""The coupling's elementwise operations on the GPU; see derivations/14-coupling.md."""

import math

from snfnp.ops.channels.gpu import channel_blocks, partial_sums
from snfnp.ops.coupling.definition import Coupling


class GpuCoupling(Coupling):
    """The ReLU's epilogues are kernels of our own: cuBLASLt's is reported to make a NaN 0."""

    # Large products fill a GPU: usually all rows at once. A hidden layer of 512 takes 268 MB.
    network_values = (1 << 17) * 512
    keeps_a1 = True  # caching beats recomputing

    def bias_relu(self, out, b):
        blocks, _ = channel_blocks(out.size, out.shape[1], 4)
        self.device.launch(
            "bias_relu",
            out.dtype,
            blocks,
            out=out,
            b=b,
            size=out.size,
            channels=out.shape[1],
        )
        return out

    def bias_relu_backward(self, out, a, g_b, add=False):
        blocks, sums = partial_sums(self.device, out, 1)
        self.device.launch(
            "bias_relu_backward",
            out.dtype,
            blocks,
            out=out,
            a=a,
            g_b=g_b,
            add=add,
            size=out.size,
            channels=out.shape[1],
            **sums,
        )

    def forward(self, x, h):
        z = self.device.like(x)
        ldj = self.device.empty(len(x), x.dtype)
        s = self.device.empty((*x.shape[:3], x.shape[3] // 2), x.dtype)
        self._by_sample("affine_coupling", x, h=h, z=z, ldj=ldj, s=s)
        return z, ldj, s

    def inverse(self, z, h):
        x = self.device.like(z)
        self._by_sample("affine_coupling_inverse", x, z=z, h=h)
        return x

    def backward(self, x, s, dz, dldj):
        dx = self.device.like(x)
        dh = self.device.like(x)
        self._by_sample(
            "affine_coupling_backward", x, s=s, dz=dz, dldj=dldj, dx=dx, dh=dh
        )
        return dx, dh

    def _by_sample(self, kernel, x, **arrays):
        """Launch a kernel of images (N, H, W, C), with a block for each of them."""
        self.device.launch(
            kernel,
            x.dtype,
            len(x),
            x=x,
            **arrays,
            half=x.shape[3] // 2,
            values=math.prod(x.shape[1:]) // 2,
        )
