"""The compiled CUDA kernels: registers for two blocks and no spills, all loads of an iteration in
flight together, and what synchronises blocks and threads where it must be."""

import itertools

import pytest
import sass
import torch
from sass import kernels, usages
from twins import CASES

import fused_optim._C as _C

#: Four, mixed ones computed in float or double, and compact ones.
DTYPES = 7
#: Sizes of the argument: csrc/cuda/kernel_table.h and gradient_table.h.
TABLES = 2
#: Of a multiprocessor, and of a block: kThreads in csrc/cuda/kernel_body.h.
REGISTERS, THREADS = 65_536, 256

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sass.why_not() is not None, reason=str(sass.why_not())),
]


def kernels_per_arch():
    """Rules times the sets of states that options switch on, dtypes and tables."""
    variants = set()
    for cls, options in CASES:
        param = torch.zeros(1, requires_grad=True)
        param.grad = torch.zeros(1)
        optimizer = cls([param], **options)
        optimizer.step()
        variants.add((cls._rule, *sorted(optimizer.state[param])))
    return DTYPES * TABLES * len(variants)


def step_kernels():
    found = kernels("step_kernel_of")
    assert len(found) >= kernels_per_arch() * len(_C.cuda_archs().split(","))
    return found


def operands(kernel):
    """Parameter, gradient and states."""
    return 2 + int(kernel.name.split()[2]).bit_count()


def unroll(kernel):
    """Packs of each operand that a thread loads before it computes: csrc/cuda/chunk.h."""
    return 1 if kernel.dtype == "float64" and operands(kernel) > 4 else 2


def loads_in_flight(kernel):
    """Each operand's, and the average's for where there is one; of 8 elements as many as float32
    takes, and a master's remainder."""
    if kernel.dtype == "compact":
        return 2 * (operands(kernel) + 1) + 1
    return unroll(kernel) * (operands(kernel) + 1)


def test_no_spills_and_no_stack():
    archs = len(_C.cuda_archs().split(","))
    # The steps; sums and scaling in each dtype, and three ways to finish a norm.
    assert len(usages()) >= archs * (kernels_per_arch() + 4 * TABLES * (3 + 1) + 3)
    assert {(usage.stack, usage.local) for usage in usages()} == {(0, 0)}


def test_registers_for_two_blocks_a_multiprocessor():
    most = REGISTERS // (2 * THREADS)
    steps = [usage for usage in usages() if "step_kernel_of" in usage.function]
    assert [usage for usage in steps if usage.registers > most] == []


def test_all_loads_of_an_iteration_stand_before_the_first_use_of_any():
    """Else they wait for one another, and memory for them."""
    for kernel in step_kernels():
        if kernel.dtype == "mixed-float64":
            continue  # goes element by element
        if kernel.dtype == "compact" and kernel.name.startswith(("sm_80 SGD 0", "sm_80 ASGD 1")):
            continue  # where a remainder's address goes through registers of float32 parameters
        group = loads_in_flight(kernel)
        positions = [i for i, x in enumerate(kernel.code) if x.is_wide_load]
        # Of aligned operands, after those of entries of which some are not: compact ones of these
        # go element by element.
        first, last = positions[-group], positions[-1]
        between = kernel.code[first : last + 1]
        assert len(positions) == (1 if kernel.dtype == "compact" else 2) * group, kernel.name
        loaded = set()
        for instruction in between:
            assert not loaded & instruction.read, f"{kernel.name}: {instruction.text}"
            if instruction.is_wide_load:
                loaded |= instruction.loaded
        # A master's remainder is where elements of more bytes would be.
        others = group - 1 if kernel.dtype == "compact" else group
        assert len(loaded) == 4 * others, kernel.name


def test_first_loads_are_under_way_before_the_scalars():
    """And one thread computes the scalars: all divisions of doubles are between two barriers."""
    for kernel in step_kernels():
        if kernel.dtype == "mixed-float64":
            continue
        loads = [i for i, x in enumerate(kernel.code) if x.is_wide_load]
        _, begin, end, *_ = kernel.positions("BAR")  # the first one is the kernel's beginning
        assert loads[-1] < begin, kernel.name
        past = [x.text for x in kernel.code[begin : begin + 8] if x.operation == "BRA"]
        assert past and past[0].startswith("@"), f"{kernel.name}: all threads compute"
        if kernel.dtype.endswith("float64"):
            continue
        # Scalar states are advanced once a tensor, after the arrival.
        (arrival,) = kernel.positions("ATOMG")
        divisions = [i for i in kernel.positions("MUFU.RCP64H") if i < arrival]
        assert divisions and all(begin < i < end for i in divisions), kernel.name


def test_memory_is_accessed_in_elements_or_sixteen_bytes():
    widths = {"float32": "", "float64": ".64", "bfloat16": ".U16", "float16": ".U16"}
    for kernel in step_kernels():
        if kernel.dtype.startswith(("mixed", "compact")):
            continue  # a pack of theirs is of 16, 8 or 4 bytes
        stored = [x.operation.removeprefix("STG.E") for x in kernel.code]
        stored = {width for width in stored if not width[:1].isalpha()}
        allowed = {".128", widths[kernel.dtype], ""}  # a `step` is a float
        assert ".128" in stored and stored <= allowed, f"{kernel.name}: {stored}"


@pytest.mark.parametrize(
    ("dtype", "pairs"),
    [("bfloat16", ["F2FP.BF16"]), ("float16", ["F2FP.F16", "F2FP.PACK_AB"])],
)
def test_half_types_are_converted_by_the_hardware(dtype, pairs):
    """Two values in one instruction, which architectures have from 8.0 on."""
    for kernel in step_kernels():
        arch = kernel.name.split()[0]
        if kernel.dtype != dtype or int(arch.removeprefix("sm_").rstrip("af")) < 80:
            continue
        converted = kernel.positions(*pairs)
        stored = operands(kernel)  # all but the gradient, and the average
        assert len(converted) >= unroll(kernel) * stored * 4, kernel.name


def test_steps_are_advanced_from_memory_and_fenced():
    """Constant memory would serve the threads one after the other. Fences order what all blocks
    have read before the arrival of the last one, and what it writes after."""
    for kernel in step_kernels():
        (arrival,) = kernel.positions("ATOMG")
        before, after = kernel.code[arrival - 20 : arrival], kernel.code[arrival:]
        end = next(i for i, x in enumerate(after) if x.text == "EXIT")
        assert any(x.operation.startswith("MEMBAR") for x in before), kernel.name
        assert any(x.operation.startswith("MEMBAR") for x in after[:20]), kernel.name
        constants = [x.text for x in after[:end] if "c[0x0][R" in x.text]
        assert not constants, f"{kernel.name}: {constants}"


def test_norms_load_sixteen_bytes_at_a_time_too():
    sums = kernels("13sum_kernel_of")
    assert len(sums) >= 4 * TABLES * 3
    for kernel in sums:
        loads = [x for x in kernel.code if x.operation.startswith("LDG.E")]
        runs = [len(list(run)) for wide, run in itertools.groupby(loads, _is_wide) if wide]
        assert max(runs) >= 4, kernel.name


def _is_wide(instruction):
    return instruction.is_wide_load


def test_a_norms_sum_is_read_after_a_barrier():
    """By all threads, after the one that adds the last two columns has written it."""
    reducing = kernels("13sum_kernel_of") + kernels("21finish_norm_kernel_of")
    assert len(reducing) >= 4 * TABLES * 3 + 3
    for kernel in reducing:
        last_write = kernel.positions("STS")[-1]
        then = [x.operation for x in kernel.code[last_write + 1 :]]
        then = [x[:3] for x in then if x.startswith(("BAR", "LDS"))]
        assert then[:2] == ["BAR", "LDS"], f"{kernel.name}: {then}"
