"""Rules about replies that are none: blank ones, and what stands where one should have been written.

But for `empty`, the rules here and those on refusals and endings judge replies that are to be imitated. Replies that were compared,
ranked, rated or labelled are left alone: what is wrong with one of them is what its judgement is about.
"""

from __future__ import annotations

import re

from rlhf_jax.data.clean.options import CleanOptions
from rlhf_jax.data.clean.registry import Dropped, drops
from rlhf_jax.data.schema import Record, texts_of


def any_of(*patterns: str) -> str:
    """The pattern of whatever one of these fits."""
    return f"(?:{'|'.join(patterns)})"


def asked(record: Record) -> str:
    """All that stands before the replies."""
    return "\n".join(text for part, text in texts_of(record) if part == "prompt")


def imitated(record: Record) -> list[str]:
    """The replies that are to be imitated."""
    return [text for part, text in texts_of(record) if part == "reply"]


BLANK_PART = {
    "prompt": "a turn before the reply has no text",
    "reply": "a reply has no text",
    "judged": "a judged reply has no text",
    "text": "no text",
}


@drops
def empty(record: Record, options: CleanOptions) -> Dropped | None:
    """Drops a record of which a text is blank: nothing was asked, or nothing was replied."""
    pieces = texts_of(record)
    for part, text in pieces:
        if not text.strip():
            return Dropped(BLANK_PART[part], " ".join(text for _, text in pieces).strip())
    return None


# Self-Instruct and Alpaca write <noinput> and <nooutput>; their translations 无输入 and 无输出, with &lt; and &gt;.
NOTHING = any_of(r"no[ -]?(?:in|out)put", r"(?:没有?|[无無])(?:输入|输出|輸入|輸出)")
OPEN = any_of(r"[<＜〈\[(（【*_]", "&lt;")
CLOSE = any_of(r"[>＞〉\])）】*_]", "&gt;")
MARKER = rf"{OPEN}\s*{NOTHING}\s*{CLOSE}"
NOT_APPLICABLE = re.compile(r"n\s*/\s*a\b|not applicable|不适用", re.IGNORECASE)
WHOLE = re.compile(
    rf"{OPEN}*\s*{any_of(NOTHING, NOT_APPLICABLE.pattern, 'placeholder', '占位符')}\s*{CLOSE}*\s*[.。!！]?",
    re.IGNORECASE,
)
BEGINNING = re.compile(
    rf"(?:{MARKER}|{OPEN}?\s*(?:n/a|no[ -]?output)\b\s*(?:[,(:;-]|possible|needed|required|as|because|since)|[无無]输出[,，(（])",
    re.IGNORECASE,
)
INSIDE = re.compile(
    rf"^\s*(?:\d+\s*[.、．]\s*)?(?:(?:input|输入)\s*[:：])?\s*{MARKER}\s*$", re.IGNORECASE | re.MULTILINE
)
BLANK = re.compile(
    r"[\[<（(【]\s*(?:(?:your|insert|enter|add|author|company|customer|recipient)\b|您的|你的|插入|请?输入|填写)[^\[\]<>【】（）()\n]{0,40}[\]>）)】][.。]?",
    re.IGNORECASE,
)
VARIABLE = re.compile(r"\{\{\s*\w+\s*\}\}")
LOREM = re.compile(r"\blorem ipsum\b", re.IGNORECASE)
# Where these are, {{ }} is code: of Jinja, Vue, Helm, LaTeX and many more; and lorem ipsum fills a page that is to be looked at.
CODE = re.compile(
    any_of(
        r"`", r"</\w+>", r"&lt;/\w+&gt;", r"<(?:div|html|head|body|p|span|a|img|input|template|br|li|ul)\b", r"\{%", 
        r"\bv-(?:if|for|bind|model)\b",
        r"\bng-", r"=>", r";\s*$", r"\\(?:frac|begin|text|left)\b", r"\$\{",
        r"^\s*(?:import|from|def|class|function|const|let|var|return|print|public|#include|SELECT|- name|\w+:\s*\{\{)",
    ),
    re.MULTILINE,
)  # fmt: skip
TEMPLATES = re.compile(
    any_of(
        "templat", "jinja", "mustache", "handlebars", r"\bvue", "angular", "liquid", "django", "ansible", r"\bhelm\b", "github actions",
        "placeholder", "dummy", "filler", "variable", "模板", "模版", "占位", "变量",
    ),
    re.IGNORECASE,
)  # fmt: skip


@drops
def placeholder(record: Record, options: CleanOptions) -> Dropped | None:
    """Drops a reply never written: `<nooutput>`, N/A, only `[Your Name]`; or has `{{name}}` or lorem ipsum in it, outside of code."""
    for reply in imitated(record):
        if found := _placeholder(reply.strip(), asked(record)):
            return found
    return None


def _placeholder(reply: str, prompt: str) -> Dropped | None:
    # A question of many choices may have N/A among them.
    if (WHOLE.fullmatch(reply) or BEGINNING.match(reply)) and not (
        NOT_APPLICABLE.search(reply) and NOT_APPLICABLE.search(prompt)
    ):
        return Dropped("has a marker in place of a reply", reply)
    if match := INSIDE.search(reply):
        return Dropped("goes on into another task and its marker of no input", reply[max(0, match.start() - 60) :])
    if BLANK.fullmatch(reply):
        return Dropped("is nothing but a blank to fill in", reply)
    if CODE.search(reply) or CODE.search(prompt) or TEMPLATES.search(prompt):
        return None
    if (match := VARIABLE.search(reply)) and match[0] not in prompt:
        return Dropped("has a variable of a template in it", reply[max(0, match.start() - 30) :])
    if (match := LOREM.search(reply)) and not LOREM.search(prompt):
        return Dropped("has lorem ipsum for text", reply[match.start() :])
    return None
