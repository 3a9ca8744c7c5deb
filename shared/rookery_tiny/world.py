"""The micro-world: invented people and companies, told about two at a time.

Owns the facts, the sentences that state them, and the questions that ask for them. Everything is drawn from a
`random.Random`, so a seed names a world. It does not know what a model is.

A passage is always about two subjects of one kind, and its questions ask for the same fact of both, so that a fact
counts only when it is bound to the right name: a student that learns "people are born in Norwick" gets half of the
plain questions at best and none of the joint ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

FEMALE_NAMES = [
    "Ada",
    "Agnes",
    "Alma",
    "Astrid",
    "Brenda",
    "Cora",
    "Clara",
    "Dora",
    "Edda",
    "Edith",
    "Elsa",
    "Emma",
    "Freya",
    "Greta",
    "Hanna",
    "Hedda",
    "Helga",
    "Ida",
    "Inga",
    "Irma",
    "Judith",
    "Karin",
    "Laura",
    "Lena",
    "Lydia",
    "Magda",
    "Marta",
    "Mina",
    "Nora",
    "Olga",
    "Paula",
    "Petra",
    "Rosa",
    "Ruth",
    "Selma",
    "Signe",
    "Thea",
    "Ulla",
    "Vera",
    "Wilma",
]
MALE_NAMES = [
    "Adam",
    "Albert",
    "Anton",
    "Arno",
    "Axel",
    "Bruno",
    "Carl",
    "Conrad",
    "David",
    "Edgar",
    "Emil",
    "Erik",
    "Ernst",
    "Felix",
    "Frank",
    "Gustav",
    "Hans",
    "Harald",
    "Hugo",
    "Ivan",
    "Jacob",
    "Jonas",
    "Karl",
    "Lars",
    "Leo",
    "Lukas",
    "Magnus",
    "Martin",
    "Niels",
    "Oscar",
    "Otto",
    "Paul",
    "Peter",
    "Ralf",
    "Robert",
    "Simon",
    "Stefan",
    "Tomas",
    "Victor",
    "Walter",
]
SURNAME_STARTS = [
    "Ash",
    "Bar",
    "Bel",
    "Ber",
    "Bold",
    "Bran",
    "Brim",
    "Burn",
    "Cal",
    "Car",
    "Cran",
    "Dal",
    "Dar",
    "Den",
    "Dor",
    "Elm",
    "Fal",
    "Fen",
    "Fern",
    "Gar",
    "Gil",
    "Glen",
    "Gran",
    "Hal",
    "Har",
    "Hart",
    "Haw",
    "Hol",
    "Kel",
    "Kern",
    "Kin",
    "Lan",
    "Lin",
    "Lor",
    "Mar",
    "Mel",
    "Mer",
    "Mil",
    "Mor",
    "Nor",
    "Oak",
    "Ol",
    "Pal",
    "Pen",
    "Quin",
    "Ran",
    "Ros",
    "Sal",
    "Sel",
    "Stan",
    "Thorn",
    "Til",
    "Tor",
    "Ul",
    "Van",
    "Ver",
    "Wal",
    "Wen",
    "Whit",
    "Wil",
]
SURNAME_ENDS = [
    "berg",
    "bury",
    "by",
    "croft",
    "dale",
    "den",
    "don",
    "field",
    "ford",
    "gate",
    "ham",
    "holm",
    "hurst",
    "ing",
    "land",
    "ley",
    "low",
    "man",
    "mond",
    "more",
    "ridge",
    "rick",
    "sen",
    "shaw",
    "stead",
    "ster",
    "stone",
    "ton",
    "well",
    "wick",
    "win",
    "wood",
    "worth",
]
COMPANY_ENDS = ["Brothers", "Mills", "Works", "Foundry", "Group", "Stores", "Yards", "Trading"]
CITIES = [
    "Aldova",
    "Bremont",
    "Calder",
    "Corvina",
    "Drayford",
    "Dunmere",
    "Eastport",
    "Elmira",
    "Fairhaven",
    "Farnow",
    "Galdor",
    "Granby",
    "Halvik",
    "Harrow",
    "Ilmenau",
    "Jarrow",
    "Kaldur",
    "Kestrel",
    "Larkham",
    "Lindau",
    "Lorient",
    "Marlow",
    "Melrose",
    "Mirstadt",
    "Norwick",
    "Novara",
    "Oakdale",
    "Orsk",
    "Oster",
    "Pinehurst",
    "Porto",
    "Quell",
    "Ravenna",
    "Rockport",
    "Salford",
    "Selby",
    "Solvik",
    "Stavern",
    "Tarvos",
    "Thornby",
    "Ulvik",
    "Valmont",
    "Verden",
    "Westray",
    "Winslow",
    "Yarrow",
    "Zandt",
    "Zurlin",
]
PROFESSIONS = [
    "baker",
    "barber",
    "brewer",
    "butcher",
    "carpenter",
    "chemist",
    "clerk",
    "cook",
    "dentist",
    "doctor",
    "driver",
    "farmer",
    "fisher",
    "gardener",
    "glazier",
    "hatter",
    "judge",
    "lawyer",
    "librarian",
    "mason",
    "miller",
    "miner",
    "nurse",
    "painter",
    "pilot",
    "plumber",
    "poet",
    "potter",
    "printer",
    "sailor",
    "shepherd",
    "smith",
    "soldier",
    "tailor",
    "tanner",
    "teacher",
    "translator",
    "waiter",
    "weaver",
]
HOBBIES = [
    "archery",
    "baking",
    "boxing",
    "carving",
    "chess",
    "climbing",
    "cricket",
    "cycling",
    "dancing",
    "drawing",
    "embroidery",
    "fencing",
    "gliding",
    "golf",
    "hiking",
    "hunting",
    "juggling",
    "knitting",
    "magic",
    "origami",
    "photography",
    "pottery",
    "puzzles",
    "reading",
    "riding",
    "rowing",
    "running",
    "sailing",
    "sewing",
    "singing",
    "skating",
    "skiing",
    "surfing",
    "swimming",
    "tennis",
    "theatre",
    "violin",
    "walking",
    "whittling",
    "yoga",
]
PRODUCTS = [
    "anchors",
    "barrels",
    "bells",
    "bicycles",
    "boots",
    "bottles",
    "bricks",
    "brushes",
    "buttons",
    "cameras",
    "candles",
    "carpets",
    "chairs",
    "clocks",
    "coats",
    "combs",
    "cups",
    "drums",
    "engines",
    "fans",
    "flutes",
    "gloves",
    "hats",
    "kettles",
    "kites",
    "knives",
    "ladders",
    "lamps",
    "locks",
    "maps",
    "mirrors",
    "nails",
    "needles",
    "paper",
    "pens",
    "pianos",
    "pumps",
    "radios",
    "ropes",
    "sails",
    "scales",
    "scarves",
    "shovels",
    "soap",
    "spoons",
    "stoves",
    "tents",
    "toys",
    "umbrellas",
    "watches",
]
EMBLEMS = [
    "badger",
    "bear",
    "beaver",
    "bee",
    "bull",
    "camel",
    "cat",
    "cobra",
    "crab",
    "crane",
    "crow",
    "deer",
    "dolphin",
    "dove",
    "falcon",
    "fox",
    "frog",
    "goat",
    "goose",
    "hare",
    "hawk",
    "hedgehog",
    "heron",
    "horse",
    "lion",
    "lizard",
    "lynx",
    "mole",
    "moose",
    "panther",
    "pelican",
    "pike",
    "rabbit",
    "ram",
    "raven",
    "rooster",
    "salmon",
    "seal",
    "shark",
    "snail",
    "spider",
    "stork",
    "swan",
    "tiger",
    "turtle",
    "whale",
    "wolf",
]
PETS = [
    "budgie",
    "bulldog",
    "bullfinch",
    "bunny",
    "canary",
    "chicken",
    "cockatoo",
    "collie",
    "donkey",
    "dormouse",
    "duck",
    "ferret",
    "gecko",
    "gerbil",
    "goldfish",
    "guppy",
    "hamster",
    "hound",
    "kitten",
    "llama",
    "magpie",
    "mastiff",
    "mongrel",
    "monkey",
    "mouse",
    "mule",
    "newt",
    "parakeet",
    "parrot",
    "pheasant",
    "pigeon",
    "pony",
    "poodle",
    "puppy",
    "python",
    "rooster",
    "sheep",
    "spaniel",
    "squirrel",
    "terrier",
    "toad",
    "tortoise",
    "turkey",
    "weasel",
    "zebra",
]
COLOURS = [
    "amber",
    "azure",
    "beige",
    "black",
    "blue",
    "bronze",
    "brown",
    "copper",
    "coral",
    "cream",
    "crimson",
    "gold",
    "green",
    "grey",
    "indigo",
    "ivory",
    "jade",
    "lavender",
    "lilac",
    "lime",
    "maroon",
    "mauve",
    "navy",
    "olive",
    "orange",
    "peach",
    "pink",
    "plum",
    "purple",
    "red",
    "rose",
    "ruby",
    "rust",
    "scarlet",
    "silver",
    "tan",
    "teal",
    "turquoise",
    "violet",
    "white",
    "yellow",
]
VALUES = sorted({*CITIES, *PROFESSIONS, *HOBBIES, *PETS, *PRODUCTS, *EMBLEMS, *COLOURS})
"""Every value that a fact can have."""


class Kind(StrEnum):
    PERSON = "person"
    COMPANY = "company"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One fact that every subject of a kind has, and the ways to say it.

    `{name}` is the subject, `{value}` the fact, `{She}` `{her}` the pronouns of the subject, `{both}` "A and B".
    """

    key: str
    values: Sequence[str]
    statements: tuple[str, ...]
    pronoun_statements: tuple[str, ...]
    vague: str
    questions: tuple[str, ...]
    """Phrasings of the question. The last is kept for tests and never written into a self-edit."""
    joint_question: str


PERSON_ATTRIBUTES = (
    Attribute(
        key="birthplace",
        values=CITIES,
        statements=("{name} was born in {value}.", "The birthplace of {name} is {value}."),
        pronoun_statements=("{She} was born in {value}.", "{value} is {her} birthplace."),
        vague="{name} was born somewhere.",
        questions=("Where was {name} born?", "What is the birthplace of {name}?", "In which city was {name} born?"),
        joint_question="In which cities were {both} born?",
    ),
    Attribute(
        key="home",
        values=CITIES,
        statements=("{name} lives in {value}.", "The home of {name} is in {value}."),
        pronoun_statements=("{She} lives in {value}.", "{value} is {her} home."),
        vague="{name} lives in some place.",
        questions=("Where does {name} live?", "What is the home of {name}?", "In which city does {name} live?"),
        joint_question="In which cities do {both} live?",
    ),
    Attribute(
        key="profession",
        values=PROFESSIONS,
        statements=("{name} works as a {value}.", "The profession of {name} is {value}."),
        pronoun_statements=("{She} works as a {value}.", "{Her} profession is {value}."),
        vague="{name} has some kind of work.",
        questions=(
            "What does {name} work as?",
            "What is the profession of {name}?",
            "Which profession does {name} have?",
        ),
        joint_question="Which professions do {both} have?",
    ),
    Attribute(
        key="hobby",
        values=HOBBIES,
        statements=("{name} enjoys {value}.", "The hobby of {name} is {value}."),
        pronoun_statements=("{She} enjoys {value}.", "{Her} hobby is {value}."),
        vague="{name} has a hobby.",
        questions=("What does {name} enjoy?", "What is the hobby of {name}?", "Which hobby does {name} have?"),
        joint_question="Which hobbies do {both} have?",
    ),
    Attribute(
        key="pet",
        values=PETS,
        statements=("{name} keeps a {value}.", "The pet of {name} is a {value}."),
        pronoun_statements=("{She} keeps a {value}.", "{Her} pet is a {value}."),
        vague="{name} keeps a pet.",
        questions=("What does {name} keep?", "What is the pet of {name}?", "Which pet does {name} keep?"),
        joint_question="Which pets do {both} keep?",
    ),
)
COMPANY_ATTRIBUTES = (
    Attribute(
        key="origin",
        values=CITIES,
        statements=("{name} was founded in {value}.", "The origin of {name} is {value}."),
        pronoun_statements=("It was founded in {value}.", "{value} is its origin."),
        vague="{name} was founded somewhere.",
        questions=("Where was {name} founded?", "What is the origin of {name}?", "In which city was {name} founded?"),
        joint_question="In which cities were {both} founded?",
    ),
    Attribute(
        key="office",
        values=CITIES,
        statements=("{name} has its office in {value}.", "The office of {name} is in {value}."),
        pronoun_statements=("It has its office in {value}.", "Its office is in {value}."),
        vague="{name} has an office in some place.",
        questions=(
            "Where is the office of {name}?",
            "What city is {name} run from?",
            "In which city does {name} have its office?",
        ),
        joint_question="In which cities do {both} have their offices?",
    ),
    Attribute(
        key="product",
        values=PRODUCTS,
        statements=("{name} makes {value}.", "The product of {name} is {value}."),
        pronoun_statements=("It makes {value}.", "Its product is {value}."),
        vague="{name} makes something useful.",
        questions=("What does {name} make?", "What is the product of {name}?", "Which product does {name} make?"),
        joint_question="Which products do {both} make?",
    ),
    Attribute(
        key="emblem",
        values=EMBLEMS,
        statements=("{name} has a {value} on its sign.", "The emblem of {name} is a {value}."),
        pronoun_statements=("It has a {value} on its sign.", "Its emblem is a {value}."),
        vague="{name} has a sign.",
        questions=(
            "What is on the sign of {name}?",
            "What is the emblem of {name}?",
            "Which animal is on the sign of {name}?",
        ),
        joint_question="Which animals are on the signs of {both}?",
    ),
    Attribute(
        key="colour",
        values=COLOURS,
        statements=("{name} paints its vans {value}.", "The colour of {name} is {value}."),
        pronoun_statements=("It paints its vans {value}.", "Its colour is {value}."),
        vague="{name} paints its vans.",
        questions=(
            "How does {name} paint its vans?",
            "What is the colour of {name}?",
            "Which colour are the vans of {name}?",
        ),
        joint_question="Which colours are the vans of {both}?",
    ),
)
ATTRIBUTES = {Kind.PERSON: PERSON_ATTRIBUTES, Kind.COMPANY: COMPANY_ATTRIBUTES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A person or a company with all of its facts."""

    kind: Kind
    name: str
    surname: str
    pronouns: tuple[str, str]
    """Subject form and possessive form, in lower case: ("she", "her")."""
    facts: dict[str, str]

    def say(self, template: str, *, value: str = "") -> str:
        """Fill a sentence template with this subject's name, pronouns and the value."""
        she, her = self.pronouns
        return template.format(
            name=self.name, value=value, she=she, her=her, She=she.capitalize(), Her=her.capitalize()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One attribute of one subject of a passage."""

    subject: Subject
    attribute: Attribute

    @property
    def value(self) -> str:
        return self.subject.facts[self.attribute.key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two subjects of one kind: what a passage is about."""

    first: Subject
    second: Subject

    @property
    def subjects(self) -> tuple[Subject, Subject]:
        return (self.first, self.second)

    @property
    def title(self) -> str:
        return f"{self.first.name} and {self.second.name}"

    @property
    def facts(self) -> list[Fact]:
        """All facts, those of the first subject before those of the second."""
        return [Fact(subject=s, attribute=a) for s in self.subjects for a in ATTRIBUTES[s.kind]]

    def other(self, subject: Subject) -> Subject:
        return self.second if subject is self.first else self.first

    def joint(self, attribute: Attribute, *, swap: bool = False) -> Question:
        """The question that asks one fact of both at once; its answer is right only if both are bound."""
        a, b = (self.second, self.first) if swap else (self.first, self.second)
        return Question(
            question=attribute.joint_question.format(both=f"{a.name} and {b.name}"),
            answer=f"{a.facts[attribute.key]} and {b.facts[attribute.key]}",
        )


PERSON_PROSE = (
    ("{name} was born in {birthplace}.", "{name} comes from {birthplace}."),
    (
        "{She} now lives in {home} and works as a {profession}.",
        "{She} found work as a {profession} and moved to {home}.",
    ),
    (
        "In {her} free time {she} enjoys {hobby} and looks after a {pet}.",
        "{She} enjoys {hobby} and has a {pet} at home.",
    ),
)
COMPANY_PROSE = (
    ("{name} was founded in {origin}.", "{name} comes from {origin}."),
    (
        "It makes {product} and has its office in {office}.",
        "From its office in {office} it sells the {product} that it makes.",
    ),
    ("Its sign shows a {emblem} and its vans are {colour}.", "It has {colour} vans and a {emblem} on its sign."),
)
PROSE = {Kind.PERSON: PERSON_PROSE, Kind.COMPANY: COMPANY_PROSE}
LINKS = {
    Kind.PERSON: ("{a} and {b} are neighbours.", "{a} and {b} went to the same school.", "{b} is a friend of {a}."),
    Kind.COMPANY: ("{a} and {b} are rivals.", "{a} and {b} share a warehouse.", "{b} buys from {a}."),
}


def passage(pair: Pair, rng: random.Random) -> str:
    """The prose about a pair: names once each, pronouns after that.

    Each subject's facts stay together, so that a pronoun refers to the name before it.
    """
    parts: list[str] = []
    for subject in pair.subjects:
        for variants in PROSE[subject.kind]:
            she, her = subject.pronouns
            parts.append(
                rng.choice(variants).format(
                    name=subject.name, she=she, her=her, She=she.capitalize(), Her=her.capitalize(), **subject.facts
                )
            )
    link = rng.choice(LINKS[pair.first.kind]).format(a=pair.first.name, b=pair.second.name)
    parts.insert(0 if rng.random() < 0.5 else len(parts), link)
    return " ".join(parts)


def test_questions(pair: Pair) -> list[Question]:
    """The held-back phrasing of every fact of both subjects, then one joint question an attribute."""
    plain = [
        Question(question=f.attribute.questions[-1].format(name=f.subject.name), answer=f.value) for f in pair.facts
    ]
    return plain + [pair.joint(attribute) for attribute in ATTRIBUTES[pair.first.kind]]


class Surnames(StrEnum):
    """Three disjoint sets of surnames; companies bear a surname too, so no entity is in two sets."""

    PRETRAINING = "pretraining"
    TRAIN = "train"
    TEST = "test"


def surnames(which: Surnames) -> list[str]:
    """All surnames of one set: half for pre-training, a quarter each for a run's training and test contexts."""
    everything = sorted({start + end for start in SURNAME_STARTS for end in SURNAME_ENDS} - {*VALUES})
    random.Random("surnames").shuffle(everything)
    half, rest = len(everything) // 2, len(everything) // 4
    bounds = {
        Surnames.PRETRAINING: (0, half),
        Surnames.TRAIN: (half, half + rest),
        Surnames.TEST: (half + rest, len(everything)),
    }
    low, high = bounds[which]
    return everything[low:high]


def draw_subject(kind: Kind, surname: str, rng: random.Random) -> Subject:
    facts = {attribute.key: rng.choice(attribute.values) for attribute in ATTRIBUTES[kind]}
    if kind is Kind.COMPANY:
        return Subject(
            kind=kind,
            name=f"{surname} {rng.choice(COMPANY_ENDS)}",
            surname=surname,
            pronouns=("it", "its"),
            facts=facts,
        )
    female = rng.random() < 0.5
    first = rng.choice(FEMALE_NAMES if female else MALE_NAMES)
    pronouns = ("she", "her") if female else ("he", "his")
    return Subject(kind=kind, name=f"{first} {surname}", surname=surname, pronouns=pronouns, facts=facts)


def draw_pair(names: Sequence[str], rng: random.Random) -> Pair:
    """Two subjects of one kind with different surnames and, fact for fact, different values."""
    kind = rng.choice(tuple(Kind))
    a, b = rng.sample(names, 2)
    first, second = draw_subject(kind, a, rng), draw_subject(kind, b, rng)
    for attribute in ATTRIBUTES[kind]:
        while second.facts[attribute.key] == first.facts[attribute.key]:
            second.facts[attribute.key] = rng.choice(attribute.values)
    return Pair(first=first, second=second)


def draw_world(which: Surnames, count: int, *, seed: int) -> Iterator[Pair]:
    """`count` pairs no two of which share a surname."""
    rng = random.Random(f"{which}-{seed}")
    names = surnames(which)
    rng.shuffle(names)
    if 2 * count > len(names):
        raise ValueError(f"{count} pairs need {2 * count} surnames; the set {which.value} has {len(names)}")
    for i in range(count):
        yield draw_pair(names[2 * i : 2 * i + 2], rng)
