"""The kernels of a call, from a captured graph that never runs.

CuPy does not list the nodes of a graph. The driver does, and takes the runtime's graphs as its own.
"""

import ctypes

from snfnp.ops.gpu.graph import no_collection

_KERNEL = 0  # of CUgraphNodeType


def count_kernels(cupy, function) -> int | None:
    """The number of kernels that `function()` starts, None if that cannot be known.

    `function` must have run before with the same shapes.
    """
    failed = False
    # the default stream cannot be captured
    with no_collection(), cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            function()
        except Exception:  # what cannot be captured cannot be counted
            failed = True
        try:
            graph = stream.end_capture()
            types = None if failed else _node_types(graph.graph)
        except (RuntimeError, OSError, AttributeError):  # no capture; no driver that lists nodes
            return None
        finally:
            # the pool keeps a stream's blocks for that stream, and this one is gone
            cupy.get_default_memory_pool().free_all_blocks(stream)
    return None if types is None else types.count(_KERNEL)


def _node_types(graph: int) -> list[int] | None:
    driver = ctypes.CDLL("libcuda.so.1")
    get_nodes, get_type = driver.cuGraphGetNodes, driver.cuGraphNodeGetType
    handle, count = ctypes.c_void_p(graph), ctypes.c_size_t()
    if get_nodes(handle, None, ctypes.byref(count)):
        return None
    nodes, kind = (ctypes.c_void_p * count.value)(), ctypes.c_int()
    if get_nodes(handle, nodes, ctypes.byref(count)):
        return None
    types = []
    for node in nodes:
        if get_type(ctypes.c_void_p(node), ctypes.byref(kind)):
            return None
        types.append(kind.value)
    return types
