"""``python -m fused_optim``: what is installed here, and unmodified scripts run fused."""

import argparse

from fused_optim import diagnostics, script


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fused_optim", description="Fused optimizer kernels for PyTorch."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, instruction sets, devices, fused optimizers")
    run = commands.add_parser(
        "run", help="run an unmodified script with torch.optim's classes replaced by fused ones"
    )
    run.add_argument("script", help="path of the Python script")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")
    options = parser.parse_args()
    if options.command == "info":
        print(diagnostics.describe())
    else:
        script.run(options.script, options.arguments)


if __name__ == "__main__":
    main()
