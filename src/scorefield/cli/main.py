"""scorefield <command> [key=value ...]: the one entry point, which hands over to the command's own module."""

import runpy
import sys

COMMANDS = {
    "train": "train a model, evaluate it and write its report",
    "resume": "go on with an interrupted run or sweep: scorefield resume DIR",
    "evaluate": "evaluate the weights of a run, or images: scorefield evaluate run_dir=RUN_DIR",
    "stats": "features of a whole split, for evaluate to compare with: scorefield stats data=NAME out=FILE.npz",
    "convert": "make a run of a published checkpoint",
    "sample": "draw samples from a run's model: scorefield sample run_dir=RUN_DIR n=64",
    "table": "compare runs: scorefield table DIR...",
    "wandb": "send offline runs to W&B: scorefield wandb upload DIR...",
    "edit": "edit pictures through a run's model: scorefield edit run_dir=RUN_DIR images=FILE edit=sdedit",
    "recipe": "NCSNv2's noise levels and step size for a data set: scorefield recipe data=NAME",
}

WITHOUT_CONFIGURATION = ("resume", "table", "wandb")  # their options are argparse's, not Hydra's


def usage() -> str:
    lines = (f"  {name:<10} {what}" for name, what in COMMANDS.items())
    return "\n".join(
        [
            "usage: scorefield COMMAND [key=value ...]",
            "",
            *lines,
            "",
            "scorefield COMMAND --help lists a command's options",
        ]
    )


def main() -> None:
    """Run a command as ``python -m scorefield.cli.<command>``, so that processes it starts can repeat it."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(usage())
        return
    if command not in COMMANDS:
        print(f"scorefield: unknown command {command!r}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    if command not in WITHOUT_CONFIGURATION:
        from scorefield.cli.app import asks_to_be_shown, refuse_mistakes, run_app

        # What can be refused without torch and Lightning is refused before they are imported.
        refuse_mistakes(command, sys.argv[1:], thorough=False)
        if asks_to_be_shown(sys.argv[1:]):
            run_app(command, lambda config: None)
            return
    runpy.run_module(f"scorefield.cli.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
