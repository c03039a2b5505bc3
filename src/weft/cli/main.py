"""
`weft`: the table of commands, and the one place where an error becomes an exit code.

A command's module is imported only when that command runs, so that `weft --help` and completion stay fast. To add a
command: write `weft/cli/<name>.py` with a click command named `command`, and add a line to COMMANDS.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import MutableMapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

import click

from weft.errors import InvalidConfiguration, WeftError


class Entry(NamedTuple):
    """Where a command lives (`module:attribute`), what `weft --help` says of it, and under which heading."""

    target: str
    help: str
    section: str


RUN, CONFIGURE, OBSERVE, OTHER = "Run programs", "Configure", "Observe", "Other"

COMMANDS: dict[str, Entry] = {
    "up": Entry("weft.cli.up:command", "Start the mesh that weft.yaml describes.", RUN),
    "run": Entry("weft.cli.run:command", "Run one more program in a running mesh.", RUN),
    "exec": Entry("weft.cli.exec:command", "Run a command beside a running program.", RUN),
    "shell": Entry("weft.cli.shell:command", "Open a shell beside a running program.", RUN),
    "hot-restart": Entry(
        "weft.cli.hot_restart:command", "Replace proxies by new processes, without a lost request.", RUN
    ),
    "apply": Entry("weft.cli.apply:command", "Apply configuration, and wait until the proxies have it.", CONFIGURE),
    "get": Entry("weft.cli.get:command", "Show configuration objects.", CONFIGURE),
    "delete": Entry("weft.cli.delete:command", "Delete configuration objects.", CONFIGURE),
    "diff": Entry("weft.cli.diff:command", "Show what an apply would change.", CONFIGURE),
    "ca": Entry("weft.cli.ca:command", "Show the certificate authority, and rotate its keys.", CONFIGURE),
    "ps": Entry("weft.cli.ps:command", "List the programs of the mesh.", OBSERVE),
    "logs": Entry("weft.cli.logs:command", "Show the programs' output and their requests.", OBSERVE),
    "status": Entry("weft.cli.status:command", "Show each proxy: synced or not, identity, certificate.", OBSERVE),
    "metrics": Entry("weft.cli.metrics:command", "Show what the proxies count, or serve it to Prometheus.", OBSERVE),
    "why": Entry("weft.cli.why:command", "Explain where a request would go, and why.", OBSERVE),
    "proxy-config": Entry("weft.cli.proxy_config:command", "Show what a proxy has been told.", OBSERVE),
    "wait": Entry("weft.cli.wait:command", "Wait until every proxy has a revision.", OBSERVE),
    "doctor": Entry("weft.cli.doctor:command", "Say which modes this machine allows, and what is in the way.", OTHER),
    "version": Entry("weft.cli.version:command", "Show the versions of client, mesh and proxies.", OTHER),
    "control-plane": Entry("weft.cli.control_plane:command", "", ""),
}
"""In the order in which `--help` shows them. An entry without a section is hidden: weft starts it, not people."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of SIGINT, as shells have it."""

CLOSE_ENOUGH = 0.6
"""difflib's ratio from which a misspelt name is taken as meant; its own default."""


class Commands(click.Group):
    """A click group over COMMANDS that imports late, suggests names, and ends every error of weft's in one way."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, entry in COMMANDS.items() if entry.section]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if (entry := COMMANDS.get(name)) is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(unknown("command", args[0], self.list_commands(ctx)))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in (RUN, CONFIGURE, OBSERVE, OTHER):
            rows = [(name, entry.help) for name, entry in COMMANDS.items() if entry.section == section]
            with formatter.section(section):
                formatter.write_dl(rows, col_max=20)

    def main(self, *args: Any, **extra: Any) -> Any:
        standalone = extra.get("standalone_mode", True)
        extra["standalone_mode"] = False
        if not standalone:
            return super().main(*args, **extra)
        try:
            code = super().main(*args, **extra)
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except click.Abort:  # what click makes of Ctrl-C
            code = INTERRUPTED
        except WeftError as error:
            report(error)
            code = error.exit_code
        sys.exit(code if isinstance(code, int) else 0)


class ExampleCommand(click.Command):
    """A command whose `examples` are shown, as written, at the end of its help."""

    def __init__(self, *args: Any, examples: str = "", **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.strip().splitlines():
                    formatter.write(f"{'':>{formatter.current_indent}}{line.strip()}\n")
        super().format_epilog(ctx, formatter)


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """Return the sentence for a *name* that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=CLOSE_ENOUGH)
    text = f"There is no {what} {name!r}."
    return f"{text} Did you mean {near[0]!r}?" if near else f"{text} There are: {', '.join(known) or 'none'}."


def report(error: WeftError) -> None:
    """Print *error* on standard error, in the form that every command uses."""
    if isinstance(error, InvalidConfiguration):
        from weft.cli.problems import render_all  # excerpts need the files; only this error does

        click.echo(render_all(error.problems, getattr(error, "sources", {}), error.outcome), err=True)
        return
    click.echo(f"error: {error}", err=True)


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    invoke_without_command=True,
    no_args_is_help=True,
)
@click.option("-m", "--mesh", metavar="NAME", envvar="WEFT_MESH", help="Which mesh; needed only if several run.")
@click.option("--version", is_flag=True, help="Show the versions, as `weft version` does.")
@click.pass_context
def cli(ctx: click.Context, mesh: str | None, version: bool) -> None:
    """
    weft: a service mesh for the programs on this machine. No root, no cluster.

    `weft COMMAND --help` shows a command's options and examples.
    """
    settings: MutableMapping[str, Any] = ctx.ensure_object(dict)
    settings["mesh"] = mesh
    if version and ctx.invoked_subcommand is not None:
        ctx.fail("--version stands alone, without a command.")
    if ctx.invoked_subcommand is None:
        if not version:
            ctx.fail("Missing command.")
        command = cli.get_command(ctx, "version")
        assert command is not None
        with command.make_context("version", [], parent=ctx) as below:
            command.invoke(below)


def main() -> NoReturn:
    """Run the command line (the entry point `weft`)."""
    cli.main(prog_name="weft")
    raise AssertionError("click ends the process")


if __name__ == "__main__":
    main()
