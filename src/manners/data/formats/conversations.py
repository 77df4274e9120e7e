"""Formats whose rows hold one conversation or one plain text: a parser for each, and the check of the turns' order."""

from manners.data.formats.fields import InvalidRow, is_empty, list_field, text_field
from manners.data.formats.turns import MASKED, parse_marked_turns, parse_turn, parse_turns
from manners.data.types import ROLES, Message

COMPLETION_FIELDS = ("completion", "reply", "response")
CONTEXT_FIELDS = ("input", "context")  # what an instruction or a prompt is about


def parse_messages(row: dict) -> list[Message]:
    """{"messages": [{"role": "user", "content": "..."}, ...]}, as OpenAI, TRL and UltraChat have it."""
    return [parse_turn(entry, f"messages[{i}]") for i, entry in enumerate(list_field(row, "messages"))]


def parse_sharegpt(row: dict) -> list[Message]:
    """{"conversations": [{"from": "human", "value": "..."}, ...]}."""
    entries = enumerate(list_field(row, "conversations"))
    return [parse_turn(entry, f"conversations[{i}]", "from", "value") for i, entry in entries]


def parse_prompt_completion(row: dict) -> list[Message]:
    """{"prompt": "...", "completion": "..."}, or both as lists of messages, as TRL has it."""
    completion = next((name for name in COMPLETION_FIELDS if name in row), "completion")
    name = "prompt" if "prompt" in row or "instruction" not in row else "instruction"
    prompt = parse_prompt(row, name)
    for message in prompt if isinstance(row.get(name), list) else ():
        if message["role"] == "assistant":  # in TRL the completion alone carries loss
            message[MASKED] = "true"
    return prompt + parse_turns(row, completion, "assistant")


def parse_alpaca(row: dict, output_field: str = "output") -> list[Message]:
    """{"instruction": "...", "input": "...", "output": "..."}; the input may be empty or missing."""
    return parse_prompt(row, "instruction") + parse_turns(row, output_field, "assistant")


def parse_dolly(row: dict) -> list[Message]:
    """{"instruction": "...", "context": "...", "response": "..."}; the context may be empty or missing."""
    return parse_alpaca(row, "response")


def parse_prompt(row: dict, name: str) -> list[Message]:
    """The turns of ``history``, then those of the prompt; below a prompt as text, the input or context.

    Raises InvalidRow.
    """
    *earlier, last = parse_turns(row, name, "user")
    parts = [last["content"]]
    for field in CONTEXT_FIELDS if isinstance(row.get(name), str) else ():
        if not is_empty(value := row.get(field)):
            if not isinstance(value, str):
                left_out = f"'dataset.columns={{{field}: null}}' leaves it out"
                raise InvalidRow(f"field '{field}' must be text, not {type(value).__name__} ({left_out})")
            parts.append(text_field(row, field))
    return [*parse_history(row), *earlier, last | {"content": "\n\n".join(parts)}]


def parse_history(row: dict) -> list[Message]:
    """The earlier turns in ``history``: [prompt, reply] pairs, as LLaMA-Factory has them, or messages.

    Raises InvalidRow.
    """
    messages: list[Message] = []
    for i, entry in enumerate([] if is_empty(row.get("history")) else list_field(row, "history")):
        if isinstance(entry, list) and len(entry) == 2:
            pair = {f"history[{i}][{k}]": text for k, text in enumerate(entry)}
            roles = zip(("user", "assistant"), pair, strict=True)
            messages += [{"role": role, "content": text_field(pair, name)} for role, name in roles]
        elif isinstance(entry, dict):
            messages.append(parse_turn(entry, f"history[{i}]"))
        else:
            raise InvalidRow(f"field 'history[{i}]' must be a pair of prompt and reply, or a message")
    return messages


def parse_guanaco(row: dict) -> list[Message]:
    """{"text": "### Human: ... ### Assistant: ..."}, as openassistant-guanaco has it."""
    return parse_marked_turns(row, "text", "guanaco")


def parse_hh(row: dict) -> list[Message]:
    """{"text": "\\n\\nHuman: ...\\n\\nAssistant: ..."}, as Anthropic's HH-RLHF writes conversations."""
    return parse_marked_turns(row, "text", "hh")


def parse_marked(row: dict) -> list[Message]:
    """{"text": "<|user|>…<|assistant|>…"}, with a marker before each turn."""
    return parse_marked_turns(row, "text", "marked")


def parse_chatml(row: dict) -> list[Message]:
    """{"text": "<|im_start|>user\\n...<|im_end|>..."}, a conversation that the ChatML template has rendered."""
    return parse_marked_turns(row, "text", "chatml")


def parse_text(row: dict) -> list[Message]:
    """{"text": "..."}, or a line of a .txt file: a plain text without roles, all of which carries loss."""
    return [{"role": "text", "content": text_field(row, "text")}]


def check_messages(messages: list[Message], loss_roles: str, merge_turns: bool = False) -> list[Message]:
    """The messages, if user and assistant alternate after an optional system message and a turn may carry loss.

    With ``merge_turns``, turns by one role in a row become one. Raises InvalidRow, with the file's number of the turn.
    """
    checked: list[Message] = []
    for number, message in enumerate(messages, 1):
        role, previous = message["role"], checked[-1]["role"] if checked else ""
        if role == "system" and is_empty(message["content"]):
            continue
        if role not in ROLES:
            raise InvalidRow(f"turn {number} has the unknown role '{role}': expected one of {', '.join(ROLES)}")
        if role == previous:
            if not merge_turns:
                raise InvalidRow(
                    f"turn {number} has the role '{role}' like the turn before it (dataset.merge_turns=true joins them)"
                )
            checked[-1] = joined(checked[-1], message, number)
            continue
        expected = "assistant" if previous == "user" else "user"
        if role != expected and (role != "system" or checked):
            raise InvalidRow(f"turn {number} has the role '{role}': expected '{expected}'")
        checked.append(message)
    if loss_roles != "all" and all(m["role"] != loss_roles for m in checked):
        raise InvalidRow(f"there is no '{loss_roles}' turn to train on")
    return checked


def joined(first: Message, second: Message, number: int) -> Message:
    """Two turns by one role as one. Raises InvalidRow if only one of them carries loss, or has reasoning."""
    if first | {"content": ""} != second | {"content": ""}:
        raise InvalidRow(f"turns {number - 1} and {number} cannot be joined: they differ in weight or reasoning")
    return first | {"content": f"{first['content']}\n\n{second['content']}"}
