"""``python -m fused_optim``: what is installed here, and unmodified scripts run fused."""

import argparse
import sys

from fused_optim import diagnostics, script, would_fuse

_COMMANDS = ("info", "run")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fused_optim", description="Fused optimizer kernels for PyTorch."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser(
        "info",
        help="versions, instruction sets, devices, fused optimizers; does mine fuse?",
        usage="python -m fused_optim info [-h] [script:factory | [-m] script [its own arguments]]",
        description="Says what is installed. With a function of a script that returns an optimizer "
        "(or several): whether each would fuse. With a script: runs it fused and says at its end "
        "how each of its optimizers has stepped.",
    )
    run = commands.add_parser(
        "run",
        help="run an unmodified script with torch.optim's classes replaced by fused ones",
        usage="python -m fused_optim run [-h] [-m] [--] script [its own arguments]",
        description="Runs a script, or with -m a module, as Python does, with torch.optim's "
        "classes replaced.",
    )
    for command in (info, run):
        command.add_argument("-m", action="store_true", dest="is_module", help="run a module")
    ours, scripts = split_at_script(sys.argv[1:])
    options = parser.parse_args(ours)
    start = script.run_module if options.is_module else script.run
    if options.command == "info":
        would_fuse.main(start, scripts) if scripts else print(diagnostics.describe())
    elif scripts:
        start(scripts[0], scripts[1:])
    else:
        run.error("the following arguments are required: script")


def split_at_script(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separates what argparse parses from the script's path and all that follows it.

    Those are the script's, each ``--`` among them. Only one ahead of the path is ours: as in
    ``python -- script``, it says that the path follows, whatever that begins with.
    """
    if arguments[:1] not in ([command] for command in _COMMANDS):
        return arguments, []
    for place, argument in enumerate(arguments[1:], 1):
        if argument == "--":
            return arguments[:place], arguments[place + 1 :]
        if not argument.startswith("-"):
            return arguments[:place], arguments[place:]
    return arguments, []


if __name__ == "__main__":
    main()
