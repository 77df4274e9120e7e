"""What is wrong with a command line or a recipe, in one sentence that names the key, its place and what to type."""

import difflib
import re
import shlex
from collections.abc import Sequence

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from manners.config import schema
from manners.config.overrides import config_file, override_key, override_source
from manners.errors import did_you_mean

# Former names of options whose present names are not similar in spelling, or not the most similar.
RENAMED = {
    "study": "experiment",
    "study_name": "experiment_name",
    "quick": "debug=quick",
    "lineage": "plan",
    "fit": "estimate",
    "reward": "reward_from",
    "strength": "adapter_scale",
    "arena": "self_chat",
    "lm_eval": "benchmarks",
    "hardware.parts": "hardware.microbatch_size",
    "dataset.train_on": "dataset.loss_roles",
    "dataset.every_reply": "dataset.include_alternatives",
    "dataset.score_above": "dataset.min_score_quantile",
    "dataset.keep": "dataset.keep_flagged",
    "dataset.on_error": "dataset.on_invalid_row",
    "dataset.card": "dataset.text_stats",
    "rloo_k": "method.num_generations",
    "dataset.views": "dataset.sample_types",
    "method.view": "method.sample_type",
    "method.target": "method.kl_target",
    # Short forms of other programs.
    "lr": "method.learning_rate",
    "epochs": "method.num_train_epochs",
    "batch_size": "method.per_device_train_batch_size",
    "steps": "method.max_steps",
}
OPTIONAL_GROUPS = ("tuned", "experiment", "debug", "debug_method")
GROUPS_OF_TRAIN = ("experiment", "debug")  # groups of train.yaml that are no part of the config
# What takes any name where a group has none of that name.
ANY_NAME = {
    "model": "A folder or a name on the hub: model.name={}",
    "dataset": "A file, a folder or a name on the hub: dataset=jsonl dataset.path={}",
}


PACKAGE_LINE = "a recipe begins with the line '# @package _global_', else its options are of a group."
PLAIN = {  # what Hydra and OmegaConf say → what is meant
    "is not a ListConfig": "a list is needed, {key}=[...]",
    "Cannot merge DictConfig with ListConfig": "names with values are needed, '{key}={{NAME: VALUE}}', not a list",
    "does not support deletion": "an option cannot be removed, only set; ~ removes a component of the reward",
    "must be a string or a list": "the value of a group is the name of a choice, such as debug=quick",
}


# --- Overrides that Hydra cannot read ---


def explain_unreadable(override: str, following: str) -> str:
    """An override that Hydra's grammar does not accept; ``following`` is the next word of the command line."""
    key, equals, value = override.partition("=")
    if not equals:
        form = f": {key}={following}" if following and "=" not in following else ""
        return f"'{override}' is no option: options are written KEY=VALUE{form}."
    if value.startswith("{"):
        return f"{override} cannot be read: names in {{…}} have letters, digits and _, and texts may need quotes there."
    if value.startswith("["):
        items = re.split(r",(?![^\[]*\])", value[1:].removesuffix("]"))  # not at the commas of a list inside
        inner = ", ".join(f"'{item.strip()}'" for item in items)
        quoted = f"{key}=[{inner}]"
        return f"{override} cannot be read: what is inside the list needs quotes of its own. Write {shell(quoted)}"
    return f"{override} cannot be read: the value needs quotes of its own. Write {shell(with_quotes(override))}"


def explain_flag(flag: str, following: str, cfg: DictConfig) -> str:
    """An option of the command line that begins with dashes and is none of Hydra's."""
    if not flag.startswith("-"):  # argparse takes the overrides from one place only
        return f"{flag}: flags such as -m stand before all options, or after them, not between: -m KEY=VALUE KEY=VALUE."
    name, _, value = flag.lstrip("-").partition("=")
    known = [key for key in option_names(cfg) if name in (key, key.rpartition(".")[2])]
    following = "" if "=" in following else following  # an option of its own
    key, value = known[0] if known else RENAMED.get(name, name), value or following or "VALUE"
    return f"{flag}: options are written without dashes, KEY=VALUE: {key}={value}. All of them: --help"


def explain_several_values(override: str) -> str:
    """An override that lists values, without ``-m``."""
    quoted = shell(with_quotes(override))
    return f"{override} lists several values: add -m to run one job for each; as one text, write {quoted}"


def with_quotes(override: str) -> str:
    """The override with its value in Hydra's double quotes."""
    key, _, value = override.partition("=")
    escaped = value.strip("'\"").replace('"', '\\"')
    return f'{key}="{escaped}"'


def shell(word: str) -> str:
    """A word as a shell takes it."""
    return shlex.quote(word)


# --- Errors of composing ---


def explain_missing(config_name: str, error: MissingConfigException, overrides: list[str]) -> str:
    """A choice that a config group does not have."""
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    top = group.split("/")[0]  # model=/a/folder asks for the choice 'folder' in the group 'model//a'
    choice = choice if group == top else f"{group.removeprefix(top + '/')}/{choice}"
    source = override_source(config_name, top, overrides)
    if top == "experiment" and "/" in group:
        form = f"- override /{group.removeprefix('experiment/')}: {choice.rpartition('/')[2]}"
        return f"{source}: a recipe chooses from a group of the program by '{form}' in its defaults."
    choices = error.options or GlobalHydra.instance().config_loader().get_group_options(top)
    hint = did_you_mean(choice, choices)
    if top in ANY_NAME and hint.startswith("Known"):
        hint = f"{ANY_NAME[top].format(choice)}. {hint}"
    return f"{source}: no '{choice}' in {top}. {hint}"


def explain(error: Exception, config_name: str, overrides: list[str]) -> str:
    """Hydra's error in one sentence. Its cause knows the key; of a mistake in a file only its text does."""
    empty = next((o for o in overrides if is_group(override_key(o)) and (o.endswith("=null") or o[0] == "~")), "")
    if empty and override_key(empty) not in OPTIONAL_GROUPS:
        choices = GlobalHydra.instance().config_loader().get_group_options(override_key(empty))
        return f"{empty}: {override_key(empty)} is a config group, and needs a choice: {', '.join(choices)}."
    cause, text = error.__cause__, f"{error}"
    if absent := re.match(r"Could not override '([^']+)'.\s+No match in the defaults list", text):
        written = next((o for o in overrides if override_key(o) == absent[1]), absent[1])
        return f"{written}: {config_name}.py has no group '{absent[1]}': see python {config_name}.py --help."
    in_file = re.search(r"In '([\w./]+)'", text)
    file = in_file[1] if in_file else ""
    if "@experiment." in text:
        return f"{config_file(file)}: {PACKAGE_LINE}"
    in_text = re.search(r"full_key: (\S+)", text)
    key = getattr(cause, "full_key", None) or (in_text[1] if in_text else "")
    reason = str(getattr(cause, "msg", None) or text.partition("composing config:\n")[2] or text)
    reason = " ".join(reason.partition("full_key:")[0].split())
    if leaf := re.match(r"Key '([\w.]+)' (?:is )?not in", reason):
        key = key if key.endswith(leaf[1]) else f"{key}.{leaf[1]}"
        if key.startswith("sweep.space."):
            return f"sweep.space has no {leaf[1]}: type it as an option of its own, such as '{leaf[1]}=choice(1,2)'."
        if key.startswith("method.rewards."):
            return f"{key}: the reward has no component '{leaf[1]}' yet: a plus adds it, +{key}=VALUE."
        source = config_file(file) if file else override_source(config_name, key, overrides)
        return no_such_option(source, key, known_config(config_name, overrides))
    source = config_file(file) if file else override_source(config_name, key, overrides)
    reason = reason.rstrip(".")
    reason += ". For no value write null, not None" if "'None'" in reason else ""
    for said, plain in PLAIN.items():
        reason = plain.format(key=key or "KEY") if said in reason else reason
    return f"{source}: {reason}." if not key or source.startswith(key) else f"{source}: {key}: {reason}."


def is_group(name: str) -> bool:
    """Whether ``name`` is a config group."""
    return bool(GlobalHydra.instance().config_loader().get_group_options(name))


def no_such_option(source: str, key: str, cfg: DictConfig) -> str:
    """A key that no schema has, with its present name, or the nearest one: in its own group first, then anywhere."""
    if key == "experiment" and source.endswith(".yaml"):
        return f"{source}: {PACKAGE_LINE}"
    parent, _, leaf = key.rpartition(".")
    known = option_names(cfg) + [name for name in GROUPS_OF_TRAIN if "method" in cfg]
    own = [name for name in known if name.rpartition(".")[0] == parent]
    near = nearest_option(leaf, own, 0.6) or nearest_option(leaf, known, 0.8)
    renamed = RENAMED.get(key) or ("" if near else RENAMED.get(leaf, ""))
    near = renamed if renamed.partition("=")[0] in known and key != renamed else near
    if near == key and source.endswith(".yaml"):  # in a file, where a dot makes no group
        return f"{source}: '{key}' is written as '{leaf}' below '{parent}:'."
    if near:
        return f"{source}: there is no option '{key}'. Did you mean '{near}'?"
    return f"{source}: there is no option '{key}'. {did_you_mean(key, own or cfg)}"


def nearest_option(leaf: str, names: Sequence[str], cutoff: float) -> str:
    """The option whose last part is most similar to ``leaf``, or contains it; empty if there is none."""
    leaves = {name.rpartition(".")[2]: name for name in reversed(names)}
    near = difflib.get_close_matches(leaf, leaves, n=1, cutoff=cutoff)
    near += [name for name in reversed(leaves) if len(leaf) > 3 and leaf in name]
    return leaves[near[0]] if near else ""


def option_names(node: DictConfig, path: str = "") -> list[str]:
    """Every option below ``node``, dotted."""
    names = []
    for name in schema.options(OmegaConf.get_type(node)):
        child = node._get_node(name)
        names.append(f"{path}{name}")
        if isinstance(child, DictConfig) and schema.is_schema(OmegaConf.get_type(child)):
            names += option_names(child, f"{path}{name}.")
    return names


def known_config(config_name: str, overrides: list[str]) -> DictConfig:
    """A config with the options that ``overrides`` may set: that of their group choices, or the default's."""
    groups = [o for o in overrides if is_group(override_key(o)) and override_key(o) != "experiment"]
    try:
        return hydra.compose(config_name, groups)
    except (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError):
        return hydra.compose(config_name)
