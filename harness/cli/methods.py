"""The command `lorebench methods`: list the methods with their options, stages and sources."""

from __future__ import annotations


def methods() -> None:
    """List the methods with their options, stages and sources."""
    from rich.console import Console
    from rich.table import Table

    from harness.plugins import find
    from harness.registry import available

    table = Table(title="methods", header_style="bold", show_lines=True)
    for column in ("name", "options (default)", "stages", "source"):
        table.add_column(column, overflow="fold")
    for name in sorted(available()):
        cls = find(name)
        options = {
            key: item.get_default(call_default_factory=True) for key, item in cls.Config.model_fields.items()
        }
        shown = "\n".join(f"{key} ({value})" for key, value in options.items())
        try:
            stages = ", ".join(sorted(cls(cls.Config()).caps.stages))
        except ValueError:  # an option without a default
            stages = "-"
        table.add_row(name, shown, stages, " ".join(cls.source.split()))
    Console().print(table)
