"""Rules about replies in which a language model speaks of itself: what it cannot do, and who made it."""

from __future__ import annotations

import re

from rlhf_jax.data.clean.options import CleanOptions
from rlhf_jax.data.clean.registry import Dropped, drops
from rlhf_jax.data.clean.replies import any_of, asked, imitated
from rlhf_jax.data.schema import Record

MODEL = any_of(
    r"ai", r"artificial intelligence", r"(?:large |gpt |ai |text[- ]based )*language model", r"gpt(?:-?\d[\w.]*)?", r"chatbot",
    r"virtual assistant", r"machine learning model",
)  # fmt: skip
AM_NOT = r"(?:am|['’]m) (?:unable|not (?:able|capable|programmed|designed))"
CANNOT = any_of(
    r"can(?:no|['’]?)t", r"can not", AM_NOT, r"do(?:es)? not have", r"don['’]?t have", r"do(?:n['’]?t| not) possess", r"have no",
    r"will not", r"won['’]?t",
)  # fmt: skip
SORRY = any_of(
    r"(?:i(?:['’]m| am) )?(?:(?:very|so|really|truly|terribly|deeply) )?sorry", r"(?:my )?apologies",
    r"i (?:do )?apologi[sz]e(?: for (?:the|any) \w+)?", r"unfortunately", r"regrettably",
)  # fmt: skip
MAYBE_SORRY = rf"(?:{SORRY}[,.;:!]*\s*(?:but )?)?"
DO = any_of(
    "assist", "help", "fulfil", "comply", "provide", "access", "browse", "view", "see (?:the|any|images)", "open", "process", "play",
    "hear", "listen", "watch", "generate", "create", "produce", "draw", "paint", "perform", "complete", "execute", "carry out",
    "answer", "respond", "set (?:a|an|up)", "send", "make (?:a|an|the|any)", "design", "search", "display", "record", "translate",
    "predict", "physically", "do (?:that|this)", "engage", "recommend",
)  # fmt: skip
THING = r"(?:images?|pictures?|photos?|photographs?|attachments?|attached files?|files?|audio|videos?|documents?|screenshots?)"
ANY = r"(?:(?:any|an?|the|your|me) )*"
LEAD = r"[\s\"'“(<*]*"

REFUSES = re.compile(
    LEAD
    + any_of(
        # I'm sorry, but as an AI I cannot ...; Unfortunately, I don't have ...
        rf"{SORRY}[,.;:!]*\s*(?:but )?(?:as an? [^.\n]{{2,60}},\s*)?(?:that )?i\s*{CANNOT}",
        # As a language model, I ...; I'm just an AI and have no ...
        rf"{MAYBE_SORRY}as an? {MODEL}\b[^.\n]{{0,60}}?,?\s*i\b[^.\n]{{0,20}}?{CANNOT}\b",
        rf"{MAYBE_SORRY}i(?:['’]m| am) (?:(?:just|only|merely|simply) )?an? {MODEL}\b[^.\n]{{0,80}}?\b(?:{CANNOT}|unable|without)",
        # I cannot create ...; I am unable to view ...
        rf"i(?: cannot| can['’]t| can not|\s*{AM_NOT} to) {DO}\b",
        # This instruction cannot be completed by a GPT model; It is not possible for ...; GPT models cannot ...
        rf"{MAYBE_SORRY}(?:this|the|such an?|your) (?:(?:type|kind) of )?(?:instruction|task|request|prompt|input|output)\b[^.\n]{{0,60}}\b"
        rf"(?:cannot|can not|can['’]t|not|unable)\b[^.\n]{{0,80}}\b(?:gpt|language model|ai)\b",
        rf"{MAYBE_SORRY}(?:(?:it|this)(?: is|['’]s) )?not (?:possible|suitable|appropriate)\b[^.\n]{{0,60}}\b(?:gpt|language model)",
        rf"{SORRY},?\s*(?:but )?(?:this|the) (?:task|instruction|request) (?:involves|requires)\b",
        rf"{MAYBE_SORRY}(?:(?:a|the) )?gpt(?: language)? models? (?:cannot|can not|can['’]t|(?:is|are) (?:unable|not able))",
    ),
    re.IGNORECASE,
)
MISSES = re.compile(
    LEAD
    + MAYBE_SORRY
    + any_of(
        rf"(?:there (?:is|was) )?no {THING} (?:(?:is|was|has been) )?(?:attached|provided|included|uploaded)",
        rf"i (?:do not|don['’]?t|did not|didn['’]?t|can ?not|can['’]t|am unable to) (?:see|find|receive|view|open|access) {ANY}{THING}",
        rf"you (?:did not|didn['’]?t|have not|haven['’]?t) (?:provided?|attach(?:ed)?|included?|uploaded?|sen[dt]|shared?) {ANY}{THING}",
        rf"the {THING} (?:is|was|were|are) (?:missing|not (?:attached|provided|included|uploaded))",
        r"(?:您|你)?(?:没有|未|并未)(?:提供|上传|附上|发送)(?:任何|相关)?[^。\n]{0,6}(?:图片|图像|照片|附件|文件|音频|视频|链接)",
    ),
    re.IGNORECASE,
)

MODEL_ZH = any_of(
    "AI", "人工智能", "人工智慧", "大?型?语言模型", "大?型?語言模型", "GPT", "聊天机器人", "机器人", "虚拟助手", "智能助手",
    "机器学习模型",
)  # fmt: skip
A_ZH = "(?:一?[个個名款种位])?"
CANNOT_ZH = any_of(
    "无法", "無法", "不能", "不会", "不會", "没法", "没有(?:办法|能力|实体|身体|感情|情感|个人|访问|实时|权限|自己)", "并?不具备",
    "未能", "不便",
)  # fmt: skip
DO_ZH = any_of(
    "查看", "看到", "看见", "访问", "打开", "播放", "提供", "回答", "帮助", "协助", "完成", "执行", "创建", "生成", "绘制", "画",
    "显示", "浏览", "获取", "满足", "处理", "设计", "制作", "发送", "设置", "拍", "录",
)  # fmt: skip
SORRY_ZH = "(?:很|非常|十分|真的?|实在)?(?:抱歉|对不起|不好意思|遗憾)[，,。！!、\\s]*"
REFUSES_ZH = re.compile(
    LEAD
    + any_of(
        rf"{SORRY_ZH}(?:但是?|因为|由于)?[，,]?\s*(?:(?:我|作为|身为|这个|此|该)[^。\n]{{0,30}}?)?{CANNOT_ZH}",
        rf"(?:作为|身为|我只?是){A_ZH}[^，,。\n]{{0,12}}{MODEL_ZH}[^，,。\n]{{0,12}}[，,]?[^，,。\n]{{0,16}}?{CANNOT_ZH}(?!保证)",
        rf"我{CANNOT_ZH}(?:直接)?{DO_ZH}",
        r"(?:此|该|这|这个|这条)(?:指令|任务|请求|输出)[^。\n]{0,20}(?:无法|不能|不适合)[^。\n]{0,20}(?:GPT|语言模型|AI)",
        r"无法(?:执行|完成|满足)(?:此|该|这个|这项|这条)(?:任务|指令|请求)",
        rf"GPT\s*(?:语言)?模型{CANNOT_ZH}",
    ),
    re.IGNORECASE,
)
# Here a person or a company speaks, as was asked for; unless the reply says outright that a model does.
SPEAKERS = re.compile(
    any_of(
        r"apolog", r"sorry", r"customer", r"dialog", r"conversation", r"script", r"letter", r"e-?mail", r"refus", r"declin", r"reject",
        r"role[- ]?play", r"pretend", r"quote", r"rewrite", r"rephrase", r"paraphrase", r"rearrange", r"sentence", r"translate",
        r"edit ", r"correct", r"punctuat", r"grammar", r"tweet", r"complaint", r"tone", r"message", r"respon[ds]",
        r"(?:write|compose|create|generate|continue|tell)\b.{0,60}\b(?:lyrics|song|poem|story|rap|haiku)",
        r"道歉", r"抱歉", r"对不起", r"客户", r"顾客", r"对话", r"剧本", r"信件", r"写一封", r"邮件", r"拒绝", r"婉拒", r"扮演", r"角色",
        r"改写", r"重写", r"翻译", r"句子", r"编辑", r"更正", r"标点", r"语法", r"推文", r"投诉", r"回应", r"回复",
        r"(?:写|创作|编|生成|续).{0,20}(?:歌词|歌曲|诗|故事)",
    ),
    re.IGNORECASE,
)  # fmt: skip
ABOUT_MODELS = re.compile(
    r"\bgpt|language model|\bai\b|chatbot|artificial intelligence|人工智能|语言模型|聊天机器人", re.IGNORECASE
)
OUTRIGHT = re.compile(
    rf"\bas an? {MODEL}\b|\bgpt\b|\blanguage model|作为{A_ZH}[^，,。\n]{{0,12}}{MODEL_ZH}|语言模型", re.IGNORECASE
)


@drops
def refusal(record: Record, options: CleanOptions) -> Dropped | None:
    """Drops a reply that begins as models refuse ("As an AI language model, I cannot", 抱歉，我无法), or that misses an attachment."""
    prompt = asked(record)
    for reply in imitated(record):
        misses = MISSES.match(reply)
        if misses is None and REFUSES.match(reply) is None and REFUSES_ZH.match(reply) is None:
            continue
        if ABOUT_MODELS.search(prompt):  # "Name three things that GPT cannot do."
            continue
        first = re.split(r"(?<=[.!?。！？\n])", reply, maxsplit=1)[0]
        if SPEAKERS.search(prompt) and not OUTRIGHT.search(first):
            continue
        return Dropped("misses an attachment" if misses else "refuses as models do", reply)
    return None


SYSTEMS = any_of(
    r"chat\s?gpt", r"gpt-?[345](?:\.\d)?(?:-turbo)?", r"claude(?! monet)", r"(?:google )?bard", r"gemini", r"bing chat", r"copilot",
    r"llama(?:-?[23])?", r"alpaca", r"vicuna", r"open[- ]?assistant", r"stablelm", r"mistral", r"deepseek", r"kimi", r"qwen",
    r"chatglm\w*", r"moss", r"belle", r"文心一言", r"通义千问", r"讯飞星火", r"豆包", r"智谱清言", r"百川大模型",
)  # fmt: skip
MAKERS = any_of(
    r"open\s?ai", r"anthropic", r"google", r"deepmind", r"meta(?: ai)?", r"microsoft", r"baidu", r"alibaba", r"tencent", r"stability ai",
    r"mistral ai", r"cohere", r"laion", r"databricks", r"hugging ?face", r"deepseek", r"moonshot", r"zhipu", r"百度", r"阿里巴巴",
    
    r"阿里云",     r"腾讯", r"华为", r"科大讯飞", r"智谱", r"清华大学", r"复旦大学", r"深度求索", r"月之暗面", r"字节跳动", r"谷歌",
    r"微软",
)  # fmt: skip
MADE = r"(?:created|made|developed|trained|built|designed|programmed)"
MADE_ZH = r"(?:开发|训练|研发|创造|创建|制作|推出|设计|打造|构建)"
ASSISTANT_ZH = r"(?:助手|语言模型|聊天机器人|人工智能|AI)"
AI = r"(?:an? (?:ai|large)(?: language)? (?:model|assistant|chatbot)(?: called| named|,)? )"
SELF = re.compile(
    any_of(
        rf"\b(?:i(?:['’]m| am)|my name is|you can call me)\s+(?:(?:called|named|actually|just|also) |{AI})*{SYSTEMS}\b(?!['’]s)",
        rf"\bas {SYSTEMS}, i\b",
        rf"\bas an? (?:(?:ai|large) )*(?:language model|ai|assistant|chatbot|model)\b[^.\n]{{0,30}}\b{MADE} by {MAKERS}\b",
        rf"\bi(?:['’]m| am| was| have been)\b[^.\n]{{0,20}}\b(?:ai|model|assistant|chatbot|program)\b[^.\n]{{0,30}}\b{MADE} by {MAKERS}\b",
        rf"\bi (?:was|am|have been) {MADE} by {MAKERS}\b",
        rf"\b{MAKERS} {MADE} me\b",
        rf"我(?:就?是|叫做?|的名字是){A_ZH}[^，,。\n]{{0,12}}{SYSTEMS}",
        rf"作为\s*{SYSTEMS}[，,\s]*我",
        rf"(?:我|作为)[^，,。\n“”]{{0,16}}(?:由|被|是|为)\s*{MAKERS}[^，。\n]{{0,12}}{MADE_ZH}",
        rf"作为{A_ZH}\s*{MAKERS}\s*(?:公司|团队)?{MADE_ZH}的[^，,。\n]{{0,12}}{ASSISTANT_ZH}",
    ),
    re.IGNORECASE,
)


@drops
def self_identification(record: Record, options: CleanOptions) -> Dropped | None:
    """Drops a reply that says it is ChatGPT, or made by OpenAI, Anthropic, 百度 and so on: a model trained on it would say so too."""
    for reply in imitated(record):
        if match := SELF.search(reply):
            return Dropped("says it is a model of somebody else", reply[max(0, match.start() - 30) :])
    return None
