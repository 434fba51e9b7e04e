"""The `ilrec` command: each subcommand parses its options, then calls one function of the pipeline."""

from __future__ import annotations

import argparse
import copy
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .pipeline import item_options as i
from .pipeline import options as o


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        argv (`list[str]`, *optional*): Arguments without the program's name; those of the process by default.

    Returns:
        `int`: 0, or 2 where something the user gave cannot be used; one line on standard error then says what.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = _chosen(arguments)
    # Read when torch is loaded. Threads that spin while they wait are no faster for models this small, and many times
    # slower as soon as another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _use_one_gpu()
    summary, dataclasses, function = COMMANDS[chosen]
    try:
        parsed = parse_options(f"ilrec {chosen}", summary, dataclasses, arguments[len(chosen.split()) :])
        with o.input_errors():
            # A report repeats the command it came from.
            function(*parsed, *([shlex.join(["ilrec", *arguments])] if chosen == "run" else []))
    except o.InputError as error:
        sys.stderr.write(f"ilrec {chosen}: error: {error}\n")
        return 2
    return 0


def _use_one_gpu() -> None:
    """One process trains on one GPU, as TRL demands; `accelerate launch` and `torchrun` give each process its own."""
    several = len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) > 1
    if several and not {"LOCAL_RANK", "CUDA_VISIBLE_DEVICES"} & os.environ.keys():
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"
        sys.stderr.write("ilrec: using the first GPU alone; set CUDA_VISIBLE_DEVICES to choose another\n")


def _chosen(arguments: list[str]) -> str:
    """The command that arguments begin with; one of a group has two words, such as `items build`."""
    group = f"{arguments[0]} " if arguments and any(name.startswith(f"{arguments[0]} ") for name in COMMANDS) else ""
    description = "Fine-tune language models to recommend items."
    parser = argparse.ArgumentParser(prog=f"ilrec {group}".strip(), description=description)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (summary, _, _) in COMMANDS.items():
        if name.startswith(group):
            # Options are the subcommand's own business: its parser is built only when it is called.
            commands.add_parser(name.removeprefix(group), help=summary, add_help=False)
    place = 1 if group else 0
    return group + str(parser.parse_args(arguments[place : place + 1]).command)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows one spelling of each flag, and a default that is a value; the help says what stands for another."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        shown.option_strings = [flag for flag in action.option_strings if "-" not in flag[2:]]
        return super()._format_action_invocation(shown)


def parse_options(program: str, summary: str, dataclasses: Sequence[Any], arguments: list[str]) -> tuple[Any, ...]:
    """
    Options from flags and from the YAML file of `--config`.

    Args:
        program (`str`): Name of the command in messages.
        summary (`str`): One line on what it does.
        dataclasses (`list[type]`): Classes of options; `_more` of a class names those that `--help` leaves out.
        arguments (`list[str]`): The flags.

    Raises:
        `InputError`: where the file cannot be used.
    """
    from trl import TrlParser

    more = {name for options in dataclasses for name in getattr(options, "_more", ())}
    # The parser speaks of --config nowhere in its help.
    epilog = "--config FILE reads options from a YAML file; flags override it."
    if more:
        epilog += f" {len(more)} further options, as flags or in the file: docs/cli.md."
    texts = {"description": f"{summary}.", "epilog": epilog}
    parser = TrlParser(dataclasses, prog=program, formatter_class=_HelpFormatter, **texts)
    for action in parser._actions:
        if action.dest in more:
            action.help = argparse.SUPPRESS
    try:
        if "--config" in arguments[:-1]:
            _refuse_repeated_keys(arguments[arguments.index("--config") + 1])
        return parser.parse_args_and_config(arguments)
    except (ValueError, OSError, IndexError) as error:
        message = "--config needs the name of a file" if isinstance(error, IndexError) else error
        raise o.InputError(" ".join(str(message).split())) from error
    except Exception as error:
        # A YAML error is of a class that only PyYAML knows.
        if type(error).__module__.startswith("yaml"):
            raise o.InputError(f"the file of --config is not YAML: {' '.join(str(error).split())}") from error
        raise


def _refuse_repeated_keys(file: str) -> None:
    """Refuse a YAML file that says something twice, of which PyYAML would take the last without a word."""
    import yaml  # what TRL reads the file with

    with open(file) as stream:
        nodes = [yaml.compose(stream)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                nodes.append(value)
                if not isinstance(key, yaml.ScalarNode):
                    continue
                line = key.start_mark.line + 1
                if key.value in lines:
                    before = lines[key.value]
                    raise o.InputError(f"{file} has {key.value!r} in line {before} and in line {line}; leave one out")
                lines[key.value] = line
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value


def _prepare(data: o.DataOptions, model: o.ModelNameOptions, options: o.PrepareOptions) -> None:
    from .pipeline.prepare import prepare
    from .report.console import list_table, show

    prepared = prepare(data, model.model)
    prepared.save(options.output_dir)
    summary = prepared.summary()
    sizes = {name: value for name, value in vars(summary).items() if name != "notes"}
    show(list_table(list(sizes), [list(map(str, sizes.values()))]))
    for line in [*summary.notes, f"Written to {options.output_dir}"]:
        show(line)


def _sasrec(stage: o.StageOptions, teacher: o.TeacherOptions) -> None:
    from .pipeline.run import run_sasrec

    run_sasrec(stage, teacher)


def _train(
    stage: o.StageOptions,
    method: o.MethodOptions,
    model: o.ModelOptions,
    teacher: o.TeacherOptions,
    training: o.TrainingOptions,
    evaluation: o.EvaluationOptions,
) -> None:
    from .pipeline.run import run_train

    run_train(stage, method, o.PipelineOptions(o.DataOptions(), model, teacher, training, evaluation))


def _evaluate(options: o.EvaluateOptions, evaluation: o.RankingOptions) -> None:
    from .evaluation.process_group import process_rank
    from .pipeline.evaluate import evaluate
    from .report.console import metrics_table, show

    summary = evaluate(options, evaluation)
    if process_rank()[0] == 0:
        show(metrics_table(summary))


def _recommend(options: o.RecommendOptions) -> None:
    from .pipeline.recommend import recommend_items
    from .report.console import list_table, show

    rows = [
        [str(rank), item, text, f"{score:.3f}"] for rank, (item, text, score) in enumerate(recommend_items(options), 1)
    ]
    show(list_table(["rank", "item", "text", "log-probability"], rows))


def _export(options: o.ExportOptions) -> None:
    from .pipeline.export import export
    from .report.console import list_table, show

    rows = [[name, f"{size / 1e3:,.1f} kB"] for name, size in export(options).items()]
    show(list_table(["file", "size"], rows))
    show(f"Written to {options.output_dir}")


def _run(
    data: o.DataOptions,
    model: o.ModelOptions,
    teacher: o.TeacherOptions,
    training: o.TrainingOptions,
    evaluation: o.EvaluationOptions,
    options: o.RunOptions,
    command: str,
) -> None:
    from .pipeline.run import run

    run(o.PipelineOptions(data, model, teacher, training, evaluation), options, command)


def _items_build(
    source: i.ItemSourceOptions, text: i.TextVectorOptions, collaborative: i.CollaborativeOptions, code: i.CodeOptions
) -> None:
    from .pipeline.build_items import build_items

    _show_items(build_items(source, text, collaborative, code), source.output_dir)


def _items_add(source: i.ItemSourceOptions, new: i.NewItemOptions) -> None:
    from .pipeline.build_items import add_items

    _show_items(add_items(source, new), source.output_dir)


def _items_report(options: i.ItemReportOptions) -> None:
    from .pipeline.build_items import report_items

    _show_items(report_items(options), options.output_dir)


def _show_items(figures: dict[str, Any], folder: str) -> None:
    from .report.console import list_table, show
    from .report.semantic_id_report import summary_rows

    show(list_table(*summary_rows(figures)))
    show(f"{figures['items']:,} items, {figures['collisions']:,} of them with the ID of an item before them")
    show(f"Report: {folder}/report.md")


def _env() -> None:
    from .pipeline.environment import device, revision, versions
    from .report.console import list_table, show

    rows = [*versions().items(), ("revision", revision()), ("device", device())]
    show(list_table(["what", "value"], rows))


COMMANDS: dict[str, tuple[str, list[Any], Callable[..., None]]] = {
    "prepare": (
        "Read interactions and items; build splits, tokenizer and trie",
        [o.DataOptions, o.ModelNameOptions, o.PrepareOptions],
        _prepare,
    ),
    "sasrec": ("Train SASRec on prepared data", [o.StageOptions, o.TeacherOptions], _sasrec),
    "train": (
        "Fine-tune a language model on prepared data, by ILRec or plain SFT",
        [o.StageOptions, o.MethodOptions, o.ModelOptions, o.TeacherOptions, o.TrainingOptions, o.EvaluationOptions],
        _train,
    ),
    "evaluate": ("Rank the catalogue for every user of a split", [o.EvaluateOptions, o.RankingOptions], _evaluate),
    "recommend": ("Recommend items to one user", [o.RecommendOptions], _recommend),
    "export": ("Write a trained model with all that recommending takes", [o.ExportOptions], _export),
    "run": (
        "Prepare, train SASRec, SFT and ILRec, evaluate all, and report",
        [o.DataOptions, o.ModelOptions, o.TeacherOptions, o.TrainingOptions, o.EvaluationOptions, o.RunOptions],
        _run,
    ),
    "items build": (
        "Give every item of a catalogue a semantic ID",
        [i.ItemSourceOptions, i.TextVectorOptions, i.CollaborativeOptions, i.CodeOptions],
        _items_build,
    ),
    "items add": (
        "Give new items semantic IDs; those of the others stay",
        [i.ItemSourceOptions, i.NewItemOptions],
        _items_add,
    ),
    "items report": ("Report on semantic IDs: use, tree, neighbours", [i.ItemReportOptions], _items_report),
    "env": ("Show versions and device", [], _env),
}


if __name__ == "__main__":
    sys.exit(main())
