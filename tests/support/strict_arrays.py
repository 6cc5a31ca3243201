"""A strict stand-in for a device's array namespace: NumPy that refuses what a device refuses.

NumPy accepts every mix of host and device arrays, since for it they are the same. Here they are
different types: `xp` has NumPy's functions under their names, for arrays of its own and scalars
alone, and refuses each implicit conversion between host and device, naming the function that asked
for it. What makes the host wait for a device, or copies to it, is counted, and is an error inside
`no_waiting()`. The rest is as with CuPy: reductions give arrays of shape (), indexing gives views,
and what CuPy lacks is missing. The values are NumPy's: nothing is proved about those of a GPU.
"""

from __future__ import annotations

import operator
from contextlib import contextmanager
from functools import partial, partialmethod
from types import ModuleType

import numpy as np


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What NumPy has and CuPy 14.2 has not, as far as anybody might use it here; and keywords.
LACKING = _names("""
    einsum_path errstate frompyfunc geomspace insert longdouble matvec nanpercentile nanquantile
    ndenumerate nditer spacing unstack vecdot vecmat void linalg.diagonal linalg.matrix_norm
    linalg.multi_dot linalg.outer linalg.svdvals linalg.tensordot linalg.trace linalg.vecdot
    linalg.vector_norm
    """)
LACKING_KEYWORDS = _names("where initial correction device like")
# The shape of their results depends on values.
_READ_BACK = _names("nonzero flatnonzero argwhere unique compress extract")
# They go through a handle of CuPy's own, which cannot be used while a graph is captured.
_PRODUCTS = _names("matmul dot vdot inner tensordot einsum inv solve slogdet det")
_METHODS = _names("""
    all any argmax argmin astype clip copy cumprod cumsum diagonal dot fill flatten max mean min
    nonzero prod ravel repeat reshape round squeeze std sum swapaxes take trace transpose var
    """)
_SPACES = ("xp.linalg", "xp.lib", "xp.lib.stride_tricks")
_POISON = {"f": np.nan, "c": np.nan, "b": True}  # what `empty` holds, by kind of dtype
_POISON_INTEGER = 85


class NotInAStep(RuntimeError):
    """In a training step the host waited, copied, or called what no graph can capture."""


class Traffic:
    """A count of how often the host waited for the device, and how often it copied to it."""

    def __init__(self):
        self.waits = self.uploads = 0
        self.in_step = self.own_handle = False

    def wait(self, what: str) -> None:
        self.waits += 1
        self.refuse_in_step(f"{what} makes the host wait for the device")

    def upload(self, what: str) -> None:
        self.uploads += 1
        self.refuse_in_step(f"{what} copies from the host to the device")

    def product(self, what: str) -> None:
        if not self.own_handle:
            self.refuse_in_step(f"{what} cannot be captured in a graph, ops.linalg.matmul can")

    def refuse_in_step(self, why: str) -> None:
        if self.in_step:
            raise NotInAStep(why)

    @contextmanager
    def _set(self, name: str):
        setattr(self, name, True)
        try:
            yield
        finally:
            setattr(self, name, False)


traffic = Traffic()


def no_waiting():
    """In here the host may neither wait nor copy: any training step but the first."""
    return traffic._set("in_step")


def own_handle():
    """In here products go through a handle that a graph can capture."""
    return traffic._set("own_handle")


# ---------------------------------------------------------------- between host and device


def _operand(what: str, value):
    """An array of the device, or a scalar, as NumPy takes it. what: the caller, for messages."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"{what} met a host array: ops.asarray puts it on the device")
    if isinstance(value, (bool, int, float, complex, np.generic)):
        return value
    raise TypeError(f"{what} met a {type(value).__name__}")


def _argument(what: str, value):
    """An operand, a sequence of arrays or of integers, or something that is not a number."""
    if isinstance(value, (tuple, list)):
        if any(isinstance(each, float) for each in value):
            raise TypeError(f"{what} met a list of host numbers")
        return type(value)(_argument(what, each) for each in value)
    if value is None or value is Ellipsis or isinstance(value, (slice, str, type, np.dtype)):
        return value
    return _operand(what, value)


def _on_device(result):
    """A result of NumPy as arrays of the device: a scalar becomes one of shape ()."""
    if isinstance(result, (np.ndarray, np.generic, bool)):
        return ndarray(np.asarray(result))
    if isinstance(result, (tuple, list)):
        parts = map(_on_device, result)
        return type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts)
    return result


def _call(what: str, function, /, *arguments, **keywords):
    """A function of NumPy on arrays of the device."""
    for keyword in sorted(LACKING_KEYWORDS & keywords.keys()):
        raise TypeError(f"{what} of CuPy takes no {keyword}=")
    name = what.rsplit(".")[-1]
    if name in _READ_BACK:
        traffic.wait(what)
    if name in _PRODUCTS:
        traffic.product(what)
    hosts = [_argument(what, value) for value in arguments]
    named = {keyword: _argument(what, value) for keyword, value in keywords.items()}
    result = _on_device(function(*hosts, **named))
    return result if keywords.get("out") is None else keywords["out"]


def _operate(name: str, function, *operands):
    if name in _PRODUCTS:
        traffic.product(name)
    return _on_device(function(*(_operand(name, each) for each in operands)))


# ---------------------------------------------------------------- arrays


class ndarray:
    """An array of the device: only `get` and what counts as waiting give the host its values."""

    __hash__ = None

    def __init__(self, host: np.ndarray):
        self._host = host

    def __getattr__(self, name: str):
        if name in _METHODS:
            return partial(_call, f"array.{name}", getattr(np.ndarray, name), self)
        raise AttributeError(f"a device array has no {name}")

    def __len__(self):
        return len(self._host)

    def __repr__(self):
        return f"<device array {self.shape} {self.dtype}>"

    # ------------------------------------------------------------ implicit conversions

    def __array__(self, *_, **__):
        raise TypeError("NumPy met a device array: ops.to_host brings it to the host")

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        if isinstance(inputs[0], np.generic) and method == "__call__" and not keywords:
            return _operate(ufunc.__name__, ufunc, *inputs)  # np.float64(2) * array
        raise TypeError(f"np.{ufunc.__name__} met a device array: xp.{ufunc.__name__} takes it")

    def __array_function__(self, function, *_):
        name = function.__name__
        raise TypeError(f"np.{name} met a device array: xp.{name} takes it")

    # ------------------------------------------------------------ what is read back

    def get(self) -> np.ndarray:
        traffic.wait("get()")
        return self._host.copy()

    def _value(self, what: str, convert):
        traffic.wait(f"{what}()")
        return convert(self._host.item())

    item = partialmethod(_value, "item", lambda value: value)
    __float__ = partialmethod(_value, "float", float)
    __int__ = partialmethod(_value, "int", int)
    __bool__ = partialmethod(_value, "bool", bool)

    def __iter__(self):
        """Rows are views, and cost nothing. Iterating over single values means reading them."""
        if self.ndim < 2:
            traffic.wait("iteration over values")
        return (self[index] for index in range(len(self)))

    # ------------------------------------------------------------ indexing

    def __getitem__(self, key):
        return ndarray(self._host[_key(key)])

    def __setitem__(self, key, value):
        key, value = _key(key), _operand("an assignment", value)
        if any(isinstance(part, np.ndarray) and part.dtype != bool for part in key):
            stored = np.arange(self.size).reshape(self.shape)[key]
            if np.unique(stored).size < stored.size:
                raise ValueError("an assignment met an index twice: which value stays is open")
        self._host[key] = value


def _key(key) -> tuple:
    """An index as NumPy takes it, which gives a view also of a single value."""
    parts = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, list) for part in parts):
        raise TypeError("indexing met a list of host numbers")
    if any(isinstance(part, ndarray) and part.dtype == bool for part in parts):
        traffic.wait("indexing by a mask")
    if not any(part is Ellipsis for part in parts):
        parts = (*parts, ...)
    return _argument("indexing", parts)


def _operator(name: str, reflected=False, in_place=False):
    function = getattr(operator, f"__{'i' * in_place}{name}__")

    def method(self, *other):
        found = _operate(name, function, *((*other, self) if reflected else (self, *other)))
        return self if in_place else found

    return method


for _name in _names("add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"):
    setattr(ndarray, f"__{_name}__", _operator(_name))
    setattr(ndarray, f"__r{_name}__", _operator(_name, reflected=True))
    setattr(ndarray, f"__i{_name}__", _operator(_name, in_place=True))
for _name in _names("lt le gt ge eq ne neg pos abs invert"):
    setattr(ndarray, f"__{_name}__", _operator(_name))
for _name in _names("shape dtype ndim size nbytes itemsize strides flags"):
    setattr(ndarray, _name, property(operator.attrgetter(f"_host.{_name}")))
for _name in ("T", "mT", "real"):
    setattr(ndarray, _name, property(lambda self, name=_name: ndarray(getattr(self._host, name))))


# ---------------------------------------------------------------- the namespace


def _poisoned(make):
    """np.empty and the like, filled with values that cannot pass for a result."""

    def function(*arguments, **keywords):
        array = make(*arguments, **keywords)
        array[...] = _POISON.get(array.dtype.kind, _POISON_INTEGER)
        return array

    return function


def _unchecked(solve):
    """np.linalg.inv and the like: CuPy does not notice that a matrix is singular."""

    def function(*arrays):
        try:
            return solve(*arrays)
        except np.linalg.LinAlgError:
            return np.full_like(arrays[-1], np.nan)

    return function


_INSTEAD = {
    "xp.empty": _poisoned(np.empty),
    "xp.empty_like": _poisoned(np.empty_like),
    "xp.linalg.inv": _unchecked(np.linalg.inv),
    "xp.linalg.solve": _unchecked(np.linalg.solve),
}


class Namespace:
    """The functions of a NumPy module, for arrays of the device alone."""

    def __init__(self, module: ModuleType, path: str):
        self._module, self._path = module, path

    def __getattr__(self, name: str):
        path = f"{self._path}.{name}"
        if path.removeprefix("xp.") in LACKING:
            raise AttributeError(f"CuPy has no {path.removeprefix('xp.')}")
        found = getattr(self._module, name)
        if isinstance(found, ModuleType):
            if path not in _SPACES:
                raise AttributeError(f"{path} is not for operations")
            return Namespace(found, path)
        if isinstance(found, type) or not callable(found):
            return found  # a dtype, or a constant
        return partial(_call, path, _INSTEAD.get(path, found))


class DeviceNamespace(Namespace):
    """With these, the functions that CuPy has for copies between host and device."""

    ndarray = ndarray

    def asarray(self, a, dtype=None):
        if isinstance(a, ndarray):
            return a if dtype in (None, a.dtype) else a.astype(dtype)
        traffic.upload("asarray() of what is on the host")
        return ndarray(np.array(a, dtype))

    def array(self, a, dtype=None):
        return a.astype(dtype or a.dtype) if isinstance(a, ndarray) else self.asarray(a, dtype)

    def asnumpy(self, a) -> np.ndarray:
        return a.get()


xp = DeviceNamespace(np, "xp")
