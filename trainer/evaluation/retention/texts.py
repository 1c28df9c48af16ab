"""Our own general text, English and Chinese, to see how well a model still predicts ordinary language."""

from __future__ import annotations

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
