"""The inverse of a causal convolution on the GPU: one launch; see derivations/11-emerging.md."""

from snfnp.ops.causal.definition import Causal
from snfnp.ops.gpu import source


class GpuCausal(Causal):
    def inverse(self, z, k, reverse=False):
        device, z = self.device, self._turned(z, reverse)
        samples, height, width, channels = z.shape
        x = device.empty(z.shape, z.dtype)
        widest = min(height, width) * channels  # values of the longest anti-diagonal
        threads = min(-(-widest // 32) * 32, source.THREADS)
        sizes = {"samples": samples, "height": height, "width": width, "channels": channels}
        arguments = {"z": z, "k": k, "x": x, **sizes}
        device.launch("causal_conv_inverse", z.dtype, samples, threads=threads, **arguments)
        return self._turned(x, reverse)
