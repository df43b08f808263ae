"""``python -m benchmarks``; see ``command_line``."""

from benchmarks import extras

if __name__ == "__main__":
    extras.require()
    from benchmarks import command_line

    command_line.main()
