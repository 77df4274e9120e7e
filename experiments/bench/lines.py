"""The lines of the benchmark: what is measured, in which cases, by which commands, and the goal for each ratio.

A *line* (sft, reward, ppo ...) has *cases* (a model, data, what is trained). Each case has our side and its peers by
name. A side is a command without the interpreter: a script in this folder and its options. run.py adds ``--seed N``, a
different seed in each round, runs the command in the repository root with one thread, and reads the last line of its
standard output, one JSON object:

    {"cpu_s": 3.1, "wall_s": 3.3, "peak_rss_mb": 640, "tokens": 9120, "loss": 2.31}

``cpu_s`` and ``wall_s`` cover the measured part only, after a warm-up. Measures may use any other key. ``outcomes``
names the keys that should agree on all sides of a case up to noise (the loss reached, say); the table shows them.

A *measure* computes one number from that object. All ratios are **ours ÷ theirs**, per round: a goal is a lower bound
where higher is better, otherwise an upper bound. Goals belong to a peer, by measure:
``Side("sft/trl.py --packing", {"tokens/s": 1.4})``; a measure whose goal is None is shown without one. A goal without a
peer (one second, two percent) is a *limit* of the case: the ratio is then ours ÷ limit and should be at most 1.

    LINES["sft"] = Line(
        title="...",
        measures=[Measure("tokens/s", lambda run: run["tokens"] / run["cpu_s"], higher_is_better=True)],
        cases={"exchanges, tiny, full": Case(ours=Side("sft/ours.py --rows R"), peers={"TRL": Side("...", {...})})},
        prepare=["sft/prepare.py {data}/oasst_trees_60.jsonl"], data_files=["oasst_trees_60.jsonl"], minutes=4)

``prepare`` commands run once before the line; ``{data}`` is the folder of the public data, and a line whose
``data_files`` are missing there is skipped. ``warm`` lines do not measure imports: the modules that a script imports at
its top are imported once, and each run is a fork of that process (see warm.py). Such a script must only import at its
top, and do the rest under ``if __name__ == "__main__"``. Lines that measure startup are not warm. ``default`` cases
are part of a plain ``make bench``; others must be requested (``--all``, or ``--cases``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median

from scaling.points import POINTS, PROMPT_COUNTS, case_name, command_options, ppo_case_name

OURS = ".venv/bin/python"
PPO_TASK = "--model src/manners/models/tiny --prompts outputs/bench/ppo/prompts.jsonl --iterations 2"
TRL_112 = "outputs/bench/trl112/bin/python"  # the last TRL with a PPOTrainer; created by ppo/prepare.py

TEMPLATE = "outputs/bench/start/template"  # see start/prepare.py
SMOLLM = "outputs/bench/smollm2-135m"  # SmolLM2-135M-Instruct, see smollm.py


@dataclass(frozen=True)
class Measure:
    name: str  # with its unit
    value: Callable[[dict], float]  # from the JSON of a run
    higher_is_better: bool = False
    number_format: str = ",.0f"  # in the table


@dataclass(frozen=True)
class Side:
    command: str
    goals: dict[str, float | None] = field(default_factory=dict)  # of a peer: measure → goal for ours ÷ theirs
    python: str = OURS
    requires: str = ""  # a path without which the side is skipped; without that of ours, the case


@dataclass(frozen=True)
class Case:
    ours: Side
    peers: dict[str, Side]
    limits: dict[str, float] = field(default_factory=dict)  # measure → upper bound, independent of peers
    default: bool = True  # part of a plain ``make bench``


@dataclass(frozen=True)
class Line:
    title: str
    measures: list[Measure]
    cases: dict[str, Case]
    prepare: list[str] = field(default_factory=list)
    data_files: list[str] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)  # shown in the table: they must be alike on all sides
    minutes: float = 4.0  # no round starts later
    warm: bool = True


def sft() -> Line:
    """Exchanges vary in length; conversations fill the context, so that grouping them by length changes nothing."""
    speed = Measure("tokens/s of CPU", lambda run: run["tokens"] / run["cpu_s"], higher_is_better=True)
    memory = Measure("peak memory above startup, MB", lambda run: run["above_start_mb"])
    folder = "outputs/bench/sft"
    models = {"tiny": "src/manners/models/tiny", "8 layers": f"{folder}/eight --batch 4"}
    steps = {"exchanges": 4, "conversations": 2}  # with fewer rows, sorting by length has little to sort
    kinds = {"LoRA": " --lora", "full": ""}
    # name: script, goal where lengths vary, goal where they do not (None: not run)
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
    for rows, goal_index in (("exchanges", 1), ("conversations", 2)):
        for model, shape in models.items():
            for kind, option in kinds.items():
                task = f" --rows {folder}/{rows}.jsonl --model {shape} --steps {steps[rows]}{option}"
                sides = {
                    name: Side(f"sft/{peer[0]}{task}", {speed.name: peer[goal_index]})
                    for name, peer in peers.items()
                    if peer[goal_index]
                }
                default = (rows, model, kind) == ("conversations", "tiny", "full")
                ours = f"sft/ours.py{task}" + (" --microbatches" if rows == "exchanges" else "")
                cases[f"{rows}, {model}, {kind}"] = Case(Side(ours), sides, default=default)
                if (rows, model, kind) in compiled:
                    uncompiled = {peer: side for peer, side in sides.items() if not peer.startswith("bare")}
                    with_compile = {
                        f"{peer}, compiled": Side(f"{side.command} --compile", side.goals)
                        for peer, side in uncompiled.items()
                    }
                    case = Case(Side(f"{ours} --compile"), uncompiled | with_compile, default=False)
                    cases[f"{rows}, {model}, {kind}, compiled"] = case
    # In batches of eight, TRL's default would take the peer more memory than is free beside other jobs.
    task = f" --rows {folder}/exchanges-135m.jsonl --model {SMOLLM} --batch 4 --steps 2 --lora"
    peers = {
        "TRL, default": ("peer.py", {speed.name: 2.5, memory.name: 0.35}),
        "TRL, packed": ("peer.py --packed", {speed.name: 1.25, memory.name: None}),
        "TRL, one row at a time": ("peer.py --single", {speed.name: 1.25, memory.name: None}),
        "transformers Trainer": ("peer.py --trainer", {}),
        "bare loop, sorted": ("bare.py --sorted", {speed.name: 0.95}),
    }
    for precision, option in (("", ""), (", bf16", " --bf16")):
        sides = {name: Side(f"sft/{script}{task}{option}", goals) for name, (script, goals) in peers.items()}
        ours = Side(f"sft/ours.py{task} --microbatches{option}", requires=SMOLLM)
        cases[f"exchanges, 135M, LoRA{precision}"] = Case(ours, sides, default=not option)
    return Line(
        "supervised fine-tuning on OpenAssistant's trees",
        [speed, memory],
        cases,
        prepare=["smollm.py", f"sft/prepare.py {{data}}/oasst_trees_60.jsonl {folder}"],
        data_files=["oasst_trees_60.jsonl"],
        outcomes=["loss"],
        minutes=11.0,
    )


def reward() -> Line:
    speed = Measure("examples/s of CPU", lambda run: run["examples"] / run["cpu_s"], higher_is_better=True)
    folder = "outputs/bench/reward"
    models = {"4 layers": f"{folder}/small --steps 12", "MiniLM's shape": f"{folder}/minilm --steps 8"}
    scores = {"Trainer, default": ("peer.py", 2.0), "Trainer, length-grouped": ("peer.py --grouped", 2.0)}
    kinds = {"scores": ("", scores), "pairs": (" --pairs", {"TRL RewardTrainer": ("peer.py", 2.0)})}
    cases = {}
    for kind, (option, peers) in kinds.items():
        for model, shape in models.items():
            task = f" --rows {folder}/requests.jsonl --model {shape}{option}"
            scripts = peers | {"bare loop, sorted": ("bare.py", 0.95)}
            sides = {
                name: Side(f"reward/{script}{task}", {speed.name: goal}) for name, (script, goal) in scripts.items()
            }
            cases[f"{kind}, {model}"] = Case(
                Side(f"reward/ours.py{task} --microbatches"), sides, default=model == "4 layers"
            )
    file = "stanford_politeness_wikipedia.annotated.csv"
    return Line(
        "a reward model on the Stanford Politeness Corpus, random weights of BERT's architecture",
        [speed],
        cases,
        prepare=[f"reward/prepare.py {{data}}/{file} {folder}"],
        data_files=[file],
        outcomes=["loss"],
        minutes=7.0,
    )


def ppo() -> Line:
    """The sides print one number per iteration; the first iteration is a warm-up."""
    seconds = Measure("CPU, s per iteration", lambda run: median(run["cpu_s"][1:]), number_format=".2f")
    memory = Measure("peak memory above startup, MB", lambda run: run["peak_rss_mb"] - run["rss_start_mb"])
    # Replies of the tiny model end early, after some nine tokens of 48.
    cases = {
        "LoRA": (" --lora", "", 0.25),
        "full": (" --full", "", 0.25),
        "LoRA, 1 epoch": (" --lora --epochs 1", "", 0.25),
        "full, 1 epoch": (" --full --epochs 1", "", 0.25),
        "LoRA, replies of one length": (" --lora --no-stop --new-tokens 16", "", 1 / 3),
        "LoRA, critic an adapter": (" --lora", " --critic adapter", 0.25),
        # A batch of 64 rows would take the peer more memory than the machine has.
        "LoRA, 152k vocabulary, 1 epoch": (
            " --lora --epochs 1 --batch 32 --new-tokens 24 --model outputs/bench/rloo/large", "", 1 / 3,
        ),
    }  # fmt: skip
    ppo_cases = {
        name: Case(
            Side(f"ppo/ours.py {PPO_TASK}{options}{ours}"),
            {
                "TRL 1.12": Side(
                    f"ppo/peer.py {PPO_TASK}{options}", {seconds.name: goal, memory.name: 0.4}, python=TRL_112
                )
            },
            default=name == "full",
        )
        for name, (options, ours, goal) in cases.items()
    }
    for count in (16, 32):
        task = (
            f" --model {SMOLLM} --prompts outputs/bench/ppo/prompts-135m.jsonl --iterations 2 --lora --batch {count}"
            " --new-tokens 32 --epochs 2 --minibatches 2"
        )
        peer = Side(f"ppo/peer.py{task}", {seconds.name: 1 / 3, memory.name: 0.3}, python=TRL_112)
        ppo_cases[f"135M, LoRA, {count} prompts"] = Case(
            Side(f"ppo/ours.py{task} --microbatch-tokens 1024", requires=SMOLLM),
            {"TRL 1.12": peer},
            default=count == 16,
        )
    return Line(
        "PPO on the packaged tiny model and on SmolLM2-135M ([what differs](ppo/README.md))",
        [seconds, memory],
        ppo_cases,
        prepare=["smollm.py", "ppo/prepare.py {torch_index}", "rloo/prepare.py"],
        outcomes=[],
        minutes=8.0,
    )


def generation() -> Line:
    speed = Measure("tokens/s of CPU", lambda run: run["tokens"] / run["cpu_s"], higher_is_better=True)
    cases = {}
    for size, vocabulary, goal in (("3k", "own", 1.3), ("152k", "large", 2.5)):
        for ends, option in (("replies end", ""), ("all of 48 tokens", " --no-stop")):
            task = f" --vocabulary {vocabulary}{option}" + (" --batches 1" if vocabulary == "large" else "")
            peer = {"transformers": Side(f"generation/peer.py{task}", {speed.name: goal})}
            default = size == "152k" and not option
            cases[f"{size}, {ends}"] = Case(Side(f"generation/ours.py{task}"), peer, default=default)
    for rows, batches, goal in ((1, 4, 1.5), (32, 1, 2.0)):
        task = f" --model {SMOLLM} --rows {rows} --batches {batches}"
        peer = {"transformers": Side(f"generation/peer.py{task}", {speed.name: goal})}
        name = f"135M, {rows} row{'s' if rows > 1 else ''}"
        cases[name] = Case(Side(f"generation/ours.py{task}", requires=SMOLLM), peer)
    return Line(
        "sampled replies, 64 at once unless the case says otherwise",
        [speed],
        cases,
        prepare=["smollm.py"],
        outcomes=["greedy", "mean_length"],
        minutes=6.0,
    )


def start() -> Line:
    cpu, wall = (
        Measure("CPU, s", lambda run: run["cpu_s"], number_format=".2f"),
        Measure("wall, s", lambda run: run["wall_s"], number_format=".2f"),
    )
    peers = {"TRL": "trl", "lightning-hydra-template": "template"}
    cases = {}
    for case, what in (("--help", "help"), ("a mistyped key", "typo")):
        sides = {
            name: Side(
                f"start/clock.py {side} {what}", {cpu.name: 1 / 3}, requires=TEMPLATE if side == "template" else ""
            )
            for name, side in peers.items()
        }
        cases[case] = Case(Side(f"start/clock.py ours {what}"), sides, {wall.name: 1.0})
    trl = {"TRL": "trl", "TRL, its script alone": "trl-script"}
    for model, what, folder in (("tiny", "step", ""), ("135M", "step-135m", SMOLLM)):
        sides = {name: Side(f"start/clock.py {side} {what}", {cpu.name: 0.8}) for name, side in trl.items()}
        cases[f"to the first loss, {model}"] = Case(Side(f"start/clock.py ours {what}", requires=folder), sides)
    sides = cases["to the first loss, tiny"].peers
    sides["lightning-hydra-template"] = Side("start/clock.py template step", requires=TEMPLATE)
    # A typo takes the peers as long as --help, which the default cases measure already: by default only ours runs.
    typo = cases["a mistyped key"]
    cases["a mistyped key, peers too"] = replace(typo, default=False)
    cases["a mistyped key"] = replace(typo, peers={})
    return Line("startup", [cpu, wall], cases, prepare=["smollm.py", "start/prepare.py"], minutes=6.5, warm=False)


def tracking() -> Line:
    cost = Measure("step with MLflow ÷ without, CPU", lambda run: run["cpu_s"] / run["off_cpu_s"], number_format=".3f")
    side = " --windows 8"
    case = Case(Side(f"tracking/ours.py{side}"), {"MLFlowLogger": Side(f"tracking/peer.py{side}")}, {cost.name: 1.02})
    return Line("the cost of tracking", [cost], {"SFT, tiny, LoRA": case}, outcomes=["loss"], minutes=4.5)


def sweep() -> Line:
    overhead = Measure("CPU, s per job besides training", lambda run: run["later_cpu_s"], number_format=".2f")
    case = Case(Side("sweep/jobs.py --together"), {"a process each": Side("sweep/jobs.py")}, {overhead.name: 1.0})
    return Line("a sweep of four small jobs", [overhead], {"four seeds": case}, minutes=5.5, warm=False)


def rloo() -> Line:
    seconds = Measure("CPU, s per iteration", lambda run: run["cpu_s"] / run["iterations"], number_format=".2f")
    memory = Measure("peak memory above startup, MB", lambda run: run["above_start_mb"])
    cases = {
        "LoRA": (" --lora --iterations 2", False),
        "full": (" --iterations 2", True),
        "LoRA, 4 epochs": (" --lora --iterations 1 --epochs 4", False),
        "full, 4 epochs": (" --iterations 1 --epochs 4", False),
        "LoRA, 152k vocabulary": (" --lora --iterations 1 --vocabulary large", False),
    }
    rloo_cases = {
        name: Case(
            Side(f"rloo/ours.py{task}"), {"TRL 1.16": Side(f"rloo/peer.py{task}", {seconds.name: 0.7})}, default=default
        )
        for name, (task, default) in cases.items()
    }
    for precision, option in (("", ""), (", bf16", " --bf16")):
        task = f" --model {SMOLLM} --lora --iterations 1 --batch 32 --minibatches 2 --new-tokens 32{option}"
        peer = Side(f"rloo/peer.py{task}", {seconds.name: 0.5, memory.name: None})
        rloo_cases[f"135M, LoRA{precision}"] = Case(
            Side(f"rloo/ours.py{task}", requires=SMOLLM), {"TRL 1.16": peer}, default=not option
        )
    return Line(
        "RLOO on the packaged tiny model and on SmolLM2-135M",
        [seconds, memory],
        rloo_cases,
        prepare=["smollm.py", "rloo/prepare.py"],
        outcomes=["score", "length"],
        minutes=5.0,
    )


def scaling() -> Line:
    seconds = Measure("CPU, s per step", lambda run: run["cpu_s"] / run["steps"], number_format=".2f")
    memory = Measure("peak memory above startup, MB", lambda run: run["above_start_mb"])
    cases = {
        case_name(p): Case(
            Side(f"scaling/ours.py {command_options(p)}"),
            {"TRL": Side(f"scaling/peer.py {command_options(p)}")},
            default=False,
        )
        for p in POINTS
    }
    return Line(
        "scaling of a training step", [seconds, memory], cases, prepare=["scaling/prepare.py"], outcomes=["loss"]
    )


def growth() -> Line:
    """PPO iterations of one epoch, with more and more prompts."""
    line = ppo()
    cases = {
        ppo_case_name(count): Case(
            Side(f"ppo/ours.py {PPO_TASK} --lora --epochs 1 --batch {count}"),
            {"TRL": Side(f"ppo/peer.py {PPO_TASK} --lora --epochs 1 --batch {count}", python=TRL_112)},
            default=False,
        )
        for count in PROMPT_COUNTS
    }
    return Line("scaling of a PPO iteration", line.measures, cases, prepare=line.prepare, minutes=6.0)


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
