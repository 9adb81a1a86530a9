"""Tensors as worker processes make them, each made anew by its name; all above 4,096 bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from partner_loader import require

(torch,) = require("torch")


def numbers() -> Any:
    return torch.arange(6000, dtype=torch.float32).reshape(60, 100)


def _grown() -> Any:
    return numbers().requires_grad_() * 2


def _with_attribute() -> Any:
    tensor = numbers()
    tensor.origin = "camera"
    return tensor


class Scaled(torch.Tensor):
    """A subclass, as some libraries make them."""


# Lie without gaps: copied once, straight into shared memory.
DENSE: dict[str, Callable[[], Any]] = {
    "float32": numbers,
    "float64": lambda: numbers().double(),
    "float16": lambda: numbers().half(),
    "bfloat16": lambda: numbers().bfloat16(),
    "int64": lambda: numbers().long(),
    "uint8": lambda: numbers().to(torch.uint8),
    "bool": lambda: numbers() > 3000,
    "complex64": lambda: torch.complex(numbers(), -numbers()),
    "transposed": lambda: numbers().t(),
    "channels-first": lambda: numbers().reshape(40, 50, 3).permute(2, 0, 1),
    "channels-last": lambda: numbers().reshape(2, 3, 20, 50).to(memory_format=torch.channels_last),
    "bfloat16-transposed": lambda: numbers().bfloat16().t(),
    "view": lambda: torch.cat([numbers(), numbers()])[60:],
    "from-numpy": lambda: torch.from_numpy(numbers().numpy() + 1),
    "inference": lambda: _inference(),
    "parameter": lambda: torch.nn.Parameter(numbers()),
    "buffer": lambda: torch.nn.Parameter(numbers(), requires_grad=False),
}

# Of these, dtypes that torch itself does not pickle.
UNPICKLED_BY_TORCH: dict[str, Callable[[], Any]] = {
    "float8": lambda: numbers().to(torch.float8_e4m3fn),
    "uint16": lambda: numbers().to(torch.uint16),
    "complex32": lambda: torch.complex(numbers(), numbers()).to(torch.complex32),
}

# Everything else crosses as torch pickles it.
OTHERS: dict[str, Callable[[], Any]] = {
    "scalar": lambda: torch.tensor(3.5),
    "bool-scalar": lambda: torch.tensor(True),
    "bfloat16-scalar": lambda: torch.tensor(0.5).bfloat16(),
    "empty": lambda: torch.empty(0, 3),
    "small": lambda: torch.tensor([1, 2, 3]),
    "every-other-row": lambda: numbers()[::2],
    "expanded": lambda: torch.arange(3.0).expand(2000, 3),
    "requires-grad": lambda: numbers().requires_grad_(),
    "with-grad-function": _grown,
    "conjugate": lambda: torch.complex(numbers(), numbers()).conj(),
    "negative": lambda: numbers()._neg_view(),
    "sparse-coo": lambda: numbers().to_sparse(),
    "sparse-csr": lambda: numbers().to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([numbers(), numbers()[:3]]),
    "meta": lambda: numbers().to("meta"),
    "subclass": lambda: numbers().as_subclass(Scaled),
    "with-attribute": _with_attribute,
}

CASES = {**DENSE, **UNPICKLED_BY_TORCH, **OTHERS}


def _inference() -> Any:
    with torch.inference_mode():
        return numbers() * 1


def make(name: str) -> Any:
    return CASES[name]()


def assert_same_tensor(got: Any, want: Any) -> None:
    """Fails unless both are equal in kind, form, place and, bit by bit, in value."""
    assert type(got) is type(want)
    for name in ("dtype", "layout", "device", "requires_grad", "is_leaf", "is_nested"):
        assert getattr(got, name) == getattr(want, name), name
    assert vars(got) == vars(want)
    if want.is_nested:
        for parts in zip(got.unbind(), want.unbind(), strict=True):
            assert_same_tensor(*parts)
        return
    assert got.shape == want.shape
    if want.device.type == "meta":
        return
    if want.layout == torch.sparse_coo:
        got, want = got.coalesce(), want.coalesce()
        pairs = [(got.indices(), want.indices()), (got.values(), want.values())]
    elif want.layout == torch.sparse_csr:
        names = ("crow_indices", "col_indices", "values")
        pairs = [(getattr(got, name)(), getattr(want, name)()) for name in names]
    else:
        assert (got.is_conj(), got.is_neg()) == (want.is_conj(), want.is_neg())
        assert got.stride() == want.stride()
        assert _bits(got) == _bits(want)
        return
    for pair in pairs:
        assert_same_tensor(*pair)


def _bits(tensor: Any) -> bytes:
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().flatten()
    data: bytes = flat.view(torch.uint8).numpy().tobytes()
    return data
