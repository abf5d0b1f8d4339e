"""``python -m pipeline``: the command, as ``context-frozen`` runs it."""

from pipeline.cli.command import run_command

if __name__ == "__main__":
    run_command()
