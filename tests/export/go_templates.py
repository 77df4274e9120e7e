"""A small evaluator of Go's text/template: range, if, else if, ne, eq, printf "%.1s" and fields, as Go documents them.

Written for the tests, from the documentation alone, and held against Go's own where Go is installed.
"""

import re


def tokens(template):
    """("text", …) and ("action", …) in turn; ``{{-`` trims nothing here, so it is refused."""
    parts = re.split(r"\{\{(.*?)\}\}", template, flags=re.DOTALL)
    assert not any(part.startswith("-") or part.endswith("-") for part in parts[1::2])
    return [("action" if i % 2 else "text", part.strip() if i % 2 else part) for i, part in enumerate(parts)]


def parse(todo):
    """The nodes up to an ``end`` or an ``else`` of the block that ``todo``, which is used up, stands in."""
    nodes = []
    while todo:
        kind, text = todo.pop(0)
        if kind == "text":
            nodes.append(("text", text))
        elif text == "end" or text.startswith("else"):
            return nodes, text
        elif text.startswith(("if ", "range ")):
            nodes.append(block(text, todo))
        else:
            nodes.append(("value", text))
    return nodes, ""


def block(head, todo):
    word, _, condition = head.partition(" ")
    body, closing = parse(todo)
    otherwise = []
    if closing.startswith("else if "):
        otherwise = [block(closing.removeprefix("else "), todo)]
    elif closing == "else":
        otherwise, closing = parse(todo)
        assert closing == "end"
    return (word, condition, body, otherwise)


def value(expression, dot):
    words = re.findall(r'\([^()]*\)|"[^"]*"|\S+', expression)
    if len(words) == 1:
        (word,) = words
        if word.startswith("("):
            return value(word[1:-1], dot)
        return word[1:-1] if word.startswith('"') else dot[word.removeprefix(".")]
    name, *arguments = words[0], *(value(word, dot) for word in words[1:])
    if name == "printf":
        assert arguments[0] == "%.1s"  # the first character
        return arguments[1][:1]
    return {"eq": arguments[0] == arguments[1], "ne": arguments[0] != arguments[1]}[name]


def evaluate(nodes, dot):
    out = ""
    for kind, *rest in nodes:
        if kind == "text":
            out += rest[0]
        elif kind == "value":
            out += value(rest[0], dot)
        elif kind == "if":
            condition, body, otherwise = rest
            out += evaluate(body if value(condition, dot) else otherwise, dot)
        else:
            out += "".join(evaluate(rest[1], item) for item in value(rest[0], dot))
    return out


def execute(template, messages, prompt=""):
    """What Ollama makes of the messages, which have a system message first if the Modelfile has one."""
    nodes, closing = parse(tokens(template))
    assert closing == ""
    turns = [{"Role": m["role"], "Content": m["content"]} for m in messages]
    return evaluate(nodes, {"Messages": turns, "Prompt": prompt})


def read_modelfile(text):
    """Its instructions, in order: (name, value), a value as Ollama unquotes it."""
    found = re.findall(r'^(FROM|TEMPLATE|SYSTEM|PARAMETER \w+) (?:"""(.*?)"""|"(.*?)"|(.*?))$', text, re.DOTALL | re.M)
    return [(name, triple or quoted or bare) for name, triple, quoted, bare in found]
