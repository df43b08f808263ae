"""What counts as one result on two processors."""

import pytest
import torch
from cuda_twins import same_numbers

#: NaN as a GPU's and as x86's operations give it.
NANS = {
    torch.float32: (torch.int32, 0x7FFFFFFF, -0x400000),
    torch.float64: (torch.int64, 0x7FFFFFFFFFFFFFFF, -0x8000000000000),
    torch.bfloat16: (torch.int16, 0x7FFF, 0x7FC0),
    torch.float16: (torch.int16, 0x7FFF, 0x7E00),
}


@pytest.mark.parametrize("dtype", NANS, ids=str)
def test_nan_is_the_same_number_whatever_its_bits(dtype):
    integer, ours, theirs = NANS[dtype]
    a = torch.tensor([ours, 1, 0], dtype=integer, device="cpu").view(dtype)
    b = torch.tensor([theirs, 1, 0], dtype=integer, device="cpu").view(dtype)
    assert a[0].isnan() and b[0].isnan()
    assert same_numbers(a, b)
    assert not same_numbers(a, b.roll(1))
    b[2] = -b[2]
    assert not same_numbers(a, b)
