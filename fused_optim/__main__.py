"""``python -m fused_optim``: what is installed here, and unmodified scripts run fused."""

import argparse
import sys

from fused_optim import diagnostics, script


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fused_optim", description="Fused optimizer kernels for PyTorch."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, instruction sets, devices, fused optimizers")
    run = commands.add_parser(
        "run",
        help="run an unmodified script with torch.optim's classes replaced by fused ones",
        usage="python -m fused_optim run [-h] [--] script [its own arguments]",
        description="Runs a script as Python does, with torch.optim's classes replaced.",
    )
    ours, scripts = split_at_script(sys.argv[1:])
    options = parser.parse_args(ours)
    if options.command == "info":
        print(diagnostics.describe())
    elif scripts:
        script.run(scripts[0], scripts[1:])
    else:
        run.error("the following arguments are required: script")


def split_at_script(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separates what argparse parses from the script's path and all that follows it.

    Those are the script's, each ``--`` among them. Only one ahead of the path is ours: as in
    ``python -- script``, it says that the path follows, whatever that begins with.
    """
    if arguments[:1] != ["run"]:
        return arguments, []
    for place, argument in enumerate(arguments[1:], 1):
        if argument == "--":
            return arguments[:place], arguments[place + 1 :]
        if not argument.startswith("-"):
            return arguments[:place], arguments[place:]
    return arguments, []


if __name__ == "__main__":
    main()
