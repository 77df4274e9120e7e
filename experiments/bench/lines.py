"""The lines of the benchmark: what is measured, on which cases, by which commands, and the ratio to reach.

A *line* (sft, reward, ppo ...) has *cases* (a model, data, what is trained). Each case has our side and those of its
peers by name. A side is a command, written as it stands after the interpreter: a script in this folder and its options.
run.py adds ``--seed N``, other in each round, runs it in the repository's root with one thread, and takes the last line
of its standard output, one JSON object:

    {"cpu_s": 3.1, "wall_s": 3.3, "peak_rss_mb": 640, "tokens": 9120, "loss": 2.31}

``cpu_s`` and ``wall_s`` are of the measured part alone, after a warm-up. What else there is, the measures of the line
may use, and ``agree`` names the figures that must come out alike on all sides of a case (the loss reached, say).

A *measure* makes one number of that object. All ratios are **ours ÷ theirs**, round by round: where more is better
they are to reach a goal from below, where less is better from above. A goal belongs to a peer's side, by measure:
``Side("sft/trl.py --packing", {"tokens/s": 1.4})``. A goal that names no peer (one second, two percent) is a *limit*
of the case: the ratio is then ours ÷ limit, and to be at most 1.

    LINES["sft"] = Line(
        title="...", measures=[Measure("tokens/s", lambda run: run["tokens"] / run["cpu_s"], more=True)],
        cases={"exchanges, tiny, full": Case(ours=Side("sft/ours.py --rows R"), peers={"TRL": Side("...", {...})})},
        prepare=["sft/prepare.py {data}/oasst_trees_60.jsonl"], needs=["oasst_trees_60.jsonl"], minutes=4)

``prepare`` are commands that run once before the line; ``{data}`` is the folder of the public data, and a line whose
``needs`` are not in it is left out. ``warm`` lines spare the imports: the libraries that a script imports at its top
are imported once, and each run is a fork of that process (see warm.py). So such a script does nothing at its top but
import, and the rest under ``if __name__ == "__main__"``. Lines that measure a start are not warm. ``brief`` cases are
those of a plain ``make bench``; all others have to be asked for (``--all``, or by name).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from scaling.points import POINTS, PROMPTS, name, options, prompts

OURS = ".venv/bin/python"
PPO_TASK = "--model src/manners/models/tiny --prompts outputs/bench/ppo/prompts.jsonl --iterations 2"
TRL_112 = "outputs/bench/trl112/bin/python"  # the last TRL with a PPOTrainer; ppo/prepare.py makes it


@dataclass(frozen=True)
class Measure:
    name: str  # with its unit
    of: Callable[[dict], float]  # from the JSON of a run
    more: bool = False  # whether more is better
    form: str = ",.0f"  # how the table writes it


@dataclass(frozen=True)
class Side:
    command: str
    goals: dict[str, float] = field(default_factory=dict)  # of a peer: measure → ours ÷ theirs to reach
    python: str = OURS


@dataclass(frozen=True)
class Case:
    ours: Side
    peers: dict[str, Side]
    limits: dict[str, float] = field(default_factory=dict)  # measure → the most it may be, whatever peers do
    brief: bool = True


@dataclass(frozen=True)
class Line:
    title: str
    measures: list[Measure]
    cases: dict[str, Case]
    prepare: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    agree: list[str] = field(default_factory=list)
    minutes: float = 4.0  # no round begins later
    warm: bool = True


def sft() -> Line:
    """Lengths vary in single exchanges and do not in whole conversations, where length-grouping changes nothing."""
    speed = Measure("tokens/s of CPU", lambda run: run["tokens"] / run["cpu_s"], more=True)
    folder = "outputs/bench/sft"
    models = {"tiny": "src/manners/models/tiny", "8 layers": f"{folder}/eight --batch 4"}
    steps = {"exchanges": 4, "conversations": 2}  # fewer rows are no longer sorted into batches worth the name
    kinds = {"LoRA": " --lora", "full": ""}
    # name: options, the goal where lengths vary, the goal where they do not (None: not run there)
    peers = {
        "TRL, default": ("peer.py", 2.5, 1.4),
        "TRL, length-grouped": ("peer.py --grouped", 1.4, None),
        "TRL, packed": ("peer.py --packed", 1.4, None),
        "TRL, one row at a time": ("peer.py --single", 1.4, 1.4),
        "transformers Trainer": ("peer.py --trainer", 1.4, 1.4),
        "bare loop": ("bare.py", None, 0.95),
        "bare loop, sorted": ("bare.py --sorted", 0.95, None),
    }
    compiled = {("conversations", "tiny", "full"), ("conversations", "tiny", "LoRA"), ("exchanges", "tiny", "full")}
    cases = {}
    for rows, at in (("exchanges", 1), ("conversations", 2)):
        for model, shape in models.items():
            for kind, option in kinds.items():
                task = f" --rows {folder}/{rows}.jsonl --model {shape} --steps {steps[rows]}{option}"
                sides = {
                    name: Side(f"sft/{peer[0]}{task}", {speed.name: peer[at]})
                    for name, peer in peers.items()
                    if peer[at]
                }
                brief = (rows, model, kind) in {("exchanges", "tiny", "LoRA"), ("conversations", "tiny", "full")}
                ours = f"sft/ours.py{task}" + (" --apart" if rows == "exchanges" else "")
                cases[f"{rows}, {model}, {kind}"] = Case(Side(ours), sides, brief=brief)
                if (rows, model, kind) in compiled:
                    plain = {peer: side for peer, side in sides.items() if not peer.startswith("bare")}
                    faster = {f"{peer}, compiled": Side(f"{s.command} --compile", s.goals) for peer, s in plain.items()}
                    case = Case(Side(f"{ours} --compile"), plain | faster, brief=False)
                    cases[f"{rows}, {model}, {kind}, compiled"] = case
    return Line(
        "supervised fine-tuning on OpenAssistant's trees",
        [speed],
        cases,
        prepare=[f"sft/prepare.py {{data}}/oasst_trees_60.jsonl {folder}"],
        needs=["oasst_trees_60.jsonl"],
        agree=["loss"],
        minutes=11.0,
    )


def reward() -> Line:
    speed = Measure("examples/s of CPU", lambda run: run["examples"] / run["cpu_s"], more=True)
    folder = "outputs/bench/reward"
    models = {"4 layers": f"{folder}/small --steps 12", "MiniLM's shape": f"{folder}/minilm --steps 8"}
    scores = {"Trainer, default": ("peer.py", 2.0), "Trainer, length-grouped": ("peer.py --grouped", 2.0)}
    kinds = {"scores": ("", scores), "pairs": (" --pairs", {"TRL RewardTrainer": ("peer.py", 2.0)})}
    cases = {}
    for kind, (option, peers) in kinds.items():
        for model, shape in models.items():
            task = f" --rows {folder}/requests.jsonl --model {shape}{option}"
            both = peers | {"bare loop, sorted": ("bare.py", 0.95)}
            sides = {name: Side(f"reward/{script}{task}", {speed.name: goal}) for name, (script, goal) in both.items()}
            cases[f"{kind}, {model}"] = Case(Side(f"reward/ours.py{task} --apart"), sides, brief=model == "4 layers")
    file = "stanford_politeness_wikipedia.annotated.csv"
    return Line(
        "a reward model from the Stanford Politeness Corpus, BERT's shape at random",
        [speed],
        cases,
        prepare=[f"reward/prepare.py {{data}}/{file} {folder}"],
        needs=[file],
        agree=["loss"],
        minutes=7.0,
    )


def ppo() -> Line:
    """The sides print a figure for each iteration, of which the first is a warm-up."""
    seconds = Measure("CPU, s an iteration", lambda run: median(run["cpu_s"][1:]), form=".2f")
    memory = Measure("peak memory above the start, MB", lambda run: run["peak_rss_mb"] - run["rss_start_mb"])
    # The tiny model's replies end early: after some nine tokens of 48.
    cases = {
        "LoRA": (" --lora", "", 0.25),
        "full": (" --full", "", 0.25),
        "LoRA, 1 epoch": (" --lora --epochs 1", "", 0.25),
        "full, 1 epoch": (" --full --epochs 1", "", 0.25),
        "LoRA, replies of one length": (" --lora --no-stop --new-tokens 16", "", 1 / 3),
        "LoRA, critic an adapter": (" --lora", " --critic adapter", 0.25),
        # Where all of 64 rows would take the peer more memory than the machine has.
        "LoRA, 152k vocabulary, 1 epoch": (
            " --lora --epochs 1 --batch 32 --new-tokens 24 --model outputs/bench/rloo/large", "", 1 / 3,
        ),
    }  # fmt: skip
    return Line(
        "PPO on the packaged tiny model ([what differs](ppo/README.md))",
        [seconds, memory],
        {
            name: Case(
                Side(f"ppo/ours.py {PPO_TASK}{both}{own}"),
                {
                    "TRL 1.12": Side(
                        f"ppo/peer.py {PPO_TASK}{both}", {seconds.name: goal, memory.name: 0.4}, python=TRL_112
                    )
                },
                brief=name in ("LoRA", "full"),
            )
            for name, (both, own, goal) in cases.items()
        },
        prepare=["ppo/prepare.py {torch_index}", "rloo/prepare.py"],
        agree=[],
        minutes=8.0,
    )


def generation() -> Line:
    speed = Measure("tokens/s of CPU", lambda run: run["tokens"] / run["cpu_s"], more=True)
    cases = {}
    for words, vocabulary, goal in (("3k", "own", 1.3), ("152k", "large", 2.5)):
        for ends, option in (("replies end", ""), ("all of 48 tokens", " --no-stop")):
            task = f" --vocabulary {vocabulary}{option}" + (" --batches 1" if vocabulary == "large" else "")
            peer = {"transformers": Side(f"generation/peer.py{task}", {speed.name: goal})}
            cases[f"{words}, {ends}"] = Case(Side(f"generation/ours.py{task}"), peer, brief=not option)
    return Line("64 sampled replies at once", [speed], cases, agree=["greedy", "mean_length"], minutes=6.0)


def start() -> Line:
    cpu, wall = (
        Measure("CPU, s", lambda run: run["cpu_s"], form=".2f"),
        Measure("wall, s", lambda run: run["wall_s"], form=".2f"),
    )
    template = Path("outputs/bench/start/template").exists()  # see start/prepare.py
    peers = {"TRL": "trl"} | ({"lightning-hydra-template": "template"} if template else {})
    cases = {}
    for asked, what in (("--help", "help"), ("a mistyped key", "typo"), ("to the first loss", "step")):
        more = {"TRL, its script alone": "trl-script"} if what == "step" else {}
        sides = {
            name: Side(f"start/clock.py {side} {what}", {cpu.name: 1 / 3}) for name, side in (peers | more).items()
        }
        limits = {} if what == "step" else {wall.name: 1.0}
        cases[asked] = Case(Side(f"start/clock.py ours {what}"), sides, limits)
    # A mistake takes the peers as long as their help, which the brief cases have already: there only ours has a turn.
    beside = cases["a mistyped key"]
    cases["a mistyped key, peers too"] = replace(beside, brief=False)
    cases["a mistyped key"] = replace(beside, peers={})
    return Line("start", [cpu, wall], cases, prepare=["start/prepare.py"], minutes=6.5, warm=False)


def tracking() -> Line:
    cost = Measure("step with MLflow ÷ without, CPU", lambda run: run["cpu_s"] / run["off_cpu_s"], form=".3f")
    side = " --windows 8"
    case = Case(Side(f"tracking/ours.py{side}"), {"MLFlowLogger": Side(f"tracking/peer.py{side}")}, {cost.name: 1.02})
    return Line("the cost of tracking", [cost], {"SFT, tiny, LoRA": case}, agree=["loss"], minutes=4.5)


def sweep() -> Line:
    beyond = Measure("CPU, s a job beyond its training", lambda run: run["later_cpu_s"], form=".2f")
    case = Case(Side("sweep/jobs.py --together"), {"a process each": Side("sweep/jobs.py")}, {beyond.name: 1.0})
    return Line("a sweep of four small jobs", [beyond], {"four seeds": case}, minutes=5.5, warm=False)


def rloo() -> Line:
    seconds = Measure("CPU, s an iteration", lambda run: run["cpu_s"] / run["iterations"], form=".2f")
    memory = Measure("peak memory above the start, MB", lambda run: run["above_start_mb"])
    cases = {
        "LoRA": (" --lora --iterations 2", True),
        "full": (" --iterations 2", True),
        "LoRA, 4 epochs": (" --lora --iterations 1 --epochs 4", False),
        "full, 4 epochs": (" --iterations 1 --epochs 4", False),
        "LoRA, 152k vocabulary": (" --lora --iterations 1 --vocabulary large", False),
    }
    made = {
        name: Case(
            Side(f"rloo/ours.py{task}"), {"TRL 1.16": Side(f"rloo/peer.py{task}", {seconds.name: 0.7})}, brief=brief
        )
        for name, (task, brief) in cases.items()
    }
    return Line(
        "RLOO on the packaged tiny model",
        [seconds, memory],
        made,
        prepare=["rloo/prepare.py"],
        agree=["score", "length"],
        minutes=5.0,
    )


def scaling() -> Line:
    seconds = Measure("CPU, s a step", lambda run: run["cpu_s"] / run["steps"], form=".2f")
    memory = Measure("peak memory above the start, MB", lambda run: run["above_start_mb"])
    cases = {
        name(p): Case(
            Side(f"scaling/ours.py {options(p)}"), {"TRL": Side(f"scaling/peer.py {options(p)}")}, brief=False
        )
        for p in POINTS
    }
    return Line("growth of a training step", [seconds, memory], cases, prepare=["scaling/prepare.py"], agree=["loss"])


def growth() -> Line:
    """The number of prompts is a measure of PPO: of an iteration, in one pass over its replies."""
    line = ppo()
    cases = {
        prompts(count): Case(
            Side(f"ppo/ours.py {PPO_TASK} --lora --epochs 1 --batch {count}"),
            {"TRL": Side(f"ppo/peer.py {PPO_TASK} --lora --epochs 1 --batch {count}", python=TRL_112)},
            brief=False,
        )
        for count in PROMPTS
    }
    return Line("growth of a PPO iteration", line.measures, cases, prepare=line.prepare, minutes=6.0)


LINES: dict[str, Line] = {
    "sft": sft(),
    "reward": reward(),
    "ppo": ppo(),
    "rloo": rloo(),
    "generation": generation(),
    "start": start(),
    "tracking": tracking(),
    "sweep": sweep(),
    "scaling": scaling(),
    "growth": growth(),
}
