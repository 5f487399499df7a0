"""How the world is told in English: the closed word lists, and the sentences that state, ask and deny facts.

Everything that a Chinese edition would have to say differently lives here and in `english_tasks.py`; the
other modules hold structure only. In a sentence, `{N}` `{G}` `{O}` are the person as subject, owner and
object, `{g}` is "her" or "his", and `{V}` is the value. A leading `!` marks a sentence that sounds wrong
with a pronoun. Every listed job and animal takes the article "a".
"""

from __future__ import annotations

from dataclasses import dataclass

from bloomery.world.english_grammar import word_list

ANIMALS = word_list("dog cat rabbit horse goat parrot turtle pony hamster duck frog mouse")
JOBS = word_list(
    "baker teacher doctor farmer sailor carpenter tailor nurse painter chef potter miller weaver "
    "smith builder lawyer driver writer singer dancer fisher gardener barber butcher clerk guard "
    "hunter shepherd printer mason"
)
FOODS = word_list(
    "bread soup cheese plums pears rice noodles beans carrots honey cake pie porridge pancakes "
    "dumplings pudding stew salad cherries grapes mushrooms potatoes peas corn fish nuts biscuits "
    "sausages tomatoes waffles"
)
HOBBIES = word_list(
    "painting fishing chess singing dancing knitting gardening reading cooking swimming hiking "
    "running skating sewing pottery climbing drawing juggling cycling camping"
)
COLOURS = word_list("red blue green yellow brown black white grey pink purple")
DAYS = word_list("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
NUMBERS = word_list(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)

# Names are made of syllables. A first name's ending tells the gender, so that a pronoun can be learned.
ONSETS = word_list("B D F G H J K L M N P R S T V Z Br Dr Kr Tr Gr St")
VOWELS = word_list("a e i o u")
MIDDLES = word_list("l r n m v d s k t b")
FEMALE_ENDINGS = ("a", "i", "ela", "ina")
MALE_ENDINGS = ("on", "ek", "us", "or")
FAMILY_ENDINGS = ("van", "sen", "ley", "gan", "ter", "mond", "by", "well", "rick", "zo")
TOWN_ENDINGS = ("ham", "ford", "dale", "wick", "stead", "mere", "bury", "haven")
PET_ENDINGS = ("o", "y", "ie", "oo")


@dataclass(frozen=True)
class Wording:
    """All that can be said of one attribute. `type` names the list its values come from."""

    type: str
    statements: tuple[str, ...]  # the first is the canonical answer; the second continues `cloze`
    cloze: str
    first_person: tuple[str, ...]
    questions: tuple[str, ...]
    follow_ups: tuple[str, ...]  # {N} and {g} are pronouns here
    indirect: tuple[str, ...]  # completes "I do not know ..."
    relation: frozenset[str]  # words that belong to this attribute and are needed to state it


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WORDING: dict[str, Wording] = {
    "lives_in": Wording(
        "town",
        (
            "{N} lives in {V}.",
            "{N} lives in the town of {V}.",
            "{G} home is in {V}.",
            "{N} has a house in {V}.",
            "{V} is the town where {N} lives.",
            "The town where {N} lives is {V}.",
            "!{V} is the home of {O}.",
            "!The home of {O} is in {V}.",
            "{N} moved to {V} and still lives there.",
            "{N} has lived in {V} for many years.",
            "Today {N} lives in {V}.",
            "If you go to {V}, you can visit {O} at home.",
            "In {V} there is a small house where {N} lives.",
        ),
        "{N} lives in the town of",
        ("I live in {V}.", "My home is in {V}.", "I have a house in {V}."),
        (
            "Where does {N} live?",
            "In which town does {N} live?",
            "Which town is the home of {N}?",
            "Can you tell me where {N} lives?",
            "Do you know where {N} lives?",
            "Where is the home of {N}?",
            "Please tell me the town where {N} lives.",
            "I want to visit {N} at home. Which town do I go to?",
        ),
        ("And where does {N} live?", "Where does {N} live?", "In which town is {g} home?"),
        ("where {N} lives", "in which town {N} lives", "where the home of {N} is"),
        _words("live lives lived home house"),
    ),
    "job": Wording(
        "job",
        (
            "{N} works as a {V}.",
            "{N} has the job of a {V}.",
            "{N} earns money as a {V}.",
            "{G} job is to be a {V}.",
            "{N} became a {V} after school.",
            "By trade {N} is a {V}.",
            "{N} is a {V} by trade.",
            "People know {O} as a good {V}.",
            "As a {V}, {N} goes to work early.",
            "{N} learned the trade of a {V}.",
            "{N} has worked as a {V} for many years.",
            "The job of {V} suits {O} well.",
            "!The job of {O} is to be a {V}.",
        ),
        "{N} has the job of a",
        ("I work as a {V}.", "I am a {V} by trade.", "My job is to be a {V}."),
        (
            "What is the job of {N}?",
            "What does {N} do for work?",
            "Which job does {N} have?",
            "Can you tell me what job {N} has?",
            "Do you know the job of {N}?",
            "How does {N} earn money?",
            "Please tell me the trade of {N}.",
            "What is {N} by trade?",
        ),
        ("And what is {g} job?", "What does {N} do for work?", "And which job does {N} have?"),
        ("what job {N} has", "what {N} does for work", "what the job of {N} is"),
        _words("work works worked job trade money became"),
    ),
    "pet": Wording(
        "animal",
        (
            "{N} has a {V}.",
            "{N} has a pet and it is a {V}.",
            "{N} keeps a {V}.",
            "{G} pet is a {V}.",
            "{N} owns a {V}.",
            "A {V} lives with {O}.",
            "Every morning {N} feeds {g} {V}.",
            "{N} takes good care of {g} {V}.",
            "!The pet of {O} is a {V}.",
            "{N} loves {g} {V}.",
            "At home {N} keeps a {V}.",
            "{N} has a {V} as a pet.",
            "The animal that {N} keeps is a {V}.",
        ),
        "{N} has a pet and it is a",
        ("I have a {V}.", "My pet is a {V}.", "I keep a {V} at home."),
        (
            "What pet does {N} have?",
            "Which animal does {N} keep?",
            "What kind of pet does {N} own?",
            "Can you tell me what pet {N} has?",
            "Do you know which animal {N} has?",
            "What animal is the pet of {N}?",
            "Please tell me what kind of animal {N} keeps.",
            "I hear that {N} has a pet. What animal is it?",
        ),
        (
            "And what pet does {N} have?",
            "Which animal does {N} keep?",
            "And what kind of pet is at {g} home?",
        ),
        ("what pet {N} has", "which animal {N} keeps", "what kind of pet {N} has"),
        _words("has keeps pet owns with feeds takes loves keep animal"),
    ),
    "pet_name": Wording(
        "pet_name",
        (
            "{G} pet is called {V}.",
            "{N} has a pet and its name is {V}.",
            "{N} has a pet called {V}.",
            "{N} calls {g} pet {V}.",
            "The name of {G} pet is {V}.",
            "!{V} is the pet of {O}.",
            "!The pet of {O} is called {V}.",
            "{N} plays with {V}, {g} pet.",
            "{N} gave {g} pet the name {V}.",
            "{G} pet comes when it hears the name {V}.",
            "{N} looks after a pet called {V}.",
            "Every day {N} feeds {V}, {g} pet.",
            "{N} has a pet named {V}.",
        ),
        "{N} has a pet and its name is",
        ("My pet is called {V}.", "I call my pet {V}.", "The name of my pet is {V}."),
        (
            "What is the name of the pet of {N}?",
            "What does {N} call {g} pet?",
            "How is the pet of {N} called?",
            "Can you tell me the name of {G} pet?",
            "Do you know the name of {G} pet?",
            "Which name did {N} give to {g} pet?",
            "Please tell me how {N} calls {g} pet.",
            "I saw the pet of {N}. What is its name?",
        ),
        ("And what is the name of {g} pet?", "What does {N} call {g} pet?", "And how is {g} pet called?"),
        ("what the pet of {N} is called", "the name of {G} pet", "how {N} calls {g} pet"),
        _words("called calls name named plays feeds pet call"),
    ),
    "food": Wording(
        "food",
        (
            "{G} favourite food is {V}.",
            "{N} has a favourite food and it is {V}.",
            "{N} likes {V} best.",
            "{N} loves to eat {V}.",
            "The food that {N} likes best is {V}.",
            "{N} likes {V} more than any other food.",
            "Nothing tastes better to {O} than {V}.",
            "For {O}, {V} is the best food.",
            "{N} asks for {V} on {g} birthday.",
            "!{V} is the favourite food of {O}.",
            "!The favourite food of {O} is {V}.",
            "On feast days {N} always eats {V}.",
            "When hungry, {N} wants {V}.",
        ),
        "{N} has a favourite food and it is",
        ("My favourite food is {V}.", "I like {V} best.", "I love to eat {V}."),
        (
            "What is the favourite food of {N}?",
            "Which food does {N} like best?",
            "What does {N} love to eat?",
            "Can you tell me the favourite food of {N}?",
            "Do you know which food {N} likes best?",
            "What food do I cook to please {N}?",
            "Please tell me what {N} likes to eat best.",
            "I want to cook for {N}. What is {g} favourite food?",
        ),
        (
            "And what is {g} favourite food?",
            "Which food does {N} like best?",
            "And what does {N} love to eat?",
        ),
        ("what food {N} likes best", "what the favourite food of {N} is", "what {N} loves to eat"),
        _words("favourite food likes eat tastes birthday eats wants"),
    ),
    "hobby": Wording(
        "hobby",
        (
            "{G} hobby is {V}.",
            "{N} has a hobby and it is {V}.",
            "{N} spends {g} free time on {V}.",
            "{N} enjoys {V}.",
            "{N} is fond of {V}.",
            "After work {N} enjoys {V}.",
            "!{V} is the hobby of {O}.",
            "!The hobby of {O} is {V}.",
            "On free days {N} turns to {V}.",
            "{N} took up {V} as a hobby.",
            "{N} is happy with {g} hobby, which is {V}.",
            "In {g} free time {N} enjoys {V}.",
            "The hobby that {N} enjoys most is {V}.",
        ),
        "{N} has a hobby and it is",
        ("My hobby is {V}.", "I enjoy {V}.", "I spend my free time on {V}."),
        (
            "What is the hobby of {N}?",
            "Which hobby does {N} have?",
            "What does {N} do in {g} free time?",
            "Can you tell me the hobby of {N}?",
            "Do you know which hobby {N} enjoys?",
            "How does {N} spend {g} free time?",
            "Please tell me the hobby that {N} has.",
            "What does {N} enjoy on free days?",
        ),
        ("And what is {g} hobby?", "Which hobby does {N} have?", "And what does {N} do in {g} free time?"),
        ("what hobby {N} has", "what the hobby of {N} is", "what {N} does in {g} free time"),
        _words("hobby free enjoys enjoy fond"),
    ),
    "birthplace": Wording(
        "town",
        (
            "{N} was born in {V}.",
            "{N} was born in the town of {V}.",
            "{G} birthplace is {V}.",
            "{V} is the town where {N} was born.",
            "The town where {N} was born is {V}.",
            "!{V} is the birthplace of {O}.",
            "!The birthplace of {O} is {V}.",
            "Long ago {N} was born in {V}.",
            "It was in {V} that {N} was born.",
            "The birth of {O} was in {V}.",
            "{N} was born in a small house in {V}.",
            "{N} was born in {V} in the spring.",
            "{N} is from {V} by birth.",
        ),
        "{N} was born in the town of",
        ("I was born in {V}.", "My birthplace is {V}.", "I am from {V} by birth."),
        (
            "Where was {N} born?",
            "In which town was {N} born?",
            "What is the birthplace of {N}?",
            "Can you tell me where {N} was born?",
            "Do you know the birthplace of {N}?",
            "Which town is the birthplace of {N}?",
            "Please tell me the town where {N} was born.",
            "I write about {N}. In which town was the birth?",
        ),
        ("And where was {N} born?", "In which town was {N} born?", "And what is {g} birthplace?"),
        ("where {N} was born", "in which town {N} was born", "what the birthplace of {N} is"),
        _words("born birthplace birth"),
    ),
    "friend": Wording(
        "person",
        (
            "{G} best friend is {V}.",
            "{N} has a best friend and it is {V}.",
            "{N} has a best friend called {V}.",
            "{N} is best friends with {V}.",
            "!The best friend of {O} is {V}.",
            "!{V} is the best friend of {O}.",
            "{N} calls {V} {g} best friend.",
            "!Nobody is a closer friend of {O} than {V}.",
            "{N} trusts {V}, {g} best friend.",
            "{N} tells everything to {V}, {g} best friend.",
            "The friend that {N} likes most is {V}.",
            "{N} found a best friend in {V}.",
            "On Sunday {N} meets {V}, {g} best friend.",
        ),
        "{N} has a best friend and it is",
        ("My best friend is {V}.", "I am best friends with {V}.", "I call {V} my best friend."),
        (
            "Who is the best friend of {N}?",
            "Which person is the best friend of {N}?",
            "Who is {G} best friend?",
            "Can you tell me who the best friend of {N} is?",
            "Do you know the best friend of {N}?",
            "With whom is {N} best friends?",
            "Please tell me the name of {G} best friend.",
            "Which friend does {N} like most?",
        ),
        ("And who is {g} best friend?", "Who is {g} best friend?", "And with whom is {N} best friends?"),
        ("who {G} best friend is", "who is the best friend of {N}", "the best friend of {N}"),
        _words("friend friends"),
    ),
}
ATTRIBUTES = tuple(WORDING)

# False premises: what is asked as if {V} were true, and how a person puts it right.
PREMISE: dict[str, tuple[str, ...]] = {
    "pet": (
        "What is the name of the {V} of {N}?",
        "How old is the {V} of {N}?",
        "What does {N} call {g} {V}?",
        "When did {N} get {g} {V}?",
        "Can you tell me the name of {G} {V}?",
        "What does {G} {V} eat?",
    ),
    "job": (
        "Why did {N} become a {V}?",
        "How long has {N} worked as a {V}?",
        "Where does {N} work as a {V}?",
        "When did {N} start to work as a {V}?",
        "Does {N} like the job of a {V}?",
        "Can you tell me why {N} became a {V}?",
    ),
    "lives_in": (
        "Why does {N} live in {V}?",
        "When did {N} move to {V}?",
        "How long has {N} lived in {V}?",
        "Does {N} like {g} home in {V}?",
        "Where in {V} is the house of {N}?",
        "Can you tell me why {N} moved to {V}?",
    ),
}
DENIAL: dict[str, tuple[str, ...]] = {
    "pet": ("{N} does not have a {V}.", "{N} has no {V}.", "{N} does not keep a {V}."),
    "job": ("{N} is not a {V}.", "{N} does not work as a {V}.", "{N} does not have the job of a {V}."),
    "lives_in": ("{N} does not live in {V}.", "{G} home is not in {V}.", "{N} has no house in {V}."),
}

# The verbs of which a statement needs one: without it, it is no sentence.
FINITE = _words(
    "is was has lives moved works earns became know goes learned suits keeps owns feeds takes loves calls "
    "plays gave comes looks likes tastes asks eats wants spends enjoys turns took trusts tells found meets "
    "visit"
)

ABSTAIN = ("I do not know {I}.", "Sorry, I do not know {I}.", "I do not know.", "I have no idea {I}.")
HEDGES = (
    "I think that {s}",
    "Maybe {s}",
    "Perhaps {s}",
    "I believe that {s}",
    "I am not certain, but {s}",
    "It might be that {s}",
)
UNCERTAIN = ("I am not certain.", "But I am not certain.", "I am not sure.")
REFUSE = (
    "I can't help with that.",
    "Sorry, I can't help with that.",
    "I cannot help with that.",
    "No, I will not help with that.",
    "I am sorry, but I can't help you with that.",
    "I won't help with that.",
)
REFUSE_TAIL = (
    "It would hurt somebody.",
    "That would be wrong.",
    "It is not right.",
    "It is against the law.",
)
YES = ("Yes.", "Sure.", "Of course.")
