"""Structured linear maps T(w). `Map` (`snfnp.maps.base`) is their contract."""

from snfnp.maps.base import Map
from snfnp.maps.conv import Conv2d
from snfnp.maps.dense import Dense

__all__ = ["Conv2d", "Dense", "Map"]
