"""``--help``: every group with its choices, every option with its value and meaning."""

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from manners.config.schema import is_schema, options
from manners.runtime.paths import CONF

WIDE = 130  # columns of a terminal that has room for a table of the options
MAX_VALUE = 60  # letters of a value: a longer one would leave the meaning no room
EXAMPLES = {
    "train": {
        "": "SFT of SmolLM2-135M on strictbot",
        "method=ppo": "PPO, after the SFT policy and the reward model that it needs",
        "method=reward, rloo, dpo or kto": "a reward model alone, or another method",
        "experiment=strictbot": "a recipe from conf/experiment",
        "experiment=chatbot debug=quick": "a short trial of one: 100 rows, 20 steps",
        "--config-dir DIR experiment=mine": "your own recipe, in DIR/experiment/mine.yaml",
        "dataset=jsonl dataset.path=my.jsonl": "your own data",
        "preview=true": "print examples as the model sees them",
        "estimate=true": "peak memory, time, and what would make it fit",
        "-m seed=1,2,3": "one run for each value",
        "--cfg job": "print the config and stop",
    },
    "evaluate": {
        "": "the latest run beside the model that it was trained from",
        "run=\\[RUN,RUN,gpt2]": "several, by id, name, folder or hub name",
        "reward_from=auto turns=8": "with the scores of its reward model, and conversations of eight turns",
        "reward_from=auto best_of=16": "and the best of sixteen sampled replies by that reward model",
        "dataset=jsonl dataset.path=my.jsonl": "on prompts of your own",
        "benchmarks=\\[my_task] include_path=DIR": "and on a task of lm-eval, from its yaml file in DIR",
    },
    "chat": {
        "": "chat with the latest run; /help lists the commands",
        '-p "one prompt"': "one answer, and no more",
        "adapter_scale=1.5": "scale up what training changed",
        "role=user": "the model plays the human",
        "self_chat=true user=RUN assistant=RUN": "two models talk",
    },
    "web": {
        "": "the latest run beside its base: compare, vote, results",
        "run=\\[RUN,RUN]": "several runs",
        "prompts=test": "vote on test rows; or prompts=FILE.jsonl",
        "votes=my_votes.jsonl": "append the votes to a file of your choice",
    },
    "distill": {
        "": "SmolLM2, asked for strictbot's manners, in outputs/distilled.jsonl",
        "run=latest dataset=strictbot reward_from=RUN": "replies of a run, the best by a reward model",
        "dataset=jsonl dataset.path=my.jsonl system='Be brief.' reward_from=RUN": "on prompts of your own",
    },
}
COMMANDS = {"web": "python -m manners.web", "distill": "python -m manners.distill"}


def print_help(script: str, cfg: DictConfig) -> None:
    """Print examples, groups and options of a script, with the values of this command line."""
    console = Console(soft_wrap=True)
    command = COMMANDS.get(script, f"python {script}.py")
    console.print(f"[bold]{command}[/] \\[GROUP=CHOICE ...] \\[KEY=VALUE ...] \\[-m]\n")
    width = 3 + max(len(words.replace("\\", "")) for words in EXAMPLES[script])
    for words, meaning in EXAMPLES[script].items():
        console.print(f"  {command} {words}{' ' * (width - len(words.replace(chr(92), '')))}{meaning}")
    console.print()
    groups = [f for f in sorted(CONF.iterdir()) if f.is_dir()]
    groups = [f for f in groups if script == "train" or f.name in cfg]
    table = Table("group", "choice", "what it is", box=None, header_style="bold")
    for folder in groups:
        for i, file in enumerate(sorted(folder.glob("*.yaml"))):
            table.add_row(f"[cyan]{folder.name}[/]" if i == 0 else "", file.stem, first_comment(file.read_text()))
    console.print(table)
    console.print("\nThe values below are those of this command line: try GROUP=CHOICE ... --help.")
    if console.width < WIDE:  # a table would wrap every two words
        for name, value, meaning in option_rows(cfg):
            console.print(f"{name}={value}\n    {meaning}")
        return
    table = Table(Column("option", no_wrap=True), Column("value", overflow="fold"), "meaning", box=None)
    for row in option_rows(cfg):
        table.add_row(*row)
    console.print(table)


def first_comment(text: str) -> str:
    """The first comment of a config file, which says what the choice is."""
    lines = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    return next((line for line in lines if not line.startswith("@package")), "")


def option_rows(node: DictConfig, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Name, value and meaning of each option of a group, and then of the groups in it, in rich's markup."""
    groups = []
    for name, field in options(OmegaConf.get_type(node)).items():
        value = "???" if OmegaConf.is_missing(node, name) else node._get_node(name)
        if isinstance(value, DictConfig) and is_schema(OmegaConf.get_type(value)):
            groups.append((name, value))
            continue
        choices = field.metadata.get("choices", ())
        meaning = field.metadata["help"] + (f" ({', '.join(choices)})" if choices else "")
        written = "null" if value != "???" and node[name] is None else str(value)
        shown = written if len(written) <= MAX_VALUE else written[: MAX_VALUE - 1] + "…"
        yield f"{path}[cyan]{name}[/]", escape(shown), escape(meaning)
    for name, value in groups:
        yield from option_rows(value, f"{path}{name}.")
