"""Checks that the layers of a flow fit each other and its samples; their names in errors."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from snfnp.errors import SnfnpError, UsageError, require_instance, require_sizes
from snfnp.layers.base import Layer, Shape
from snfnp.layers.linear import Linear
from snfnp.layers.preprocess import Preprocess, Standardise

# Names of terms of log p(x) and of the last latent, which no layer may have.
_TERMS = ("preprocess", "dequantisation", "scale", "logit", "z", "log p(x)")


@contextmanager
def named(layer: str) -> Iterator[None]:
    """Name the layer in the errors of what is done with it."""
    try:
        yield
    except SnfnpError as error:
        raise of_layer(layer, error) from error


def of_layer(layer: str, error: SnfnpError) -> SnfnpError:
    """The error with the layer's name."""
    return type(error)(f"layer {layer}: {error}")


def require_chain(shape: Shape, layers: Any) -> None:
    """Raises UsageError unless layers are (name, layer) pairs with names of their own, and each
    takes the output of the one before, the first of them samples of this shape."""
    if not (isinstance(layers, (tuple, list)) and layers):
        raise UsageError(
            f"layers is of type {type(layers).__name__}, or empty: "
            "give a tuple of (name, layer) pairs"
        )
    for pair in layers:
        match pair:
            case (str(), _):
                continue
        raise UsageError(f"{pair!r:.60} is among the layers: give a (name, layer) pair")
    counts = Counter(name for name, _ in layers)
    for name, count in counts.items():
        if count > 1 or name in _TERMS or name.endswith("base density"):
            raise UsageError(
                f"a layer is called {name!r}, as another or a term of the likelihood is: rename it"
            )
    for name, layer in layers:
        require_instance(None, Layer, **{f"layer {name}": layer})
        with named(name):
            shape = _output_shape(layer, shape)


def require_ends(shape: Shape, image_shape: Shape | None, preprocess: Any) -> None:
    """Raises UsageError unless the shapes and the preprocessing fit each other."""
    require_sizes(None, shape=shape)
    dimension = math.prod(shape)
    if image_shape is not None:
        require_sizes(None, image_shape=image_shape)
        size = math.prod(image_shape)
        if size != dimension:
            raise UsageError(
                f"image_shape {image_shape} has {size} values, but shape {shape} "
                f"has {dimension}: give shapes of the same samples"
            )
    require_instance(None, Preprocess, Standardise, preprocess=preprocess)
    if isinstance(preprocess, Standardise):
        columns = {len(moments) for moments in preprocess.moments}
        if columns != {dimension} or shape != (dimension,):
            raise UsageError(
                f"preprocess is for {' and '.join(map(str, sorted(columns)))} columns, "
                f"but shape is {shape}: give it moments of each, and a shape (D,)"
            )


def _output_shape(layer: Any, shape: Shape) -> Shape:
    """The shape of a layer's output for samples of this shape, as it declares it. Raises UsageError
    if it does not take them, or cannot be invertible."""
    if layer.learns_inverse and not isinstance(layer, Linear):
        raise UsageError(
            "it learns an inverse: make it a snfnp.layers.Linear with a rule"
        )
    try:
        outputs: dict[str, Any] = {"output_shape": layer.output_shape(shape)}
        latent = layer.latent_shape(shape)
        sizes: dict[str, Any] = {
            f"shape of {name}": tuple(size)
            for name, size in layer.parameter_shapes(shape).items()
        }
    except SnfnpError:
        raise
    except Exception as error:  # of a layer of one's own
        raise UsageError(
            f"its shapes for samples of {shape} fail ({type(error).__name__}: {error}): "
            "give it samples that it takes, or mend it"
        ) from error
    if latent is not None:
        outputs["latent_shape"] = latent
    require_sizes(layer, **outputs)
    require_sizes(layer, least=0, **sizes)
    size = sum(map(math.prod, outputs.values()))
    if size != math.prod(shape):
        raise UsageError(
            f"it makes {size} values, latents included, of {math.prod(shape)}: "
            "let it keep their number, or it is not invertible"
        )
    return outputs["output_shape"]
