"""Our own short questions with answers that can be checked, English and Chinese: what most bases know before training.

Each is a question and the texts of which a right answer includes one.
"""

from __future__ import annotations

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
