"""How a command line says in which formats tensors are kept."""

import argparse

from benchmarks import peers
from benchmarks.kept import DTYPES, STATE_DTYPES, Kept


def add_formats(parser: argparse.ArgumentParser) -> None:
    """How tensors are kept."""
    parser.add_argument(
        "--dtype", action="append", choices=DTYPES,
        help="may be given several times (default: float32; a whole run has a few rows of others)",
    )  # fmt: skip
    parser.add_argument(
        "--state-dtype", choices=STATE_DTYPES,
        help="of our states (default: the parameters'); the others keep theirs",
    )  # fmt: skip
    parser.add_argument(
        "--master-bits", type=int, choices=[32, 24], help="of masters of our bfloat16 parameters"
    )
    parser.add_argument(
        "--stochastic-rounding", action="store_true",
        help="of ours, where rounded to nearest they would stand still",
    )  # fmt: skip


def formats(options: argparse.Namespace, usual: list[str]) -> list[Kept]:
    """How tensors are kept, once for each dtype."""
    more = options.state_dtype, options.master_bits, options.stochastic_rounding
    if options.master_bits is not None:
        usual = ["bfloat16"]  # no other has masters
    return [Kept(dtype, *more) for dtype in dict.fromkeys(options.dtype or usual)]


def check_formats(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the command if our classes can't keep tensors in a way that it asks for by name. Where
    it leaves out which optimizers, those that can are measured."""
    for kept in formats(options, ["float32"]):
        reasons = [peers.refusal(o, kept) for o in options.optimizer or peers.OPTIMIZERS]
        wrong = [reason for reason in reasons if reason is not None]
        if wrong and (options.optimizer or len(wrong) == len(reasons)):
            parser.error(wrong[0])
