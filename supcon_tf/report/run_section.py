"""The first section: what ran, and the command that repeats it."""

from __future__ import annotations

from supcon_tf.report.content import ReportData, Section
from supcon_tf.report.markup import (
    Html,
    facts_list,
    joined,
    name_of,
    number,
    paragraphs,
    table,
    tag,
)


def run_section(data: ReportData) -> Section:
    """Shows recipe, flags, data, environment, seconds per stage, and the command."""
    facts = data.facts
    recipe = name_of(facts.recipe) if facts.recipe else "none"
    body = [
        facts_list([("Model directory", name_of(facts.model_dir)), ("Recipe", recipe)]),
        tag("h3", "Flags that differ"),
        _flag_table(facts),
        tag("h3", "Data"),
        facts_list([(key, name_of(value)) for key, value in facts.data]),
        tag("h3", "Stages"),
        _stage_table(facts),
        tag("h3", "Environment"),
        facts_list([(key, name_of(value)) for key, value in facts.environment]),
        tag("h3", "Run it again"),
        paragraphs("This command repeats the run in another model directory:"),
        code_block(facts.command),
    ]
    return Section("run", "What ran", joined(body))


def code_block(command: str) -> Html:
    """Returns a command, which scrolls if it is wider than the page."""
    return tag("pre", tag("code", command), tabindex=0, role="group", aria_label="Command")


def _flag_table(facts):
    origin = f"the recipe {facts.recipe}" if facts.recipe else "the defaults"
    if not facts.changed_flags:
        return joined(paragraphs(f"Every flag has the value of {origin}."))
    columns = ("Flag", "Stage", "Value", "Recipe" if facts.recipe else "Default")
    rows = [
        (tag("code", f"--{name}"), stage, name_of(value), name_of(default))
        for stage, name, value, default in facts.changed_flags
    ]
    return table(columns, rows, caption=f"Flags that differ from {origin}")


def _stage_table(facts):
    rows = [
        (
            stage,
            "" if steps is None else number(steps),
            "not recorded" if seconds is None else f"{seconds:,.1f} s",
            finished or "not finished",
        )
        for stage, steps, seconds, finished in facts.stages
    ]
    columns = ("Stage", "Steps", "Time", "Finished")
    return table(columns, rows, caption="Stages of the run, with their training time")
