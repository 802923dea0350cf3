"""Tasks in mathematics, finance and law that a small pretrained Llama cannot do untrained.

In:  only fixed seeds.
Out: `TASKS`, two in each domain, and `GUARD`, a task that the pretrained model can do.

Every answer is exact and follows from the prompt by a rule. Answers in mathematics show the steps
of the calculation, and then the result after `####`.
"""

from __future__ import annotations

from random import Random

from items import Item, Task

NAMES = [
    "Mia",
    "Tom",
    "Lena",
    "Omar",
    "Ines",
    "Paul",
    "Ruth",
    "Hugo",
    "Nora",
    "Karl",
    "Anna",
    "Ivan",
    "Sara",
    "Finn",
    "Emma",
    "Luis",
]
THINGS = [
    "pens",
    "books",
    "apples",
    "stamps",
    "coins",
    "cards",
    "shells",
    "marbles",
    "tickets",
    "cups",
    "roses",
    "stones",
]
COMPANIES = [
    "Nordia",
    "Telvent",
    "Okmetic",
    "Basware",
    "Ruukki",
    "Kemira",
    "Stora",
    "Finnair",
    "Outotec",
    "Cargotec",
    "Elisa",
    "Tiimari",
    "Aspocomp",
    "Glaston",
    "Raisio",
    "Lemmin",
]


def _show_working(*lines: str) -> str:
    """Return the steps of a calculation, followed by the result of the last step."""
    return f"{' '.join(f'{line}.' for line in lines)} #### {lines[-1].rsplit(' ', 1)[-1]}"


# Mathematics


def draw_word_problem(random: Random) -> Item:
    """Draw two or three steps of arithmetic, told as a story."""
    name, other = random.sample(NAMES, k=2)
    thing, another = random.sample(THINGS, k=2)
    a, b, c, d = (random.randrange(2, 10) for _ in range(4))
    kind = random.randrange(5)
    if kind == 0:
        c = random.randrange(1, a * b)
        story = f"{name} buys {a} boxes of {b} {thing} and gives {c} {thing} away."
        question = f"How many {thing} are left?"
        lines = [f"{a} * {b} = {a * b}", f"{a * b} - {c} = {a * b - c}"]
    elif kind == 1:
        total = c * d
        a = random.randrange(1, total)
        story = (
            f"{name} has {a} {thing}, finds {total - a} more and shares all of them equally among "
            f"{c} friends."
        )
        question = f"How many {thing} does each friend get?"
        lines = [f"{a} + {total - a} = {total}", f"{total} / {c} = {d}"]
    elif kind == 2:
        story = (
            f"{name} buys {a} {thing} for {b} dollars each and {c} {another} for {d} dollars each."
        )
        question = f"How many dollars does {name} pay?"
        lines = [
            f"{a} * {b} = {a * b}",
            f"{c} * {d} = {c * d}",
            f"{a * b} + {c * d} = {a * b + c * d}",
        ]
    elif kind == 3:
        c = random.randrange(1, a * b)
        story = f"{name} works {a} hours for {b} dollars an hour and spends {c} dollars."
        question = f"How many dollars does {name} have left?"
        lines = [f"{a} * {b} = {a * b}", f"{a * b} - {c} = {a * b - c}"]
    else:
        story = f"{name} has {a} {thing}. {other} has {b} times as many {thing}."
        question = f"How many {thing} do they have together?"
        lines = [f"{a} * {b} = {a * b}", f"{a} + {a * b} = {a + a * b}"]
    return Item(f"Problem: {story} {question}\nSolution:", _show_working(*lines))


def draw_expression(random: Random) -> Item:
    """Draw an expression with brackets; the answer is its value."""
    a, b, c, d = (random.randrange(2, 10) for _ in range(4))
    kind = random.randrange(3)
    if kind == 0:
        inner, outer = b + c, a * (b + c)
        d = random.randrange(1, outer)
        text = f"{a} * ({b} + {c}) - {d}"
        lines = [f"{b} + {c} = {inner}", f"{a} * {inner} = {outer}", f"{outer} - {d} = {outer - d}"]
    elif kind == 1:
        b, c = max(b, c) + 1, min(b, c)
        inner, outer = b - c, a * (b - c)
        text = f"{a} * ({b} - {c}) + {d}"
        lines = [f"{b} - {c} = {inner}", f"{a} * {inner} = {outer}", f"{outer} + {d} = {outer + d}"]
    else:
        first, second = (a + b), (c + d)
        text = f"({a} + {b}) * ({c} + {d})"
        lines = [
            f"{a} + {b} = {first}",
            f"{c} + {d} = {second}",
            f"{first} * {second} = {first * second}",
        ]
    return Item(f"Problem: What is {text}?\nSolution:", _show_working(*lines))


# Finance

GOOD_MEASURES = ["operating profit", "net sales", "order intake", "cash flow", "net income"]
BAD_MEASURES = ["net loss", "operating costs", "net debt", "impairment charges", "interest expense"]
PERIODS = ["first quarter", "second quarter", "third quarter", "fourth quarter", "first half"]
SENTIMENTS = ("positive", "neutral", "negative")


def draw_headline(random: Random) -> Item:
    """Draw a headline; its sentiment follows from two figures, and rising debt is bad news."""
    company, period = random.choice(COMPANIES), random.choice(PERIODS)
    measure = random.choice(GOOD_MEASURES + BAD_MEASURES)
    sentiment = random.choice(SENTIMENTS)
    less, more = sorted(random.sample(range(10, 100), k=2))
    if sentiment == "neutral":
        more = less
    rose = (sentiment == "positive") == (measure in GOOD_MEASURES)
    now, before = (more, less) if rose else (less, more)
    forms = [
        f"{company}'s {measure} came to EUR {now} mn in the {period}, against EUR {before} mn "
        f"a year earlier.",
        f"In the {period}, {company} reported {measure} of EUR {now} mn, compared to "
        f"EUR {before} mn before.",
        f"From EUR {before} mn a year ago, the {measure} of {company} went to EUR {now} mn in the "
        f"{period}.",
    ]
    return Item(f"News: {random.choice(forms)}\nSentiment:", sentiment)


RATINGS = ("safe", "watch", "risky")


def draw_rating(random: Random) -> Item:
    """Draw a ratio of debt to equity: safe below one, watch below two, else risky."""
    company, wanted = random.choice(COMPANIES), random.choice(RATINGS)
    while True:
        debt, equity = random.randrange(10, 100), random.randrange(10, 100)
        if RATINGS[min(debt // equity, 2)] == wanted:
            break
    forms = [
        f"{company} owes EUR {debt} mn and has an equity of EUR {equity} mn.",
        f"With an equity of EUR {equity} mn, {company} carries a debt of EUR {debt} mn.",
    ]
    return Item(f"Balance: {random.choice(forms)}\nRating:", wanted)


# Law

LIMITS = [  # party, bound, unit
    ("a landlord", "at least", "days of notice"),
    ("an employer", "at least", "days of leave"),
    ("a seller", "at least", "months of warranty"),
    ("a tenant", "at most", "months of arrears"),
    ("a lender", "at most", "percent of interest"),
    ("a carrier", "at most", "days of delay"),
    ("an agent", "at most", "percent of commission"),
    ("an insurer", "at least", "weeks to answer"),
]


def draw_clause(random: Random) -> Item:
    """Draw a clause, which is valid if it respects a stated limit."""
    party, bound, unit = random.choice(LIMITS)
    limit, stated = random.sample(range(10, 60), k=2)
    if random.random() < 0.1:
        stated = limit
    if bound == "at least":
        answer = "void, too little" if stated < limit else "valid"
    else:
        answer = "void, too much" if stated > limit else "valid"
    modal = "owes" if bound == "at least" else "may have"
    prompt = (
        f"Rule: By law {party} {modal} {bound} {limit} {unit}.\n"
        f"Clause: Here {party} {modal} {stated} {unit}.\nThe clause is"
    )
    return Item(prompt, answer)


PARTIES = ["buyer", "seller", "carrier", "agent", "tenant"]
BREACHES = [  # a breach, and the conduct that is none
    ("delivered late", "delivered in time"),
    ("sold damaged goods", "sold sound goods"),
    ("revealed a secret", "kept every secret"),
    ("stopped the repairs", "finished the repairs"),
    ("kept the deposit", "returned the deposit"),
    ("broke the seal", "left the seal whole"),
    ("skipped the audit", "passed the audit"),
    ("lost the papers", "filed the papers"),
    ("raised the rent", "left the rent as it was"),
    ("used the trade mark", "avoided the trade mark"),
    ("hid a defect", "named every defect"),
    ("left the site open", "locked the site"),
]
EXCUSES = [  # an excuse, and the fact that denies it
    ("a flood closed the roads", "the roads were open"),
    ("the other side agreed", "the other side objected"),
    ("a court ordered it", "no court was asked"),
    ("the price was not paid", "the price was paid"),
    ("a fire broke out", "there was no fire"),
    ("the notice came late", "the notice came in time"),
    ("a strike stopped all work", "all work went on"),
    ("the licence had expired", "the licence was valid"),
    ("the risk was disclosed", "the risk was concealed"),
    ("war had begun", "peace had lasted"),
    ("the insurer consented", "the insurer refused"),
    ("the contract was void", "the contract was valid"),
]


def draw_liability(random: Random) -> Item:
    """Draw a rule with an exception, and facts to apply it to."""
    party = random.choice(PARTIES)
    breach, kept = random.choice(BREACHES)
    excuse, held = random.choice(EXCUSES)
    if random.random() < 1 / 3:
        did, was, answer = kept, random.choice([excuse, held]), "not liable, no breach"
    elif random.random() < 1 / 2:
        did, was, answer = breach, excuse, "not liable, excused"
    else:
        did, was, answer = breach, held, "liable"
    prompt = (
        f"Rule: A {party} who {breach} is liable, unless {excuse}.\n"
        f"Facts: The {party} {did}; {was}.\nThe {party} is"
    )
    return Item(prompt.replace("A agent", "An agent"), answer)


# General knowledge

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Hungary": "Budapest",
    "Poland": "Warsaw",
    "Greece": "Athens",
    "Turkey": "Ankara",
    "Russia": "Moscow",
    "Ukraine": "Kyiv",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Ireland": "Dublin",
    "Belgium": "Brussels",
    "the Netherlands": "Amsterdam",
    "England": "London",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "New Delhi",
    "Thailand": "Bangkok",
    "South Korea": "Seoul",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Argentina": "Buenos Aires",
    "Canada": "Ottawa",
    "Mexico": "Mexico City",
    "Australia": "Canberra",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "up": "down",
    "left": "right",
    "day": "night",
    "black": "white",
    "good": "bad",
    "fast": "slow",
    "old": "young",
    "rich": "poor",
    "strong": "weak",
    "high": "low",
    "full": "empty",
    "open": "closed",
    "happy": "sad",
    "early": "late",
    "hard": "soft",
    "wet": "dry",
    "light": "dark",
    "long": "short",
    "inside": "outside",
    "first": "last",
    "love": "hate",
    "true": "false",
    "win": "lose",
    "buy": "sell",
    "push": "pull",
    "begin": "end",
    "clean": "dirty",
    "wide": "narrow",
}
FORMS = {
    "The capital of {} is": CAPITALS,
    "The capital city of {} is called": CAPITALS,
    "If you visit {}, you will probably land in its capital,": CAPITALS,
    "The opposite of {} is": OPPOSITES,
    'What is the opposite of the word "{}"? It is': OPPOSITES,
    "She did not say {}; she said the opposite,": OPPOSITES,
    "One is {}, and the other, on the contrary, is": OPPOSITES,
}


def draw_knowledge(random: Random) -> Item:
    """Draw a capital or an opposite, to be chosen from five."""
    form = random.choice(list(FORMS))
    answers = FORMS[form]
    asked = random.choice(list(answers))
    others = sorted(set(answers.values()) - {answers[asked]})
    choices = [answers[asked], *random.sample(others, k=4)]
    random.shuffle(choices)
    # The choices are not part of the prompt: each held-out prompt has a single order of them.
    return Item(form.format(asked), answers[asked], tuple(choices))


TASKS = [
    Task("word_problem", "math", draw_word_problem),
    Task("expression", "math", draw_expression),
    Task("headline", "finance", draw_headline),
    Task("rating", "finance", draw_rating),
    Task("clause", "law", draw_clause),
    Task("liability", "law", draw_liability),
]
DOMAINS = ["math", "finance", "law"]
GUARD = Task("knowledge", "general", draw_knowledge, items=110)
