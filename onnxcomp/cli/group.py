"""How the command line ends: exit codes, one clear line on stderr, a traceback only where it is asked for."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import click

from onnxcomp.errors import OnnxcompError, memory_wanted

__all__ = [
    "BUG",
    "CLOSED_PIPE",
    "INTERRUPTED",
    "USAGE",
    "Command",
    "Commands",
    "Group",
    "clean",
    "common_options",
]

USAGE, BUG, INTERRUPTED, CLOSED_PIPE = 2, 70, 130, 141
"""Exit codes that no class in `onnxcomp.errors` has; CLOSED_PIPE is what a shell reports for SIGPIPE."""

F = TypeVar("F", bound=Callable[..., Any])

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of text, and so what a name seems to be."""


def clean(text: str) -> str:
    """Return `text` without what a terminal obeys or hides: control characters (line breaks and tabs stay)."""
    return "".join(c for c in text if c in "\n\t" or (c.isprintable() and c not in _BIDI))


class Command(click.Command):
    """A command whose help ends in `examples`: lines that can be pasted into a shell as they are."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, unwrapped."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"  {example}\n")


class Group(click.Group):
    """A group of such commands."""

    command_class = Command


class Commands(Group):
    """The group of all commands. Every way to end has its exit code (see `onnxcomp.errors`)."""

    group_class = Group
    debug = False

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run the command line and exit."""
        self.debug = False
        code = USAGE
        try:
            with warnings.catch_warnings():
                if not sys.warnoptions:
                    # Warnings of libraries mean their developers, not the user of a command.
                    warnings.simplefilter("ignore")
                done = super().main(
                    args, prog_name or "onnxcomp", complete_var, standalone_mode=False, **extra
                )
                code = done if isinstance(done, int) else 0
            sys.stdout.flush()
        except (click.Abort, KeyboardInterrupt) as problem:
            # SIGTERM and SIGHUP come as an interrupt with an exit code of its own, which click wraps.
            asked = problem if isinstance(problem, KeyboardInterrupt) else problem.__cause__
            code = self._fail(getattr(asked, "exit_code", INTERRUPTED), "interrupted; nothing was written")
        except click.ClickException as problem:
            problem.show()
        except OnnxcompError as problem:
            code = self._fail(problem.exit_code, str(problem))
        except (BrokenPipeError, SystemExit):
            # Whoever read our output has seen enough (click exits by itself then). The interpreter must not complain
            # when it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = CLOSED_PIPE
        except OSError as problem:
            name = f"{problem.filename}: " if problem.filename else ""
            code = self._fail(USAGE, f"{name}{problem.strerror or problem}")
        except MemoryError as problem:
            code = self._fail(
                USAGE,
                f"this takes {memory_wanted(problem)}; give fewer samples or smaller sizes (--set-shape)",
            )
        except Exception as problem:  # noqa: BLE001 - the last door: whatever is left is a bug of ours
            reason = " ".join(f"{type(problem).__name__}: {problem}".split())
            code = self._fail(BUG, f"a bug of onnxcomp, please report it (--debug shows where): {reason}")
        sys.exit(code)

    def _fail(self, code: int, message: str) -> int:
        if self.debug:
            traceback.print_exc()
        click.echo(f"onnxcomp: {clean(message)}", err=True)
        return code


def _remember_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    command = context.find_root().command
    if isinstance(command, Commands):
        command.debug = command.debug or value


def common_options(function: F) -> F:
    """Add the options that every command has: --quiet and --debug."""
    function = click.option("-q", "--quiet", is_flag=True, help="Say nothing on stderr but errors.")(function)
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_remember_debug,
        help="Show the traceback of an error.",
    )(function)
