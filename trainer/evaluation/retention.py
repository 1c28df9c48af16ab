"""Retention tasks: what the base could do before training, asked of it and of the adapter.

Short questions of our own (``includes``), what most bases know before training, and the perplexity of general text of
our own, both English and Chinese; from folders of the published sets also grade-school mathematics (``gsm8k_accuracy``)
and the perplexity of the solutions of HumanEval, whose code is not run. A question stands with the texts of which a
right answer includes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.data.messages import Message, Question
from trainer.errors import EvaluationError

ITEMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    # facts
    ("What is the capital of France?", ("Paris",)),
    ("What is the capital of Japan?", ("Tokyo",)),
    ("Which planet do we live on?", ("Earth",)),
    ("What is the largest ocean on Earth?", ("Pacific",)),
    ("Who wrote the play Romeo and Juliet?", ("Shakespeare",)),
    ("What is the chemical symbol of gold?", ("Au",)),
    ("What gas do plants take in from the air for photosynthesis?", ("carbon dioxide", "CO2", "CO₂")),
    ("What is H2O commonly called?", ("water",)),
    ("How many continents are there?", ("seven", "7")),
    ("How many days does a week have?", ("seven", "7")),
    ("Which language is mainly spoken in Brazil?", ("Portuguese",)),
    ("What organ pumps blood through the human body?", ("heart",)),
    ("Which star is at the centre of our solar system?", ("Sun",)),
    ("In which country are the pyramids of Giza?", ("Egypt",)),
    ("What colour do you get by mixing blue and yellow paint?", ("green",)),
    ("At how many degrees Celsius does water freeze at sea level?", ("0", "zero")),
    # arithmetic
    ("What is 2 + 3?", ("5", "five")),
    ("What is 7 times 6?", ("42", "forty-two")),
    ("What is 15 minus 8?", ("7", "seven")),
    ("What is 81 divided by 9?", ("9", "nine")),
    ("What is 12 + 30?", ("42", "forty-two")),
    ("What is half of 50?", ("25", "twenty-five")),
    ("I have 4 apples and buy 5 more. How many apples do I have?", ("9", "nine")),
    ("How many minutes are there in two hours?", ("120",)),
    # instructions
    ("Reply with the single word: banana", ("banana",)),
    ("Write the word hello in capital letters.", ("HELLO",)),
    ("What is the opposite of hot?", ("cold",)),
    ("What is the plural of the English word mouse?", ("mice",)),
    ("What is the past tense of the verb go?", ("went",)),
    ("Which letter comes after C in the English alphabet?", ("D",)),
    ("Which word does not fit: apple, pear, hammer, plum?", ("hammer",)),
    ("Translate the French word chat into English.", ("cat",)),
    # Chinese
    ("中国的首都是哪里？", ("北京", "Beijing")),
    ("一年有几个月？", ("12", "十二")),
    ("三加五等于几？", ("8", "八")),
    ("九减四等于几？", ("5", "五")),
    ("太阳从哪个方向升起？", ("东", "east")),
    ("水的化学式是什么？", ("H2O", "H₂O")),
    ("“大”的反义词是什么？", ("小", "small")),
    ("把英文单词 book 翻译成中文。", ("书", "書")),
)
TEXTS: tuple[str, ...] = (
    "The old bakery on the corner opens before sunrise. By six o'clock the smell of fresh bread reaches the bus stop, "
    "and people who are still half asleep step inside to buy a warm roll for the way to work. The owner knows most of "
    "them by name and has their change ready before they ask for it.",
    "Rivers shape the land they flow through. In the mountains they cut deep valleys into the rock; on the plains they "
    "slow down, drop the sand they carried and wander from side to side. After heavy rain a river may leave its bed "
    "and cover the fields, and when the water goes back it leaves a layer of fertile mud behind.",
    "A computer program is a list of instructions that a machine follows one after another. Most programs read some "
    "data, change it, and write a result. When a program does something its author did not intend, people call that a "
    "bug, and finding the cause often takes longer than writing the program did.",
    "To make a simple tomato soup, heat a little oil in a pot and cook one chopped onion until it is soft. Add the "
    "tomatoes, a pinch of salt and enough water to cover them. Let everything simmer for twenty minutes, then blend it "
    "until it is smooth and serve it with bread.",
    "She had kept the letter for thirty years without opening it. Now, in the quiet of the empty house, she turned it "
    "over in her hands and wondered whether it still mattered what was written inside. Outside it began to rain, and "
    "somewhere in the garden a door was banging in the wind.",
    "Prices rise when many people want a thing and few can supply it. If a frost destroys half of the coffee harvest, "
    "the shops must pay more for the beans that are left, and they pass the cost on to their customers. Some of these "
    "will drink tea instead, which in turn makes tea a little more expensive.",
    "The committee met on Tuesday to discuss the plans for the new library. Several members asked whether the building "
    "would have enough space for children, and the architect promised to present a larger reading room at the next "
    "meeting. The vote on the budget was put off until the end of the month.",
    "Sleep is not a waste of time. While we rest, the brain sorts what it took in during the day, keeps what may be of "
    "use and lets go of the rest. People who sleep too little for several nights react more slowly, make more mistakes "
    "and catch a cold more easily.",
    "春天来了，公园里的树长出了新的叶子，湖边的花也开了。早上有很多老人在那里散步、打太极拳，孩子们放学以后在草地上"
    "放风筝。到了傍晚，天气还有一点凉，人们慢慢地走回家去。",
    "学习一门新的语言需要时间和耐心。每天读一点、听一点、说一点，比一个星期只学一次要好得多。不要害怕说错，因为每一次"
    "错误都能让你知道下一次应该怎么说。",
    "火车比计划晚了二十分钟才到站。站台上的人提着行李，一边看手机一边等。一位年轻的母亲给孩子讲故事，孩子听着听着就"
    "睡着了。广播终于响起来的时候，大家都松了一口气。",
    "这家小公司只有十几个人，却做出了很受欢迎的产品。他们每个月都会请用户来办公室，看看大家是怎么使用软件的，然后把"
    "遇到的问题一个一个地解决。",
)
_SHORT_ANSWER, _SOLUTION = 48, 320  # tokens
PUBLISHED = ("gsm8k", "humaneval")


@dataclass(frozen=True)
class RetentionTask:
    """A set of questions of one kind with its metric. ``max_tokens`` is for its answers."""

    name: str
    questions: tuple[Question, ...]
    metric: str
    max_tokens: int


def retention_tasks(folders: Mapping[str, Path], rows: int, *, chat: bool) -> list[RetentionTask]:
    """Our own tasks, and ``rows`` rows of each published set in ``folders`` (by name). ``chat``: ask as messages.

    Raises EvaluationError for an unknown set, DataError for a folder that does not hold it.
    """
    questions = tuple(_question(text, accept[0], {"accept": list(accept)}, chat) for text, accept in ITEMS)
    texts = tuple(Question(None, "", text) for text in TEXTS)
    own = [
        RetentionTask("questions", questions, "includes", _SHORT_ANSWER),
        RetentionTask("text", texts, "perplexity", 1),
    ]
    return own + [_published(name, folder, rows, chat) for name, folder in folders.items()]


def _question(text: str, reference: str, row: Mapping[str, Any], chat: bool) -> Question:
    if chat:
        return Question((Message("user", text),), None, reference, row)
    return Question(None, f"Question: {text}\nAnswer:", reference, row)


def _published(name: str, folder: Path, rows: int, chat: bool) -> RetentionTask:
    from trainer.recipes import RECIPES

    if name not in PUBLISHED:
        raise EvaluationError(f"unknown retention set {name!r}; choose from {', '.join(PUBLISHED)}")
    chosen = islice(RECIPES[name].rows(folder, "test"), rows)
    if name == "humaneval":
        questions = [Question(None, row["prompt"], row["response"], row) for row in chosen]
        return RetentionTask(name, tuple(questions), "perplexity", 1)
    asked = [_question(row["prompt"], row["response"], row, chat) for row in chosen]
    return RetentionTask(name, tuple(asked), "gsm8k_accuracy", _SOLUTION)
